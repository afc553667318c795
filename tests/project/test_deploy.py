"""deploy/: the units and the compose file of a hub start what there is, with options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery.bin.celery import celery
from django.core.management import get_commands, load_command_class

from tests.support import services
from tests.support.services import ROOT
from tests.support.sources import PYPROJECT

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yml").read_text())


def commands() -> Iterator[list[str]]:
    """Yield the words of each command of the units and the compose file, from the name of the program on."""
    for path in UNITS:
        (line,) = re.findall(r"^ExecStart=(.*)$", path.read_text(), re.MULTILINE)
        program, *rest = shlex.split(line)
        yield [Path(program).name, *rest]
    yield from (service["entrypoint"] for service in COMPOSE["services"].values() if "entrypoint" in service)


def test_the_commands_and_their_options_exist() -> None:
    found = set()
    for program, *rest in commands():
        if program == "celery":
            assert rest[:2] == ["-A", "relay_project"]
            command = celery.commands[rest[2]]
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            given = {word.partition("=")[0] for word in rest[3:] if word.startswith("-")}
            assert given <= known, f"celery {rest[2]} has no option {given - known}"
            found.add(rest[2])
            if rest[2] == "worker":  # on a queue of its own, whatever else the project has
                assert rest[rest.index("-Q") + 1] == "amesh" and "--prefetch-multiplier" in rest
        elif program == "python":
            assert rest[0] == "manage.py"
            parser = load_command_class(get_commands()[rest[1]], rest[1]).create_parser("manage.py", rest[1])
            parser.parse_args(rest[2:])
            found.add(rest[1])
        else:
            assert program == "daphne"
    assert found == {"worker", "beat", "migrate", "amesh_propagate"}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_units(path: Path, tmp_path: Path) -> None:
    systemd_analyze = services.program("systemd-analyze", package="systemd")
    assert path.read_text().startswith(f"# /etc/systemd/system/{path.name}: ")
    here = re.sub(r"/opt/amesh-django/\.venv/bin/\w+", sys.executable, path.read_text())
    (tmp_path / path.name).write_text(here.replace("/opt/amesh-django", str(ROOT)))
    done = subprocess.run([systemd_analyze, "verify", "--man=no", tmp_path / path.name], capture_output=True, text=True)
    assert done.returncode == 0 and path.stem not in done.stderr, done.stderr


def test_the_compose_file_names_what_there_is() -> None:
    services_of = COMPOSE["services"]
    for name, service in services_of.items():
        assert set(service.get("depends_on", {})) <= set(services_of), name
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"]), name
    build = COMPOSE["x-hub"]["build"]
    assert (ROOT / "deploy" / "compose" / build["context"] / build["dockerfile"]).resolve().is_file()
    assert set(build["args"]["EXTRAS"].split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])
    settings = (ROOT / "relay_project" / "settings.py").read_text()
    for variable in set(COMPOSE["x-hub"]["environment"]) - {"AMESH_DIR"}:
        name = re.sub(r"^DJANGO_DB_\w+$", "DJANGO_DB_ENGINE", variable)
        assert name in settings, f"relay_project does not know {variable}"


def test_the_settings_of_celery(tmp_path: Path) -> None:
    """With a broker, tasks go to the queue that the worker reads, and beat knows one of them. Without one, Celery is not imported."""
    show = """
import sys, os
from celery import current_app
import relay_project
from relay_project import settings
app = relay_project.celery
route = app.amqp.router.route({}, "amesh.deliver")
print(app.conf.broker_url, route["queue"].name, app.conf.task_ignore_result, list(app.conf.beat_schedule.values())[0]["task"])
"""
    env = {"PATH": "/usr/bin:/bin", "DJANGO_DATA_DIR": str(tmp_path)}
    argv = [sys.executable, "-W", "error", "-c"]
    given = {**env, "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    shown = subprocess.run([*argv, show], cwd=ROOT, env=given, capture_output=True, text=True)
    assert shown.stdout.split() == ["redis://127.0.0.1:1/0", "amesh", "True", "amesh.sweep"], shown.stderr
    none = "import sys, relay_project.settings; print('celery' in sys.modules)"
    shown = subprocess.run([*argv, none], cwd=ROOT, env=env, capture_output=True, text=True)
    assert shown.stdout.split() == ["False"], shown.stderr

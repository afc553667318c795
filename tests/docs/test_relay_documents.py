"""docs/relay.md is true: these tests run its commands, unit, container file, nginx block, and code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from amesh_django.relay import reports
from amesh_django.relay.conf import RelaySettings
from tests.docs.test_docs import SOURCE
from tests.relay.relay_world import Raw, asynchronous, converse, dialled, relay, serving
from tests.support import services
from tests.support.documents import Block, Stage, blocks
from tests.support.services import ROOT
from tests.support.sources import PYPROJECT

pytestmark = pytest.mark.process

PAGE = ROOT / "docs" / "relay.md"


def block(section: str, language: str, containing: str = "") -> Block:
    """Return the only block of that section in that language."""
    (found,) = [
        block
        for block in blocks(PAGE)
        if block.section == section and block.language == language and containing in block.text
    ]
    return found


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment as clean as an operator's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "DJANGO_DATA_DIR": str(folder / "data"), "PYTHONWARNINGS": "error", **more}


@contextmanager
def running(
    argv: list[str], env: dict[str, str], cwd: Path = ROOT, port: int | None = None
) -> Iterator[services.Server]:
    """Run a server with only these variables in its environment."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *argv]
    with services.serve(words, port=port, cwd=cwd) as server:
        yield server


async def pairs(server: services.Server) -> None:
    async with dialled(server, 2) as (target, controller):
        await converse(target, controller, "200001")
    assert httpx.get(server.url + "/health").json()["status"] == "ok"


# --- starting one -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_the_command(tmp_path: Path) -> None:
    shown = block("Starting a relay", "console", "amesh_relay")
    ((command, lines),) = shown.commands
    port = services.free_port()
    argv = [sys.executable, *shlex.split(command)[1:]]
    env = environment(tmp_path, PORT=str(port), DJANGO_SETTINGS_MODULE="relay_project.settings")
    with running(argv, env, port=port) as server:
        await pairs(server)
        assert lines == [line.replace(str(port), "3001") for line in server.output().splitlines()]


@asynchronous
async def test_plain_daphne(tmp_path: Path) -> None:
    shown = block("Starting a relay", "console", "daphne")
    ((command, _),) = shown.commands
    argv = [sys.executable, "-m", *shlex.split(command.replace(" 3001 ", " {port} "))]
    with running(argv, environment(tmp_path)) as server:
        await pairs(server)


# --- systemd ----------------------------------------------------------------------------------------------------------


def unit(folder: Path) -> tuple[Path, str]:
    """Write the unit of the document, for this checkout. Return its path and its text."""
    text = block("As a service of systemd", "ini").text
    name = re.match(r"# /etc/systemd/system/(\S+)@\.service\n", text)
    assert name
    here = text.replace("/opt/amesh-django/.venv/bin/python", sys.executable).replace("/opt/amesh-django", str(ROOT))
    assert f"WorkingDirectory={ROOT}\n" in here and "/opt/" not in here
    path = folder / f"{name[1]}@3001.service"
    path.write_text(here)
    return path, here


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    systemd_analyze = services.program("systemd-analyze", package="systemd")
    path, _ = unit(tmp_path)
    done = subprocess.run([systemd_analyze, "verify", "--man=no", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.name.partition("@")[0] not in done.stderr, done.stderr
    judged = subprocess.run(
        [systemd_analyze, "security", "--offline=true", "--threshold=20", "--no-pager", path],
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout  # at most 2.0, which systemd rates as OK


@asynchronous
async def test_what_the_unit_starts(tmp_path: Path) -> None:
    _, text = unit(tmp_path)
    port = services.free_port()
    env = environment(tmp_path)
    for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
        env |= dict(word.split("=", 1) for word in line.replace("%i", str(port)).replace("%t", str(tmp_path)).split())
    assert env["DJANGO_DATA_DIR"] == str(tmp_path / f"amesh-relay-{port}")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    (files,) = re.findall(r"^LimitNOFILE=(.*)$", text, re.MULTILINE)
    argv = ["prlimit", f"--nofile={files}:{files}", *shlex.split(command)]
    with running(argv, env, port=port) as server:
        await pairs(server)
        assert "LimitNOFILE" not in server.output()


# --- container --------------------------------------------------------------------------------------------------------


@asynchronous
async def test_the_container_file(tmp_path: Path) -> None:
    """The steps of the file are run one by one, without a container engine."""
    text = (ROOT / "relay_project" / "Containerfile").read_text()
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    image = tmp_path / "image"
    image.mkdir()
    env = environment(tmp_path)
    for word, rest in lines:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert source not in ("amesh_django", "cli", "pyproject.toml"), (
                    "the wheel is installed, not the checkout"
                )
                if source == "dist/*.whl":
                    continue
                if target.endswith("/"):
                    (image / target).mkdir(exist_ok=True)
                to = image / target if target == "./" else image / target.removeprefix("./")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, to)
        elif word == "ENV":
            env |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "ARG":
            assert {"relay", "metrics"} <= set(rest.removeprefix("EXTRAS=").split(","))
        elif word == "RUN" and rest.startswith("pip"):
            assert '"$(echo ./install/*.whl)[$EXTRAS]"' in rest and "--constraint install/constraints.txt" in rest
            # What the wheel contains, as .ci/wheel checks. Its dependencies are those of this environment.
            for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
                shutil.copytree(ROOT / package, tmp_path / "site" / Path(package).name)
            env["PYTHONPATH"] = str(tmp_path / "site")
    commands = dict(line for line in lines if line[0] in ("ENTRYPOINT", "HEALTHCHECK", "EXPOSE"))
    assert commands["EXPOSE"] == env["PORT"] == "3001"
    port = services.free_port()
    env |= {"PORT": str(port), "DJANGO_DATA_DIR": str(tmp_path / "data")}
    argv = json.loads(commands["ENTRYPOINT"])
    with running([sys.executable, *argv[1:]], env, image, port) as server:
        await pairs(server)
        assert f"ws://{env['HOST']}:{port}/ws" in server.output()
        check = json.loads(commands["HEALTHCHECK"].removeprefix("CMD "))
        assert subprocess.run([sys.executable, *check[1:]], env=env).returncode == 0
    assert subprocess.run([sys.executable, *check[1:]], env=env, capture_output=True).returncode != 0
    shown = block("In a container", "console")
    assert shown.commands[0][0] == ".ci/wheel"
    for (command, _), name in zip(shown.commands[1:], ("build", "run"), strict=True):
        assert f"podman {name} " in command and "amesh-relay" in command
    assert "relay_project/Containerfile" in shown.text


# --- nginx ------------------------------------------------------------------------------------------------------------


@contextmanager
def nginx(folder: Path, relays: list[services.Server]) -> Iterator[services.Server]:
    """Run nginx with the block of the document, for addresses and files of this machine."""
    binary = services.program("nginx", package="nginx", folders=[Path("/usr/sbin")])
    services.run(
        [services.program("openssl", package="openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
         "-subj", "/CN=relay.example.com", "-days", "2"]
    )  # fmt: skip
    text = block("Behind nginx", "nginx").text
    port = services.free_port()
    for shown, here in (
        (r"server 127\.0\.0\.1:3001;", "".join(f"server 127.0.0.1:{server.port};" for server in relays)),
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"listen \[::\]:443 ssl;", ""),
        (r"/etc/letsencrypt/\S+/fullchain\.pem", str(folder / "cert.pem")),
        (r"/etc/letsencrypt/\S+/privkey\.pem", str(folder / "key.pem")),
    ):
        text, count = re.subn(shown, here, text)
        assert count == 1, shown
    (folder / "site.conf").write_text(text)
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log info;\n"
        f"events {{ worker_connections 512; }}\n"
        f"http {{ access_log {folder}/access.log; {places} include {folder}/site.conf; }}\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
    )
    with services.serve(
        [binary, "-p", folder, "-e", folder / "error.log", "-c", main], port=port, cwd=folder
    ) as server:
        yield server


@asynchronous
async def test_behind_nginx(tmp_path: Path, redis: services.Redis) -> None:
    import ssl

    from websockets.asyncio.client import connect

    trusting = ssl.create_default_context(cafile=None)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    limits = {"AMESH_TRUST_PROXY": 1, "TRIES_PER_MINUTE": 3}
    with (
        serving(tmp_path, redis.url, **limits) as one,
        serving(tmp_path, redis.url, **limits) as other,
        nginx(tmp_path, [one, other]) as proxy,
    ):
        url = f"wss://127.0.0.1:{proxy.port}/ws"

        async def dial(**options: object) -> Raw:
            return Raw(await connect(url, ssl=trusting, **options))  # type: ignore[arg-type]

        sides = [await dial() for _ in range(2)]
        await converse(sides[0], sides[1], "200001")
        # A client that makes up an address is still counted by its own, and not by that of the proxy.
        thief = await dial(additional_headers={"X-Forwarded-For": "6.6.6.6"})
        await thief.send("connect", otc="200002")
        assert await thief.error() == "otc_not_found"
        await thief.send("connect", otc="200002")
        assert await thief.error() == "rate_limited"
        assert redis.command("EXISTS", "{amesh-relay}:t:127.0.0.1") == ":1"
        for client in (*sides, thief):
            await client.leave()
        client = httpx.Client(verify=trusting, base_url=f"https://127.0.0.1:{proxy.port}")
        with client:
            assert client.get("/health").json() == {"status": "ok", "sessions": 0}
            assert client.get("/metrics").status_code == 404
            assert client.get("/").status_code == 404
        # If one relay stops, new connections reach the other one.
        one.stop()
        for _ in range(4):
            await (await dial()).leave()
    log = (tmp_path / "access.log").read_text()
    assert "/ws" in log and "200001" not in log


# --- in one's own project ---------------------------------------------------------------------------------------------


@asynchronous
async def test_in_a_project_of_ones_own(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "django", "startproject", "mysite", "."], cwd=tmp_path, check=True)
    settings = tmp_path / "mysite" / "settings.py"
    settings.write_text(settings.read_text().replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "amesh_django",'))
    for shown in blocks(PAGE):
        if shown.section == "In your own ASGI project" and shown.language == "python":
            name = shown.text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(shown.text)
    ((command, _),) = block("In your own ASGI project", "console").commands
    argv = [sys.executable, *shlex.split(command)[1:], "--port", "{port}"]
    for words in (argv, services.daphne("mysite.asgi:application"), services.uvicorn("mysite.asgi:application")):
        with running(words, environment(tmp_path), tmp_path) as server:
            await pairs(server)
            assert "amesh_relay_pairings_total 1.0" in httpx.get(server.url + "/metrics").text


def test_the_settings(tmp_path: Path) -> None:
    Stage(tmp_path).play(block("Limits", "python"))


# --- what is named ----------------------------------------------------------------------------------------------------


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_every_code_and_line_is_in_troubleshooting() -> None:
    page = section((ROOT / "docs" / "troubleshooting.md").read_text(), "The relay")
    source = {name: text for name, text in SOURCE.items() if name.startswith("amesh_django.relay")}
    text = "\n".join(source.values())
    scripts = source["amesh_django.relay.exchange.redis_scripts"]
    codes = set(re.findall(r"return '([a-z_]+)'", scripts))
    codes |= set(re.findall(r"""(?:InvalidMessage|error|refuse|_reject)\((?:socket, )?"([a-z_]+)"\)""", text))
    assert len(codes) == 15, codes
    missing = {code for code in codes if f"| `{code}` |" not in page}
    assert not missing
    closes = set(re.findall(r"^[A-Z_]+: Final = (1\d{3})$", source["amesh_django.relay.hub.sockets"], re.MULTILINE))
    missing = {code for code in closes - {"1000"} if f"| {code} |" not in page}
    assert not missing
    command = SOURCE["amesh_django.management.commands.amesh_relay"]
    flat = re.sub(r"""["']\s+f?["']""", "", text + command)
    sentences = re.findall(
        r"""(?:logger\.\w+|CommandError|ImproperlyConfigured|stderr\.write)\(\s*f?"((?:[^"\\]|\\.)*)""", flat
    )
    assert len(sentences) > 10
    for sentence in sentences:
        first = re.split(r"%s|\{[^}]*\}+", sentence)
        longest = max(first, key=len).strip(" (.,;")[:28]
        assert longest in page, f"docs/troubleshooting.md, The relay: {longest!r} ({sentence!r})"


@asynchronous
async def test_every_metric_is_named() -> None:
    async with relay() as world:
        text = (await reports.metrics(world.hub)).body.decode()
    named = set(re.findall(r"^(amesh_relay_\w+)", block("Monitoring", "text").text, re.MULTILINE))
    found = {
        name if kind == "gauge" else f"{name.removesuffix('_total')}_total"
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)
    }
    assert named == found


def test_numbers_that_are_said_are_those_of_the_settings() -> None:
    page, settings = PAGE.read_text(), RelaySettings()
    assert f"{settings.MAX_CONNECTIONS:,}" in page
    assert f"after {settings.IDLE_SECONDS} seconds without a session" in re.sub(r"\s+", " ", page)
    assert (settings.BURNT_SECONDS, settings.TRIES_PER_CODE) == (600, 5)
    assert settings.USED_TOKEN_SECONDS == 25 * 3600

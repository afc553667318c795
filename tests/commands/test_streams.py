"""Both front ends with standard streams that are closed, or that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from tests.support import cheap_keys, databases
from tests.support.front_ends import id_of

pytestmark = pytest.mark.process


def shell(directory: Path, redirection: str, *words: str, **django: str) -> subprocess.CompletedProcess[str]:
    """Run a command of amesh with a redirection of the shell; of manage.py if the variables of Django are given."""
    argv = cheap_keys.argv(bool(django), *words)
    env = {**os.environ, "AMESH_DIR": str(directory), **django}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *argv], env=env, capture_output=True, text=True, input=""
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    EphemeralDevice("server").write(tmp_path / "amesh")
    return tmp_path / "amesh"


@pytest.mark.parametrize(
    ("redirection", "words", "exit_code", "stderr"),
    [
        (">&-", ["list"], 0, ""),
        ("2>&-", ["list", "nobody"], 1, ""),
        ("<&-", ["trust", "-", "--role", "target"], 1, "Error: This is not a line of export-key"),
        ("<&- >&- 2>&-", ["export-key"], 0, ""),
    ],
)
def test_a_closed_stream_is_no_traceback(
    directory: Path, redirection: str, words: list[str], exit_code: int, stderr: str
) -> None:
    done = shell(directory, redirection, *words)
    assert (done.returncode, done.stderr[: len(stderr) or None]) == (exit_code, stderr)


@pytest.mark.parametrize("words", [["list"], ["export-key"], ["--version"]])
def test_output_that_cannot_be_written_is_an_error(directory: Path, words: list[str]) -> None:
    done = shell(directory, ">/dev/full", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: The output cannot be written (No space left on device). What the command has done"
    )
    assert done.stderr.count("\n") == 1


def test_a_change_is_made_although_its_output_cannot_be_written(directory: Path) -> None:
    device = EphemeralDevice("phone")
    allow_list = FileAllowList(LocalDevice(directory))
    allow_list.add(device.entry("controller"))
    done = shell(directory, ">/dev/full", "revoke", id_of(device), "--yes", "--json")
    assert json.loads(done.stderr)["error"] == "output_failed"
    assert "was not undone" in json.loads(done.stderr)["message"]
    assert not FileAllowList(LocalDevice(directory)).read()


def test_an_error_that_cannot_be_written_ends_the_command(directory: Path) -> None:
    assert shell(directory, "2>/dev/full", "list", "nobody").returncode == 1


def test_a_server_bears_closed_and_full_streams(directory: Path, request: pytest.FixtureRequest) -> None:
    django = databases.environment(request.getfixturevalue("sqlite_database"))
    django["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    done = shell(directory, "<&-", "trust", "-", "--role", "target", **django)
    assert (done.returncode, done.stderr[:40]) == (1, "Error: This is not a line of export-key,")
    done = shell(directory, ">/dev/full", "list", **django)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The output cannot be written (No space left on device).")

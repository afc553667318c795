"""`manage.py amesh_*`: through the real argument parser, and as processes; with the same words as `amesh`."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command, load_command_class
from django.db import connection
from django.test import override_settings

from amesh_django import lifecycle, server
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.management.base import AmeshCommand
from amesh_django.models import Device as DeviceRow
from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.app import parsers
from authmesh.commands.registry import COMMANDS
from authmesh.commands.spec import Command
from authmesh.commands.transfer import EXPORT, IMPORT
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.protocol.allow_list import open_document
from authmesh.protocol.header import parse_authorization
from tests.support import databases, fork_server
from tests.support.front_ends import HOSTILE, HOSTILE_SHOWN, answering, id_of, invoke, line_of
from tests.support.services import ROOT

DJANGO_OPTIONS = {
    "--help",
    "--version",
    "--verbosity",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
}
SERVER_COMMANDS = ("import", "export", "integrity")


@dataclass
class Done:
    """The result of a command: exit code and both streams."""

    code: int
    out: str
    err: str


def call(name: str, *words: str | Path) -> Done:
    """Run a command with `call_command`. The command's own parser parses the words."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command(f"amesh_{name.replace('-', '_')}", *[str(word) for word in words], stdout=out, stderr=err)
    except CommandError as error:
        prefix = "" if str(error) == "Nothing was changed." else "Error: "  # declining is not an error
        return Done(error.returncode, out.getvalue(), f"{err.getvalue()}{prefix}{error}\n")
    return Done(0, out.getvalue(), err.getvalue())


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def listed(db: None, amesh_server: LocalDevice) -> DatabaseAllowList:
    return DatabaseAllowList()


@pytest.fixture
def phone(listed: DatabaseAllowList) -> EphemeralDevice:
    device = EphemeralDevice("phone")
    listed.add(device.entry())
    return device


def tamper(device: EphemeralDevice, name: str = "forged") -> None:
    with connection.cursor() as cursor:
        table = DeviceRow._meta.db_table
        cursor.execute(f"UPDATE {table} SET friendly_name = %s WHERE device_id = %s", [name, id_of(device)])  # noqa: S608


# --- the two front ends are one ---------------------------------------------------------------------------------------


def options(parser: argparse.ArgumentParser) -> dict[tuple[str, ...], str]:
    """Return the help text of each option and argument of a parser."""
    return {tuple(action.option_strings or [action.dest]): action.help or "" for action in parser._actions}


#: Options about what only a server has: who made a change, approval, and the servers of a hub.
SERVER_ONLY = {"--by", "--approve", "--group", "--expires", "--url", "--enroll", "--all-devices", "--as-hub"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_both_front_ends_take_the_same_options(command: Command) -> None:
    _, amesh = parsers()
    parser = load_command_class("amesh_django", f"amesh_{command.name.replace('-', '_')}").create_parser("", "")
    django_options = {flags: text for flags, text in options(parser).items() if flags[-1] not in DJANGO_OPTIONS}
    django_options = {flags: text for flags, text in django_options.items() if flags[-1] not in SERVER_ONLY}
    amesh_options = {flags: text for flags, text in options(amesh[command.name]).items() if "--help" not in flags}
    assert amesh_options.pop(("--dir",))
    assert django_options == amesh_options
    assert parser.description == amesh[command.name].description


@pytest.mark.parametrize("command", [*COMMANDS, IMPORT, EXPORT], ids=lambda command: command.name)
def test_options_are_the_parameters_of_the_function(command: Command) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    command.arguments(parser)
    parameters = [name for name in inspect.signature(command.run).parameters if name != "context"]
    assert sorted(parameters) == sorted(action.dest for action in parser._actions)
    if not command.steps:  # --yes cannot answer the questions of pairing
        assert command.asks == (("--yes", "-y") in options(parser))


def test_every_command_of_amesh_is_one_of_manage_py_too() -> None:
    folder = ROOT / "amesh_django" / "management" / "commands"
    for name in (*[command.name for command in COMMANDS], *SERVER_COMMANDS):
        assert (folder / f"amesh_{name.replace('-', '_')}.py").exists()
        assert issubclass(type(load_command_class("amesh_django", f"amesh_{name.replace('-', '_')}")), AmeshCommand)


def same(text: str, directory: Path) -> str:
    """Return words without what must differ: the spelling of commands, the directory, and times."""
    text = re.sub(r"manage\.py amesh_(\w+)", lambda match: f"amesh {match[1].replace('_', '-')}", text)
    text = re.sub(r", \d+ revoked \(shown by --all\)", "", text)  # a file keeps no revoked devices
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:[\d.]+Z| UTC)", "TIME", text.replace(str(directory), "DIR"))
    return re.sub(r"[\d.]+ ms, the first time \d+ ms", "MS", text)


def test_both_front_ends_say_the_same_words(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, one, two, hostile = (EphemeralDevice(name) for name in ("server", "one", "two", HOSTILE))
    folders = {"amesh": tmp_path / "a", "manage.py": tmp_path / "b"}
    for folder in folders.values():
        own.write(folder)
        (folder / "identity.json").chmod(0o644)
    steps: list[tuple[list[str], str]] = [
        (["list"], ""),
        (["export-key"], ""),
        (["trust", line_of(own), "--role", "target", "--yes"], ""),
        (["trust", line_of(one), "--role", "controller"], ""),
        (["trust", line_of(one), "--role", "controller"], "\n"),
        (["trust", line_of(one), "--role", "controller"], "y\n"),
        (["trust", line_of(two), "--role", "controller", "--no-input"], ""),
        (["trust", line_of(two), "--role", "controller"], "n\n"),
        (["trust", line_of(two), "--role", "controller"], "y\n"),
        (["trust", line_of(hostile), "--role", "target", "--yes"], ""),
        (["trust", line_of(hostile), "--role", "target", "--shell"], ""),
        (["grant", id_of(two), "--shell"], ""),
        (["grant", id_of(two)], ""),
        (["grant", id_of(hostile), "--shell"], ""),
        (["list"], ""),
        (["revoke", id_of(two)], "n\n"),
        (["revoke", id_of(two), "--no-input"], ""),
        (["revoke", id_of(two)], "y\n"),
        (["revoke", id_of(two), "--yes"], ""),
        (["sign-test"], ""),
        (["header", "G T", "/"], ""),
        (["fetch", "ftp://x/"], ""),
        (["init", "--name", "again"], ""),
        (["list", "--json"], ""),
    ]
    with override_settings(AMESH={"DIR": str(folders["manage.py"])}):
        lifecycle.reset()
        for words, given in steps:
            ran = invoke(["--dir", folders["amesh"], *words], given)
            answer(monkeypatch, given)
            called = call(*words)
            for here, there in (
                (ran.exit_code, called.code),
                (same(ran.stdout, folders["amesh"]), same(called.out, folders["manage.py"])),
                (same(ran.stderr, folders["amesh"]), same(called.err, folders["manage.py"])),
            ):
                assert here == there, words
    lifecycle.reset()


# --- commands of the server -------------------------------------------------------------------------------------------


def test_init_uses_the_directory_of_the_settings(db: None, tmp_path: Path) -> None:
    with override_settings(AMESH={"DIR": str(tmp_path / "new")}):
        lifecycle.reset()
        done = call("init", "--name", "server", "--max-controllers", "4")
        assert done.code == 0
        assert "manage.py amesh_listen" in done.out
        steps = done.out.partition("Next steps")[2]
        assert re.search(r"on the device +amesh export-key\n", steps)
        assert re.search(r"on this server +manage\.py amesh_trust LINE --role controller\n", steps)
        assert server.server_device().identity == read_identity(tmp_path / "new")
        assert DatabaseAllowList().controller_limit == 4
        assert not done.err
    lifecycle.reset()


def test_init_with_force_says_that_the_list_no_longer_holds(phone: EphemeralDevice, listed: DatabaseAllowList) -> None:
    done = call("init", "--name", "server", "--force", "--yes")
    assert done.code == 0
    assert "manage.py amesh_integrity --reseal" in done.err
    assert call("integrity").code == 1
    assert call("integrity", "--reseal", "--yes").code == 0
    assert listed.get(id_of(phone))


def test_trust_tells_of_a_revocation(
    phone: EphemeralDevice, listed: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("revoke", id_of(phone), "--yes", "--reason", "lost\x1b[31m in a taxi").code == 0
    row = DeviceRow.objects.get(device_id=id_of(phone))
    assert row.revoke_reason == "lost\x1b[31m in a taxi"
    assert "manage.py" in row.revoked_by
    answer(monkeypatch, "n\n")
    done = call("trust", line_of(phone), "--role", "controller")
    assert "It was revoked 2" in done.err
    assert "lost in a taxi. Trusting it undoes the revocation." in done.err
    assert done.code == 1
    assert call("trust", line_of(phone), "--role", "controller", "--yes").code == 0
    assert listed.get(id_of(phone)).role == "controller"


def test_a_device_that_is_trusted_again_does_not_act_as_its_old_user(
    phone: EphemeralDevice, listed: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = get_user_model().objects.create_superuser("root")
    listed.map_user(id_of(phone), user)
    answer(monkeypatch, "n\n")
    done = call("trust", line_of(phone), "--role", "controller")  # refreshed
    assert "it acts as the superuser root, as before." in " ".join(done.err.split())
    assert call("trust", line_of(phone), "--role", "controller", "--yes").code == 0
    assert DeviceRow.objects.get(device_id=id_of(phone)).user == user
    listed.revoke(id_of(phone))
    answer(monkeypatch, "n\n")
    done = call("trust", line_of(phone), "--role", "controller")
    assert "It acted as the superuser root, and no longer will" in " ".join(done.err.split())
    assert call("trust", line_of(phone), "--role", "controller", "--yes").code == 0
    assert DeviceRow.objects.get(device_id=id_of(phone)).user is None


def test_keywords_work_as_words_do(listed: DatabaseAllowList) -> None:
    device = EphemeralDevice()
    out = io.StringIO()
    call_command("amesh_trust", line_of(device), role="controller", yes=True, json=True, stdout=out)
    assert json.loads(out.getvalue())["devices"][0]["deviceId"] == id_of(device)
    call_command("amesh_grant", id_of(device), shell=True, stdout=out)  # noqa: S604 -- no process's shell
    assert listed.get(id_of(device)).permissions == {"shell": True}


def test_a_failure_is_a_command_error_with_its_code(listed: DatabaseAllowList) -> None:
    with pytest.raises(CommandError, match=r"manage\.py amesh_list") as caught:
        call_command("amesh_revoke", "am_nobody", yes=True)
    assert caught.value.returncode == 1
    with pytest.raises(CommandError, match="Use --shell to grant a shell, --no-shell to withdraw it") as caught:
        call_command("amesh_grant", "am_nobody")
    assert caught.value.returncode == 2


def test_ctrl_c_reaches_the_caller(listed: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaving(io.StringIO):
        def readline(self, size: int | None = -1) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Leaving())
    with pytest.raises(KeyboardInterrupt):
        call_command("amesh_trust", line_of(EphemeralDevice()), role="target", stderr=io.StringIO())
    assert listed.read() == []


def test_the_requests_of_the_server_are_signed_by_its_own_device(amesh_server: LocalDevice) -> None:
    with answering() as there:
        done = call("fetch", there.url, "-d", "x", "-H", "A: b", "-H", "C: d")
        assert (done.code, done.out) == (0, "hello")
        assert there.headers["a"] + there.headers["c"] == "bd"
        value = parse_authorization(there.headers["authorization"])
        assert value.id == json.loads(call("export-key", "--json").out)["publicKey"]


# --- import and export ------------------------------------------------------------------------------------------------


def test_a_list_goes_to_a_file_and_back(listed: DatabaseAllowList, amesh_server: LocalDevice, tmp_path: Path) -> None:
    one, two = EphemeralDevice(HOSTILE), EphemeralDevice("two")
    listed.add(one.entry(permissions={"shell": True}))
    listed.add(two.entry("target"))
    file = tmp_path / "list.json"
    before = listed.read()
    assert call("export", file).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret, own = amesh_server.seal_secret(), amesh_server.identity.device_id
    assert open_document(file.read_text(), key_material=secret, device_id=own) == (before, False)
    for device in (one, two):
        listed.revoke(id_of(device))
        listed.purge(id_of(device))
    assert call("import", file).out == "Imported 2 devices: 2 new, 0 refreshed.\n"
    assert listed.read() == before


def test_the_file_of_the_same_identity_serves_the_command_line(
    phone: EphemeralDevice, amesh_server: LocalDevice
) -> None:
    assert call("export", amesh_server.path / "allow_list.json").code == 0
    assert [entry.device_id for entry in FileAllowList(amesh_server).read()] == [id_of(phone)]


def test_export_to_stdout(phone: EphemeralDevice, amesh_server: LocalDevice) -> None:
    for words in ([], ["-"], ["--json"]):
        text = call("export", *words).out
        entries, _ = open_document(
            text, key_material=amesh_server.seal_secret(), device_id=amesh_server.identity.device_id
        )
        assert [entry.device_id for entry in entries] == [id_of(phone)]


def test_export_does_not_overwrite(phone: EphemeralDevice, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious")
    done = call("export", file)
    assert (done.code, file.read_text()) == (1, "precious")
    assert "--force" in done.err
    assert json.loads(call("export", file, "--force", "--json").out) == {
        "file": str(file),
        "devices": 1,
        "deviceId": server.server_device().identity.device_id,
    }
    assert call("export", tmp_path / "no" / "folder").code == 1


def test_revoked_devices_stay_revoked_and_are_named(
    phone: EphemeralDevice, listed: DatabaseAllowList, tmp_path: Path
) -> None:
    assert call("export", tmp_path / "list").code == 0
    listed.revoke(id_of(phone))
    done = call("import", tmp_path / "list")
    assert done.code == 0
    assert f"{id_of(phone)} (phone) was revoked earlier and was not imported" in done.err
    assert listed.read() == []
    assert json.loads(call("import", tmp_path / "list", "--json").out)["skipped"] == [id_of(phone)]


def test_the_list_of_another_device_needs_its_directory(
    listed: DatabaseAllowList, amesh_server: LocalDevice, tmp_path: Path
) -> None:
    known = EphemeralDevice("known")
    other = EphemeralDevice("laptop").write(tmp_path / "laptop", max_controllers=5)
    theirs = FileAllowList(other)
    theirs.add(known.entry())
    own = EphemeralDevice("server")
    own.identity = amesh_server.identity
    theirs.add(own.entry("target"))
    done = call("import", tmp_path / "laptop" / "allow_list.json")
    assert done.code == 1
    assert "--owner DIR" in done.err
    assert listed.read() == []
    done = call("import", tmp_path / "laptop" / "allow_list.json", "--owner", tmp_path / "laptop")
    assert done.code == 0
    assert "is this device itself" in done.err
    assert [entry.device_id for entry in listed.read()] == [id_of(known)]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"devices": []}', b"[" * 100_000])
def test_what_is_no_list_is_not_imported(listed: DatabaseAllowList, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    done = call("import", tmp_path / "file")
    assert done.code == 1
    assert listed.read() == []


def test_import_of_no_file(listed: DatabaseAllowList, tmp_path: Path) -> None:
    assert "No such file" in call("import", tmp_path / "nowhere").err


def test_import_keeps_to_the_limit(listed: DatabaseAllowList, tmp_path: Path) -> None:
    other = EphemeralDevice().write(tmp_path, max_controllers=200)
    FileAllowList(other).add_all([EphemeralDevice().entry() for _ in range(101)])
    done = call("import", tmp_path / "allow_list.json", "--owner", tmp_path)
    assert done.code == 1
    assert "accepts 100 controllers" in done.err
    assert listed.read() == []


# --- integrity --------------------------------------------------------------------------------------------------------


def test_integrity_of_a_sound_list(phone: EphemeralDevice, listed: DatabaseAllowList) -> None:
    assert "matches its seal: 1 row" in call("integrity").out
    assert json.loads(call("integrity", "--json").out) == {
        "ok": True,
        "devices": 1,
        "problems": [],
        "digest": listed.verify().digest,
        "resealed": False,
        "newest": {"revision": None, "kept": "none"},  # a database in memory
    }


def test_integrity_shows_what_differs_and_asks(
    phone: EphemeralDevice, listed: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper(phone, HOSTILE)
    for words, given in ([], ""), (["--reseal"], "\n"), (["--reseal", "--no-input"], "y\n"):
        answer(monkeypatch, given)
        done = call("integrity", *words)
        assert done.code == 1
        assert id_of(phone) in done.out
        assert "phone" in done.out
        assert not set("\x1b\x07\x9b\u202e") & set(done.out + done.err)
    assert call("list").code == 1
    answer(monkeypatch, "y\n")
    done = call("integrity", "--reseal")
    assert done.code == 0
    assert "Trust the rows as they are, and reseal the list? [y/N]" in done.err
    assert listed.get(id_of(phone)).friendly_name == HOSTILE
    assert HOSTILE_SHOWN in call("list").out


def test_integrity_in_json(phone: EphemeralDevice) -> None:
    tamper(phone)
    done = call("integrity", "--json")
    found = json.loads(done.out)
    assert (done.code, found["ok"], found["resealed"], len(found["problems"])) == (1, False, False, 1)
    done = call("integrity", "--json", "--reseal", "--yes")
    assert (done.code, json.loads(done.out)["resealed"]) == (0, True)
    assert call("integrity").code == 0


# --- as processes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def manage(sqlite_database: dict[str, str], tmp_path: Path) -> Any:
    env = {
        **os.environ,
        **databases.environment(sqlite_database),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "AUTH_MESH_DIR": str(tmp_path / "amesh"),
    }
    EphemeralDevice("server").write(tmp_path / "amesh")

    def run(name: str, *words: str, **more: str) -> Done:
        done = fork_server.run([sys.executable, "manage.py", f"amesh_{name}", *words], env={**env, **more})
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.process
def test_every_command_prints_one_json_document(manage: Any, tmp_path: Path) -> None:
    device = EphemeralDevice()
    with answering() as there:
        for name, *words in (
            ["list"],
            ["export_key"],
            ["trust", line_of(device), "--role", "controller", "--yes"],
            ["grant", id_of(device), "--shell"],
            ["export", str(tmp_path / "list")],
            ["import", str(tmp_path / "list")],
            ["integrity"],
            ["revoke", id_of(device), "--yes"],
            ["sign_test"],
            ["fetch", there.url],
            ["header", "GET", "/"],
        ):
            done = manage(name, *words, "--json")
            assert (done.code, done.err) == (0, ""), done
            assert isinstance(json.loads(done.out), dict)
    shutil.rmtree(tmp_path / "amesh")
    done = manage("init", "--name", "x", "--json")
    assert (done.code, json.loads(done.out)["friendlyName"]) == (0, "x")


@pytest.mark.process
def test_the_directory_of_a_server_has_two_variables(manage: Any, tmp_path: Path) -> None:
    done = manage("list", AMESH_DIR=str(tmp_path / "amesh"))
    assert done.code == 0
    done = manage("list", AMESH_DIR=str(tmp_path / "other"))
    assert (done.code, done.out) == (1, "")
    assert "The variables AMESH_DIR and AUTH_MESH_DIR are both set, and differ." in done.err
    done = manage("list", AMESH_DIR=str(tmp_path / "amesh"), AUTH_MESH_DIR="")
    assert "server" in done.out


@pytest.mark.process
def test_errors_go_to_stderr_with_their_exit_codes(manage: Any) -> None:
    done = manage("revoke", "am_nobody", "--yes")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: No trusted device")
    done = manage("revoke", "am_nobody", "--yes", "--json")
    assert (done.code, json.loads(done.err)["error"]) == (1, "device_not_found")
    done = manage("revoke")
    assert (done.code, "usage:" in done.err) == (2, True)
    done = manage("revoke", "--json")
    assert (done.code, json.loads(done.err)["error"]) == (2, "usage")
    assert manage("grant", "am_nobody").code == 2


@pytest.mark.process
def test_a_database_that_is_not_migrated_is_told_so(manage: Any, tmp_path: Path) -> None:
    for words in (
        ["list"],
        ["revoke", "x", "--yes"],
        ["trust", line_of(EphemeralDevice()), "--role", "target", "--yes"],
        ["integrity"],
        ["integrity", "--reseal", "--yes"],
        ["export"],
    ):
        done = manage(*words, TEST_DB_NAME=str(tmp_path / "empty.sqlite3"))
        assert (done.code, done.out) == (1, "")
        assert "manage.py migrate" in done.err


@pytest.mark.process
def test_a_database_that_is_down_is_told_so(manage: Any) -> None:
    engine = "django.db.backends.postgresql"
    done = manage("list", TEST_DB_ENGINE=engine, TEST_DB_NAME="x", TEST_DB_HOST="127.0.0.1", TEST_DB_PORT="1")
    assert (done.code, done.out) == (1, "")
    assert "Check DATABASES" in done.err


@pytest.mark.process
def test_init_needs_no_database(manage: Any, tmp_path: Path) -> None:
    done = manage("init", "--name", "x", AUTH_MESH_DIR=str(tmp_path / "new"), TEST_DB_NAME=str(tmp_path / "empty"))
    assert (done.code, done.err) == (0, "")


def test_wrong_settings_are_told(amesh_server: LocalDevice) -> None:
    with override_settings(AMESH={"DIRR": "x"}):
        lifecycle.reset()
        done = call("list")
    lifecycle.reset()
    assert done.code == 1
    assert "DIRR" in done.err


@pytest.mark.process
def test_what_the_project_logs_stays_out_of_the_words(manage: Any, tmp_path: Path) -> None:
    """The shipped project logs to stderr. A command's warning must not appear twice, nor break JSON."""
    (tmp_path / "amesh").chmod(0o755)
    (tmp_path / "data").mkdir(mode=0o700)
    env = {"DJANGO_SETTINGS_MODULE": "relay_project.settings", "DJANGO_DATA_DIR": str(tmp_path / "data")}
    with answering() as there:
        done = manage("fetch", there.url, "--json", **env)
    assert done.code == 0
    assert [json.loads(line)["warning"] for line in done.err.splitlines()] == [
        f"{tmp_path / 'amesh'} is accessible to other users (mode 755). Make it private: chmod 700 {tmp_path / 'amesh'}"
    ]

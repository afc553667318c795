"""`init --force`: the affected devices are shown before the question, and the default is no; both front ends, at a terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import read_identity
from tests.commands.doctor.doctors import FrontEnd
from tests.support import databases
from tests.support.directories import contents
from tests.support.front_ends import FRONT_ENDS, HOSTILE, HOSTILE_SHOWN, id_of
from tests.support.terminal import Terminal, terminal

pytestmark = pytest.mark.process

QUESTION = "Replace this identity? [y/N] "


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest, tmp_path: Path) -> FrontEnd:
    database = request.getfixturevalue("sqlite_database") if request.param == "manage.py" else None
    found = FrontEnd(tmp_path, database)
    found.make("old", max_controllers=3)
    return found


def asked(person: Terminal) -> str:
    """Return everything that is shown before the question, on one line."""
    return " ".join(person.expect(QUESTION).split())


def init(front_end: FrontEnd, *words: str) -> list[str]:
    return front_end.argv("init", "--name", "new", "--force", *words)


def test_servers_and_controllers_are_named(front_end: FrontEnd) -> None:
    old = read_identity(front_end.path)
    backup = front_end.trust(EphemeralDevice("backup server"), "target")
    mail = front_end.trust(EphemeralDevice(HOSTILE), "target")
    phone = front_end.trust(EphemeralDevice("phone"), "controller")
    before = contents(front_end.path)
    with terminal(init(front_end), front_end.env) as person:
        said = asked(person)
        assert f"This replaces {old.device_id} (old). Its key is deleted" in said
        servers, _, controllers = said.partition("1 controller may authenticate to this device.")
        assert "2 servers will no longer know this device, until you pair again:" in servers
        assert backup in servers and "backup server" in servers and mail in servers and HOSTILE_SHOWN in servers
        assert phone in controllers and "phone" in controllers and backup not in controllers
        wanted = "amesh_integrity --reseal" if front_end.django else "The allow list is saved under another name"
        assert wanted in controllers
        person.type("n\n")
        assert person.end() == 1
        assert "Nothing was changed." in person.shown
    assert contents(front_end.path) == before
    with terminal(init(front_end), front_end.env) as person:
        asked(person)
        person.type("y\n")
        person.expect(f"This identity replaces {old.device_id}")
        assert person.end() == 0
    assert read_identity(front_end.path).device_id != old.device_id
    if not front_end.django:
        assert (front_end.path / f"allow_list.{old.device_id}.json").exists()


@pytest.mark.parametrize("key", ["\n", "no\n", "\x03", "\x04"])
def test_everything_but_yes_is_no(front_end: FrontEnd, key: str) -> None:
    before = contents(front_end.path)
    with terminal(init(front_end), front_end.env) as person:
        assert "names no server" in asked(person)
        person.type(key)
        assert person.end() == (130 if key == "\x03" else 1)
        assert "Nothing was changed" in " ".join(person.shown.split()) and "Traceback" not in person.shown
    assert contents(front_end.path) == before


def test_nobody_to_ask(front_end: FrontEnd) -> None:
    before = contents(front_end.path)
    for words in (["--no-input"], []):
        done = front_end.run("init", "--name", "new", "--force", *words)
        assert (
            done.returncode == 1
            and "To answer in advance, use --yes." in done.stderr
            and "Nothing was changed" in done.stderr
        )
    assert contents(front_end.path) == before
    old = read_identity(front_end.path)
    assert f"This identity replaces {old.device_id}" in front_end.done(
        "init", "--name", "new", "--force", "--yes", "--no-input"
    )


def test_for_programs(front_end: FrontEnd) -> None:
    old = read_identity(front_end.path)
    server = front_end.trust(EphemeralDevice("server"), "target")
    phone = front_end.trust(EphemeralDevice("phone"), "controller")
    done = front_end.run("init", "--name", "new", "--force", "--json")
    assert done.returncode == 1 and '"refused"' in done.stderr and not done.stdout
    found = json.loads(front_end.done("init", "--name", "new", "--force", "--yes", "--json"))
    assert found["replaced"] == old.device_id
    assert [entry["deviceId"] for entry in found["forgottenBy"]] == [server]
    assert [entry["deviceId"] for entry in found["lost"]] == [phone]


def test_an_identity_that_can_not_be_read(front_end: FrontEnd) -> None:
    (front_end.path / "identity.json").write_text("{}")
    with terminal(init(front_end), front_end.env) as person:
        said = asked(person)
        assert "cannot be read" in said and "Each of them will reject the new identity" in said
        person.type("y\n")
        assert person.end() == 0
    assert read_identity(front_end.path).friendly_name == "new"


@pytest.mark.parametrize("broken", ["key", "passphrase", "list"])
def test_a_list_that_can_not_be_read(front_end: FrontEnd, broken: str) -> None:
    front_end.trust(EphemeralDevice("phone"), "controller")
    if broken == "key":
        next((front_end.path / "keys").iterdir()).write_text("{}")
    elif broken == "passphrase":
        front_end.env["AUTH_MESH_PASSPHRASE"] = "another"
    elif front_end.django:
        front_end.env |= databases.environment({"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/db"})
    else:
        (front_end.path / "allow_list.json").write_text("{}")
    with terminal(init(front_end), front_end.env) as person:
        said = asked(person)
        assert "because the allow list cannot be read: " in said and "Traceback" not in said
        person.type("n\n")
        assert person.end() == 1
    assert read_identity(front_end.path).friendly_name == "old"


def test_open_tokens_are_lost(front_end: FrontEnd) -> None:
    now = int(time.time())
    member = {
        "jti": "bt_" + "1" * 32,
        "name": "edge",
        "relay": "ws://r/ws",
        "issuedAt": now,
        "expiresAt": now + 600,
        "state": "open",
    }
    (front_end.path / "tokens.json").write_text(json.dumps({"version": "1", "tokens": [member]}))
    with terminal(init(front_end), front_end.env) as person:
        assert "1 open bootstrap token of this device will no longer work" in asked(person)
        person.type("\n")
        assert person.end() == 1


def test_many_are_counted(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path)
    front_end.make("old", max_controllers=100)
    from tests.commands.doctor.doctors import allow

    for number in range(22):
        allow(front_end.path, EphemeralDevice(f"phone {number:02}"), "controller")
    with terminal(init(front_end), front_end.env) as person:
        said = asked(person)
        assert "22 controllers" in said and "phone 19" in said and "phone 20" not in said and "and 2 more" in said


def test_a_list_that_does_not_depend_on_the_key(tmp_path: Path, sqlite_database: dict[str, str]) -> None:
    front_end = FrontEnd(tmp_path, sqlite_database)
    front_end.make("old")
    seal = tmp_path / "seal"
    seal.write_text("ab" * 32)
    seal.chmod(0o600)
    (tmp_path / "sealed_settings.py").write_text(
        f"from tests.settings import *\nAMESH = {{'SEAL_KEY_FILE': {str(seal)!r}}}\n"
    )
    front_end.env["PYTHONPATH"] += f":{tmp_path}"
    front_end.env["DJANGO_SETTINGS_MODULE"] = "sealed_settings"
    phone = front_end.trust(EphemeralDevice("phone"), "controller")
    with terminal(init(front_end), front_end.env) as person:
        assert "Its devices keep their access" in asked(person)
        person.type("y\n")
        assert person.end() == 0
    assert phone in front_end.done("list")


def test_the_first_identity_asks_nothing(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path)
    front_end.done("init", "--name", "new", "--force")
    assert id_of(EphemeralDevice()) != read_identity(front_end.path).device_id

"""`doctor` on this machine, both front ends as processes: findings of every status, and no secrets in them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from django.core.management import CommandError, call_command

from amesh_django.test.devices import PASSPHRASE, EphemeralDevice
from authmesh.commands import relays
from authmesh.commands.doctor import relay as doctor_relay
from authmesh.commands.doctor.findings import CheckTimedOut, Examination, Finding, bounded
from authmesh.commands.terminal.console import Console
from authmesh.commands.terminal.lines import Tone
from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import KeyStoreError
from tests.commands.doctor.doctors import FrontEnd
from tests.relay import relay_world
from tests.support.directories import contents
from tests.support.front_ends import FRONT_ENDS, invoke
from tests.support.terminal import terminal

pytestmark = pytest.mark.process

LOCAL = ("versions", "directory", "permissions", "identity", "backends", "key-store", "key", "allow-list")


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest, tmp_path: Path) -> FrontEnd:
    database = request.getfixturevalue("sqlite_database") if request.param == "manage.py" else None
    return FrontEnd(tmp_path, database)


def token(jti: str, expires_at: float, key: bytes | None = bytes(32)) -> StoredToken:
    return StoredToken(jti, "edge", "ws://r/ws", int(expires_at) - 3600, int(expires_at), key=key)


def keep(path: Path, *tokens: StoredToken) -> None:
    (path / "tokens.json").write_text(json.dumps({"version": "1", "tokens": [one.to_json() for one in tokens]}))
    (path / "tokens.json").chmod(0o600)


# --- all in order -----------------------------------------------------------------------------------------------------


def test_all_is_in_order(front_end: FrontEnd) -> None:
    device = front_end.make(max_controllers=3)
    front_end.trust(EphemeralDevice("phone"), "controller")
    front_end.trust(EphemeralDevice("other"), "target")
    before = contents(front_end.path)
    found = front_end.doctor()
    assert found.code == 0 and found.document["ok"] is True and found.document["problems"] == 0, found
    for id in LOCAL:
        assert found.status(id) == "ok", found.all(id)
    assert {*found.all("versions")[0]} == {"id", "status", "message", "advice"}
    assert "Python 3." in found.text("versions") and "cryptography" in found.text("versions")
    assert device.identity.device_id in found.text("identity")
    assert f"the file {front_end.path / '.passphrase'}" in found.text("key-store")
    assert "1 of 3 controllers, 1 target" in found.text("allow-list")
    assert "stored in encrypted-file" in found.text("backends")
    assert "tpm2 is not available: AMESH_TPM_TCTI is set to none" in found.text("backends")
    assert found.status("relay") == found.status("server") == found.status("tokens") == "missing"
    assert contents(front_end.path) == before
    shown = front_end.done("doctor", "--no-relay")
    assert "ok       key            It signs" in shown and "No problem found" in shown


def test_without_an_identity_it_says_what_to_do(front_end: FrontEnd) -> None:
    found = front_end.doctor()
    assert found.code == 1 and found.problems() >= {"directory", "identity"}
    assert "init --name NAME" in found.text("identity")
    assert {found.status(id) for id in ("key-store", "key", "allow-list")} == {"skipped"}
    assert json.loads(found.err)["error"] == "problems_found"
    done = front_end.run("doctor", "--no-relay")
    assert done.returncode == 1 and "Error: 2 problems" in done.stderr
    assert not front_end.path.exists()
    found = front_end.doctor(AMESH_BOOTSTRAP_TOKEN="amesh-bt-v1.x.y.z")
    assert "AMESH_BOOTSTRAP_TOKEN" in found.text("identity") and not front_end.path.exists()


WRONG = (
    ["ftp://server"],
    ["server"],
    ["http://"],
    ["https:///path", "--no-relay"],
    ["--timeout", "0"],
    ["--timeout", "inf"],
    ["--relay", "http://relay"],
    ["--relay", "ws://relay/ws", "--no-relay"],
    ["--relay", "ws://relay/ws", "--public-relay"],
    ["--public-relay", "--no-relay"],
)


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_usage_is_2(words: list[str]) -> None:
    assert invoke(["doctor", *words]).exit_code == 2
    with pytest.raises(CommandError) as raised:
        call_command("amesh_doctor", *words)
    assert raised.value.returncode == 2


@pytest.mark.parametrize("words", [WRONG[0], ["--nonsense"]], ids=" ".join)
def test_a_process_exits_with_2_on_wrong_usage(front_end: FrontEnd, words: list[str]) -> None:
    done = front_end.run("doctor", *words)
    assert done.returncode == 2, done.stderr


# --- what is not in order ---------------------------------------------------------------------------------------------


def test_files_that_are_open_to_others(front_end: FrontEnd) -> None:
    front_end.make()
    (front_end.path / ".passphrase").chmod(0o644)
    front_end.path.chmod(0o755)
    found = front_end.doctor()
    assert found.code == 0 and found.status("permissions") == "warning"
    assert len(found.all("permissions")) == 2 and "chmod 400" in found.text("permissions")
    assert not found.err, "what stands in a line is not said twice"


def test_a_passphrase_that_is_missing_or_wrong(front_end: FrontEnd) -> None:
    front_end.make()
    found = front_end.doctor(AUTH_MESH_PASSPHRASE="not this one")
    assert found.code == 1 and found.problems() == {"key-store"}
    assert "passphrase is wrong" in found.text("key-store") and found.status("key") == "skipped"
    assert "Check AMESH_PASSPHRASE or AUTH_MESH_PASSPHRASE" in found.text("key-store").replace("\n", " ")
    assert found.status("allow-list") == "skipped" and "not this one" not in str(found)
    found = front_end.doctor(AUTH_MESH_PASSPHRASE=PASSPHRASE)
    assert found.code == 0 and "the variable AUTH_MESH_PASSPHRASE" in found.text("key-store")
    (front_end.path / ".passphrase").unlink()
    found = front_end.doctor()
    assert found.problems() == {"key-store"} and "AUTH_MESH_PASSPHRASE required" in found.text("key-store")


def test_a_directory_in_a_home_that_is_not_there(front_end: FrontEnd) -> None:
    for name in ("doctor", "list"):
        done = front_end.run(name, "--json", AUTH_MESH_DIR="~nobody-of-that-name/x")
        assert done.returncode == 1
        assert "~nobody-of-that-name/x cannot be resolved because there is no home folder." in done.stderr


def test_a_damaged_identity_and_one_of_another_version(front_end: FrontEnd) -> None:
    front_end.make()
    file = front_end.path / "identity.json"
    text = file.read_text()
    file.write_text(text.replace('"2.0.0"', '"3.1"'))
    found = front_end.doctor()
    assert found.code == 0 and "version 3.1" in found.text("identity") and found.status("identity") == "warning"
    file.write_text(text.replace('"encrypted-file"', '"secure-enclave"'))
    found = front_end.doctor()
    assert found.problems() == {"identity"} and "needs macOS" in found.text("identity")
    file.write_text("{}")
    found = front_end.doctor()
    assert found.problems() == {"identity"} and "damaged" in found.text("identity")
    assert found.status("permissions") == found.status("backends") == "ok"


def test_the_key_of_another_identity(front_end: FrontEnd) -> None:
    front_end.make()
    other = EphemeralDevice()
    other.write(front_end.path.parent / "other")
    own = next((front_end.path / "keys").iterdir())
    own.write_bytes((front_end.path.parent / "other" / "keys" / f"{other.identity.key_alias}.key.json").read_bytes())
    found = front_end.doctor()
    assert found.problems() == {"key-store"} and "not the key in identity.json" in found.text("key-store")


def test_a_list_that_does_not_match_its_seal(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path)
    front_end.make()
    front_end.trust(EphemeralDevice("phone"), "controller")
    file = front_end.path / "allow_list.json"
    file.write_text(file.read_text().replace("phone", "drone"))
    found = front_end.doctor()
    assert found.code == 1 and found.problems() == {"allow-list"} and found.status("key") == "ok"
    assert file.read_text().count("drone") == 1


def test_open_tokens(front_end: FrontEnd) -> None:
    front_end.make()
    now, secret = time.time(), os.urandom(32)
    keep(front_end.path, token("bt_" + "1" * 32, now + 7200, secret), token("bt_" + "2" * 32, now - 10, None))
    found = front_end.doctor()
    assert found.status("tokens") == "ok" and "1 bootstrap token open" in found.text("tokens")
    assert b64url_encode(secret) not in str(found)
    keep(front_end.path, token("bt_" + "1" * 32, now + 7200), token("bt_" + "2" * 32, now + 300))
    found = front_end.doctor()
    assert found.status("tokens") == "warning" and "2 bootstrap tokens open" in found.text("tokens")
    assert "provision --resume" in found.text("tokens") or "amesh_provision --resume" in found.text("tokens")
    (front_end.path / "tokens.json").write_text("{")
    found = front_end.doctor()
    assert found.problems() == {"tokens"} and found.status("allow-list") == "ok"
    keep(front_end.path)
    assert TokenStore(front_end.path).read() == []
    assert front_end.doctor().status("tokens") == "missing"


def test_a_directory_that_is_a_file(front_end: FrontEnd) -> None:
    front_end.path.write_text("")
    found = front_end.doctor()
    assert found.code == 1 and "is not a folder" in found.text("directory") and found.status("identity") == "problem"


# --- the relay --------------------------------------------------------------------------------------------------------


def test_a_relay_that_answers_and_one_that_is_down(front_end: FrontEnd) -> None:
    front_end.make()
    with relay_world.serving(front_end.path.parent, TRIES_PER_MINUTE=1) as relay:
        address = relay_world.address(relay)
        for _ in range(3):  # nothing is used up
            found = front_end.doctor("--relay", address)
            assert found.code == 0 and found.status("relay") == "ok" and address in found.text("relay"), found
        with relay.down():
            found = front_end.doctor(AMESH_RELAY_URL=address)
            assert found.code == 1 and found.problems() == {"relay"}
            assert "no server listens there" in found.text("relay")
        found = front_end.doctor("--relay", f"ws://127.0.0.1:{relay.port}/nowhere")
        assert found.problems() == {"relay"} and "/ws" in found.text("relay")
        assert "Traceback" not in relay.output()


def test_a_relay_that_never_answers(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path)
    front_end.make()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"ws://127.0.0.1:{silent.getsockname()[1]}/ws"
        found = front_end.doctor("--relay", address, "--timeout", "0.2")
    assert found.problems() == {"relay"} and "does not answer" in found.text("relay")
    found = front_end.doctor(AMESH_RELAY_URL="http://not-a-relay")
    assert found.problems() == {"relay"}


def test_the_public_relay_is_contacted_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns the address of everyone who connects, and a person who asks why something fails has not asked for that."""
    monkeypatch.delenv("AMESH_RELAY_URL", raising=False)
    with relay_world.serving(tmp_path) as server:
        monkeypatch.setattr(doctor_relay, "DEFAULT_RELAY", relay_world.address(server))
        monkeypatch.setattr(relays, "DEFAULT_RELAY", relay_world.address(server))

        def connections() -> float:
            text = httpx.get(server.url + "/metrics").text
            return sum(
                float(line.split()[1])
                for line in text.splitlines()
                if "connections_opened_total " in line and "#" not in line
            )

        (found,) = doctor_relay.relay(None, 10)
        assert (found.status, connections()) == ("skipped", 0)
        (found,) = doctor_relay.relay(None, 10, public=True)
        assert (found.status, connections()) == ("ok", 1)
    (found,) = doctor_relay.relay(None, 10, public=True)
    assert found.status == "problem"


def test_no_relay_is_named(front_end: FrontEnd) -> None:
    front_end.make()
    found = front_end.doctor(AMESH_RELAY_URL="")
    assert found.status("relay") == "skipped" and "--public-relay" in found.text("relay")


def test_without_websockets_the_relay_is_not_asked(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path)
    front_end.make()
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys; sys.modules['websockets'] = None\n")
    paths = os.pathsep.join([str(blocked), front_end.env["PYTHONPATH"]])
    found = front_end.doctor("--relay", "ws://127.0.0.1:1/ws", PYTHONPATH=paths)
    assert found.code == 0 and found.status("relay") == "skipped"
    assert "amesh-django[cli]" in found.text("relay")


# --- at a terminal ----------------------------------------------------------------------------------------------------


def test_ctrl_c_while_it_waits(front_end: FrontEnd) -> None:
    front_end.make()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with terminal(front_end.argv("doctor", url, "--no-relay", "--timeout", "600"), front_end.env) as person:
            person.expect("allow-list")
            silent.settimeout(30)
            connection, _ = silent.accept()
            person.type("\x03")
            assert person.end() == 130
            connection.close()
            assert "Interrupted" in person.shown and "Traceback" not in person.shown


def test_lines_on_a_terminal(front_end: FrontEnd) -> None:
    front_end.make()
    (front_end.path / ".passphrase").chmod(0o644)
    with terminal(front_end.argv("doctor", "--no-relay"), front_end.env) as person:
        assert person.end() == 0
    assert "  ok       directory      " in person.shown and "  warning  permissions    " in person.shown
    assert "\n           -> Make it private: chmod 400" in person.shown and "\x1b[" in person.raw


# --- one check is not in the way of the next ---------------------------------------------------------------------------


class Quiet(Console):
    def write_line(self, text: str, tone: Tone = "plain", *, indent: str = "", err: bool, end: str = "\n") -> None:
        pass

    def write_data(self, data: bytes) -> None:
        pass


def test_each_check_stands_alone() -> None:
    examination = Examination(
        Quiet(), translate=lambda error: KeyStoreError("Known.", hint="Do this.") if error.args == (1,) else None
    )

    def broken(error: BaseException) -> object:
        raise error

    for number, error in enumerate([ValueError(1), ValueError("\x1b[2Jodd"), OSError(13, "Permission denied", "/x")]):
        assert not examination.look(f"c{number}", lambda error=error: broken(error))  # type: ignore[arg-type, misc]
    assert examination.look("fine", lambda: [Finding("fine", "ok", "yes")])
    known, odd, closed, fine = examination.findings
    assert (known.message, known.hint) == ("Known.", "Do this.")
    assert "ValueError: odd" in odd.message and "Report" in odd.hint
    assert closed.message == "/x: Permission denied." and fine.status == "ok"
    assert not Finding.of_error("x", KeyStoreError("One. Two.")).hint, "no text is cut apart"


def test_what_hangs_is_left_behind() -> None:
    examination = Examination(Quiet())
    never = threading.Event()

    def hang() -> list[Finding]:
        never.wait()
        return []

    assert not examination.look("a", hang, of="database", seconds=0.05)
    assert not examination.look("b", hang, of="database", seconds=600)
    assert examination.look("c", lambda: [Finding("c", "ok", "")], of="cache")
    assert [found.status for found in examination.findings] == ["problem", "skipped", "ok"]
    with pytest.raises(CheckTimedOut):
        bounded(hang, 0.05)
    never.set()

"""The `amesh` command: through its real parser, and as a process."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.commands import init as init_command
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.keystore import BACKENDS
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.header import parse_authorization
from tests.support import fork_server
from tests.support.front_ends import HOSTILE, HOSTILE_SHOWN, Result, answering, id_of, invoke, line_of
from tests.support.services import ROOT

AMESH = [sys.executable, "-m", "authmesh"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a device that accepts one controller."""
    path = tmp_path / "amesh"
    EphemeralDevice("server").write(path)
    monkeypatch.setenv("AUTH_MESH_DIR", str(path))
    return path


def call(*words: str | Path, given: str | bytes = "") -> Result:
    return invoke(words, given)


def process(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [*AMESH, *map(str, words)]
    return fork_server.run(argv, env={**os.environ, **(env or {})})


def trusted(directory: Path) -> dict[str, DeviceEntry]:
    return {entry.device_id: entry for entry in FileAllowList(LocalDevice(directory)).read()}


def allow(directory: Path, device: EphemeralDevice, role: Any = "controller", **more: Any) -> str:
    FileAllowList(LocalDevice(directory)).add(device.entry(role, **more))
    return id_of(device)


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_makes_an_identity_and_says_all_about_it(tmp_path: Path) -> None:
    done = call("--dir", tmp_path / "new", "init", "--name", "laptop", "--max-controllers", "3")
    assert done.exit_code == 0, done.output
    identity = read_identity(tmp_path / "new")
    for text in (
        "amesh export-key",
        "amesh trust LINE --role controller",
        "the management command amesh_trust",
        identity.device_id,
        "laptop",
        "Warning: The key is protected by software only.",
        "amesh listen",
        "amesh invite CODE",
        str(tmp_path / "new"),
    ):
        assert text in done.stdout
    assert identity.max_controllers == 3
    assert not done.stderr


def test_init_begins_with_the_place_of_the_key_and_explains_it_if_asked(tmp_path: Path) -> None:
    done = call("--dir", tmp_path / "one", "init", "--name", "laptop")
    first = "The key goes into an encrypted file in the device directory (encrypted-file)"
    assert done.stdout.startswith(f"{first}, the best place on this machine. --explain shows what was tried.\n")
    assert "secure-enclave" not in done.stdout
    done = call("--dir", tmp_path / "two", "init", "--name", "laptop", "--explain")
    shown = done.stdout.splitlines()
    assert shown[:2] == ["Looking for the best place for the key", "  secure-enclave  no: It needs macOS."]
    assert "  encrypted-file  yes" in shown and f"{first}." in shown
    done = call("--dir", tmp_path / "three", "init", "--name", "laptop", "--backend", "encrypted-file")
    assert done.stdout.startswith(f"{first}, as --backend or the option for a PIN says.\n")


def test_every_back_end_has_its_place_in_words() -> None:
    assert set(init_command._PLACES) == set(BACKENDS)


def test_init_shows_no_secret(tmp_path: Path) -> None:
    done = call("--dir", tmp_path / "new", "init", "--name", "laptop")
    listed = call("--dir", tmp_path / "new", "list", "--json")
    passphrase = (tmp_path / "new" / ".passphrase").read_text()
    assert passphrase not in done.output + listed.output


def test_a_passphrase_in_an_old_identity_is_not_listed(directory: Path) -> None:
    file = directory / "identity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "passphrase": "in an old file"}))
    done = call("list", "--json")
    assert done.exit_code == 0
    assert "in an old file" not in done.output


def test_init_does_not_overwrite(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    done = call("init", "--name", "other")
    assert done.exit_code == 1
    assert "--force" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_init_with_force_says_what_it_replaced(directory: Path) -> None:
    allow(directory, EphemeralDevice())
    old = read_identity(directory).device_id
    done = call("init", "--name", "other", "--force", "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["replaced"] == old
    assert read_identity(directory).device_id == json.loads(done.stdout)["deviceId"] != old
    assert not trusted(directory)
    assert (directory / f"allow_list.{old}.json").exists()


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["--name", ""], 1, "--name"),
        (["--name", "x\x1b[31m"], 1, "printable"),
        (["--name", "x", "--backend", "floppy"], 2, "encrypted-file"),
        (["--name", "x", "--backend", "keychain"], 1, "needs macOS"),
        (["--name", "x", "--max-controllers", "0"], 1, "greater than or equal to 1"),
        (["--name", "x", "--max-controllers", "many"], 2, "invalid int value"),
        ([], 2, "--name"),
    ],
)
def test_init_refuses(tmp_path: Path, words: list[str], exit_code: int, text: str) -> None:
    done = call("--dir", tmp_path / "new", "init", *words)
    assert done.exit_code == exit_code
    assert text in done.stderr
    assert not (tmp_path / "new" / "identity.json").exists()


def test_init_in_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("--dir", tmp_path / "file" / "new", "init", "--name", "x")
    assert done.exit_code == 1
    assert "(AMESH_DIR or AUTH_MESH_DIR)" in done.stderr


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_without_identity_says_what_to_do(tmp_path: Path) -> None:
    done = call("--dir", tmp_path, "list")
    assert done.exit_code == 1
    assert "amesh init --name NAME" in done.stderr


def test_two_variables_for_the_directory_must_agree(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    EphemeralDevice("newer").write(other)
    for words in (["list"], ["list", "--json"]):
        done = invoke(words, AMESH_DIR=str(other))
        assert (done.exit_code, done.stdout) == (1, "")
        assert "The variables AMESH_DIR and AUTH_MESH_DIR are both set, and differ." in done.stderr
    assert "newer" in invoke(["list"], AMESH_DIR=str(other), AUTH_MESH_DIR=str(other)).stdout
    assert "newer" in invoke(["list"], AMESH_DIR=str(other), AUTH_MESH_DIR="").stdout
    assert "newer" in invoke(["--dir", other, "list"], AMESH_DIR="elsewhere").stdout  # the option comes first


def test_list_of_nobody_says_what_to_do(directory: Path) -> None:
    done = call("list")
    assert done.exit_code == 0
    assert "No device is trusted yet" in done.stdout
    assert "amesh trust LINE --role controller" in done.stdout


def test_list_shows_devices_and_what_their_roles_mean(directory: Path) -> None:
    phone, target = EphemeralDevice("phone"), EphemeralDevice("target")
    allow(directory, phone, permissions={"shell": True, "deploy": True})
    allow(directory, target, "target")
    done = call("list")
    assert f"[controller]  {id_of(phone)}  phone" in done.stdout
    assert f"[target]      {id_of(target)}  target" in done.stdout
    assert "(manual), deploy, shell" in done.stdout
    assert "(manual), no shell" in done.stdout
    assert "[controller]  it may authenticate to this device" in done.stdout
    assert "[target]      this device may authenticate to it" in done.stdout
    assert "1 of 1 controllers" in done.stdout


def test_the_directory_may_be_named_on_either_side(directory: Path, tmp_path: Path) -> None:
    EphemeralDevice("elsewhere").write(tmp_path / "other")
    for words in (["--dir", tmp_path / "other", "list"], ["list", "--dir", tmp_path / "other"]):
        assert "elsewhere" in call(*words).stdout


def test_hostile_names_do_not_reach_the_terminal(directory: Path) -> None:
    device = EphemeralDevice(HOSTILE)
    allow(directory, device)
    for words in (["list"], ["grant", id_of(device), "--shell"], ["revoke", id_of(device), "--yes"]):
        done = call(*words)
        assert done.exit_code == 0, done.output
        assert HOSTILE_SHOWN in done.output
        assert not set("\x1b\x07\x9b\u202e") & set(done.output)
        assert "\nError: forged" not in done.output


def test_json_keeps_the_true_name_in_ascii(directory: Path) -> None:
    allow(directory, EphemeralDevice(HOSTILE))
    done = call("list", "--json")
    assert done.stdout.isascii()
    assert not set("\x1b\x07\x7f") & set(done.stdout)
    assert json.loads(done.stdout)["devices"][0]["friendlyName"] == HOSTILE


def test_a_broken_list_is_shown_to_nobody(directory: Path) -> None:
    allow(directory, EphemeralDevice("phone"))
    file = directory / "allow_list.json"
    file.write_text(file.read_text().replace("phone", "other"))
    for words in (["list"], ["trust", line_of(EphemeralDevice()), "--role", "target", "--yes"]):
        done = call(*words, "--json")
        assert (done.exit_code, done.stdout) == (1, "")
        assert json.loads(done.stderr)["error"] == "allow_list_integrity_failure"


def test_a_broken_list_without_a_backup_is_begun_again(directory: Path) -> None:
    device = EphemeralDevice("phone")
    allow(directory, device)
    file = directory / "allow_list.json"
    file.write_text(file.read_text().replace("phone", "other"))
    done = call("list")
    assert f"Restore {file} from a backup. If there is none, rename the file: the list is empty then." in done.stderr
    assert "trust it with amesh trust, after you have compared its device ID" in done.stderr
    assert call("sign-test").exit_code == 0  # requests that it sends need only its key
    file.rename(directory / "allow_list.rejected.json")
    assert call("trust", line_of(device), "--role", "controller", "--yes").exit_code == 0
    assert [known["deviceId"] for known in json.loads(call("list", "--json").stdout)["devices"]] == [id_of(device)]


def test_what_is_open_to_others_is_reported(directory: Path) -> None:
    directory.chmod(0o755)
    (directory / "identity.json").chmod(0o644)
    done = call("list")
    assert done.exit_code == 0
    assert f"Make it private: chmod 700 {directory}\n" in done.stderr
    assert f"chmod 600 {directory / 'identity.json'}" in done.stderr
    warnings = [json.loads(line)["warning"] for line in call("list", "--json").stderr.splitlines()]
    assert len(warnings) == len(set(warnings)) == 2


# --- export-key and trust ---------------------------------------------------------------------------------------------


def test_a_line_from_there_makes_trust_here(directory: Path, tmp_path: Path) -> None:
    EphemeralDevice("Ada's phone").write(tmp_path / "phone")
    exported = call("--dir", tmp_path / "phone", "export-key")
    assert exported.stdout.count("\n") == 1
    assert not exported.stderr
    identity = read_identity(tmp_path / "phone")
    done = call("trust", exported.stdout, "--role", "controller", given="y\n")
    assert done.exit_code == 0, done.output
    assert f"Device ID    {identity.device_id}\n" in done.stderr
    assert "Trust this device? [y/N]" in done.stderr
    entry = trusted(directory)[identity.device_id]
    assert (entry.friendly_name, entry.role, entry.added_by) == ("Ada's phone", "controller", "manual")
    assert dict(entry.permissions) == {}


@pytest.mark.parametrize("answer", ["\n", "n\n", "NO\n", "what\n\n"])
def test_trust_is_no_unless_it_is_yes(directory: Path, answer: str) -> None:
    done = call("trust", line_of(EphemeralDevice()), "--role", "controller", given=answer)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("Nothing was changed.\n")
    assert not (directory / "allow_list.json").exists()


@pytest.mark.parametrize("words", [["--no-input"], []])
def test_trust_that_nobody_answers_says_which_option_does(directory: Path, words: list[str]) -> None:
    done = call("trust", line_of(EphemeralDevice()), "--role", "controller", *words, given="")
    assert done.exit_code == 1
    assert "--yes" in done.stderr
    assert not trusted(directory)


def test_trust_reads_the_line_from_stdin(directory: Path) -> None:
    device = EphemeralDevice()
    line = line_of(device)
    done = call("trust", "-", "--role", "target", "--yes", given=f"{line[:40]}\n{line[40:]}\n")
    assert done.exit_code == 0, done.output
    assert trusted(directory)[id_of(device)].role == "target"


def test_two_lines_in_one_argument_are_two_devices(directory: Path) -> None:
    one, two = EphemeralDevice("one"), EphemeralDevice("two")
    done = call("trust", f"{line_of(one)}\n{line_of(two)}", "--role", "target", "--yes")
    assert done.exit_code == 0, done.output
    assert list(trusted(directory)) == [id_of(one), id_of(two)]
    done = call("trust", line_of(one) + line_of(two), "--role", "target", "--yes")
    assert "This is more than one line of export-key." in done.stderr


def test_trust_of_oneself_is_refused(directory: Path) -> None:
    done = call("trust", call("export-key").stdout, "--role", "controller", "--yes")
    assert done.exit_code == 1
    assert "this device itself" in done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["LINE", "--role", "friend"], 2, "controller"),
        (["LINE"], 2, "--role"),
        (["--role", "target"], 2, "LINE"),
        (["LINE", "--role", "target", "--shell"], 2, "--shell is for a controller"),
        (["nonsense", "--role", "target"], 1, "Nothing was changed. Run export-key"),
        (["LINE", "--role", "controller", "--replace", "am_nobody"], 1, "am_nobody"),
    ],
)
def test_trust_refuses(directory: Path, words: list[str], exit_code: int, text: str) -> None:
    line = line_of(EphemeralDevice())
    done = call("trust", *(line if word == "LINE" else word for word in words), "--no-input")
    assert done.exit_code == exit_code
    assert text in done.stderr


def test_a_hostile_line_is_stored_as_it_is_shown(directory: Path) -> None:
    device = EphemeralDevice(HOSTILE)
    done = call("trust", line_of(device), "--role", "controller", given="y\n")
    assert not set("\x1b\x07\x9b\u202e") & set(done.output)
    assert trusted(directory)[id_of(device)].friendly_name == HOSTILE_SHOWN


def test_a_known_device_is_refreshed_and_the_change_is_told(directory: Path) -> None:
    device = EphemeralDevice("old name")
    allow(directory, device, permissions={"shell": True})
    device = EphemeralDevice("new name", private_key=device._private_key)
    done = call("trust", line_of(device), "--role", "target", given="y\n")
    for text in ("already trusted", "old name -> new name", "controller -> target", "shell -> none"):
        assert text in done.stderr
    assert "Refreshed" in done.stdout
    assert [entry.role for entry in trusted(directory).values()] == ["target"]


def test_a_known_controller_needs_no_room(directory: Path) -> None:
    device = EphemeralDevice()
    allow(directory, device)
    done = call("trust", line_of(device), "--role", "controller", "--shell", "--yes", "--no-input")
    assert done.exit_code == 0, done.output
    assert trusted(directory)[id_of(device)].permissions == {"shell": True}


# --- no room for one more controller ----------------------------------------------------------------------------------


def test_one_controller_too_many_asks_and_the_default_is_no(directory: Path) -> None:
    old = allow(directory, EphemeralDevice("old"))
    new = EphemeralDevice("new")
    question = f"Revoke {old} (old) and trust this device in its place? [y/N]"
    done = call("trust", line_of(new), "--role", "controller", given="\n")
    assert done.exit_code == 1
    assert question in done.stderr
    assert list(trusted(directory)) == [old]
    assert call("trust", line_of(new), "--role", "controller", given="y\n").exit_code == 0
    assert list(trusted(directory)) == [id_of(new)]


@pytest.mark.parametrize("words", [["--no-input"], ["--no-input", "--yes"], ["--yes"]])
def test_yes_does_not_decide_who_is_replaced(directory: Path, words: list[str]) -> None:
    old = allow(directory, EphemeralDevice("old"))
    done = call("trust", line_of(EphemeralDevice()), "--role", "controller", *words, given="")
    assert done.exit_code == 1
    assert f"--replace {old}" in done.stderr
    assert list(trusted(directory)) == [old]


def test_replace_names_the_one_that_goes(directory: Path) -> None:
    old = allow(directory, EphemeralDevice("old"))
    new = EphemeralDevice("new")
    words = ["trust", line_of(new), "--role", "controller", "--replace", old]
    assert call(*words, "--no-input").exit_code == 1
    done = call(*words, "--yes", "--no-input", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["replaced"] == old
    assert list(trusted(directory)) == [id_of(new)]


@pytest.mark.parametrize(("answers", "goes"), [("\n", None), ("9\nx\n2\ny\n", 1), ("2\n\n", None), ("1\ny\n", 0)])
def test_of_several_controllers_one_is_chosen(tmp_path: Path, answers: str, goes: int | None) -> None:
    EphemeralDevice().write(tmp_path / "two", max_controllers=2)
    old = [allow(tmp_path / "two", EphemeralDevice(f"controller {n}")) for n in (1, 2)]
    new = EphemeralDevice()
    done = call("--dir", tmp_path / "two", "trust", line_of(new), "--role", "controller", given=answers)
    assert f"1)  {old[0]} (controller 1)" in done.stderr
    expected = set(old) if goes is None else {*old, id_of(new)} - {old[goes]}
    assert (set(trusted(tmp_path / "two")), done.exit_code) == (expected, 1 if goes is None else 0)


def test_more_controllers_than_the_limit_are_not_replaced_one_by_one(tmp_path: Path) -> None:
    device = EphemeralDevice()
    device.write(tmp_path, max_controllers=2)
    for _ in range(2):
        allow(tmp_path, EphemeralDevice())
    device.write(tmp_path, max_controllers=1)
    done = call("--dir", tmp_path, "trust", line_of(EphemeralDevice()), "--role", "controller", given="y\n")
    assert done.exit_code == 1
    assert "Revoke 2 of them first" in done.stderr


# --- revoke and grant -------------------------------------------------------------------------------------------------


def test_revoke_asks_and_the_default_is_no(directory: Path) -> None:
    device = allow(directory, EphemeralDevice("phone"))
    assert call("revoke", device, given="\n").exit_code == 1
    assert call("revoke", device, "--no-input").exit_code == 1
    assert list(trusted(directory)) == [device]
    done = call("revoke", device, given="y\n")
    assert done.exit_code == 0
    assert f"Revoke {device} (phone)? [y/N]" in done.stderr
    assert f"Revoked: {device} (phone)." in done.stdout
    assert not trusted(directory)


def test_revoke_of_a_stranger(directory: Path) -> None:
    done = call("revoke", "am_\x1b[31mx", "--yes")
    assert done.exit_code == 1
    assert "run amesh list" in done.stderr
    assert "\x1b" not in done.output


def test_grant_and_withdraw(directory: Path) -> None:
    device = allow(directory, EphemeralDevice(), permissions={"deploy": True})
    assert "may open a shell" in call("grant", device, "--shell").stdout
    assert trusted(directory)[device].permissions == {"deploy": True, "shell": True}
    assert "as before" in call("grant", device, "--shell").stdout
    assert "may not open a shell" in call("grant", device, "--no-shell").stdout
    assert trusted(directory)[device].permissions == {"deploy": True}


def test_grant_needs_to_know_what(directory: Path) -> None:
    device = allow(directory, EphemeralDevice(), "target")
    assert call("grant", device).exit_code == 2
    done = call("grant", device, "--shell")
    assert done.exit_code == 1
    assert "is a target" in done.stderr


# --- sign-test, header, fetch -----------------------------------------------------------------------------------------


def test_sign_test_signs_and_verifies(directory: Path) -> None:
    done = call("sign-test", "--json")
    assert json.loads(done.stdout)["verified"] is True
    assert "the signature verifies" in call("sign-test").stdout


def test_sign_test_with_a_wrong_passphrase(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MESH_PASSPHRASE", "a wrong secret")
    done = call("sign-test", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stderr)["error"] == "wrong_passphrase"
    assert "a wrong secret" not in done.output


def test_header_prints_a_header(directory: Path) -> None:
    done = call("header", "GET", "https://example.org/x?b=1&a=2", "-d", "body")
    name, _, value = done.stdout.rstrip("\n").partition(": ")
    assert name == "Authorization"
    assert parse_authorization(value).v == "1"
    assert json.loads(call("header", "GET", "/x", "--json").stdout)["value"].startswith("AuthMesh ")


@pytest.mark.parametrize("url", ["http://a:b:c/", "http://\x00/"])
def test_header_of_no_url(directory: Path, url: str) -> None:
    done = call("header", "GET", url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "not a URL" in done.stderr


def test_fetch_signs_and_prints_every_byte(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\x00\xff\n")
    with answering() as server:
        server.body = bytes(range(256))
        done = call("fetch", server.url, "-X", "PUT", "-d", f"@{tmp_path / 'body'}", "-H", "X-One: two: three", "-i")
        assert done.exit_code == 0, done.output
        assert done.stdout_bytes == server.body
        assert (server.method, server.received) == ("PUT", b"\x00\xff\n")
        assert server.headers["authorization"].startswith('AuthMesh v="1"')
        assert server.headers["x-one"] == "two: three"
        assert "HTTP/1.0 200 OK" in done.stderr
        call("fetch", server.url, "-d", "@-", given=b"from stdin")
        assert (server.method, server.received) == ("POST", b"from stdin")
        assert server.headers["content-type"] == "application/x-www-form-urlencoded"


def test_fetch_of_an_error_fails_only_if_told_to(directory: Path) -> None:
    with answering() as server:
        server.status, server.body = 401, b'{"error": "unauthorized"}'
        assert call("fetch", server.url).exit_code == 0
        done = call("fetch", server.url, "--fail")
        assert (done.exit_code, done.stdout_bytes) == (22, server.body)  # the exit code of curl
        assert "answered with the status 401. The server rejects this device" in done.stderr
        done = call("fetch", server.url, "--json", "--fail")
        assert (done.exit_code, json.loads(done.stdout)["status"]) == (22, 401)
        assert json.loads(done.stderr)["error"] == "bad_status"


def test_fetch_says_where_a_redirect_leads_and_signs_it_only_within_the_origin(directory: Path) -> None:
    with answering() as server, answering() as other:
        root, elsewhere = server.url.partition("/path")[0], other.url
        server.redirects = {"/near": "/path?b=2&a=1", "/far": elsewhere.replace("http://", "http://user:geheim@")}
        found = json.loads(call("fetch", f"{root}/near", "--json").stdout)
        assert (found["status"], found["redirectsTo"]) == (302, server.url)
        assert "To follow the redirect with a new signature, use -L." in found["meaning"]
        first = server.headers["authorization"]
        found = json.loads(call("fetch", f"{root}/near", "-L", "--json").stdout)
        assert (found["status"], found["url"], found["redirectsTo"]) == (200, server.url, None)
        assert server.headers["authorization"].startswith("AuthMesh ") and server.headers["authorization"] != first
        done = call("fetch", f"{root}/far", "-d", "x", "--json")
        assert (
            json.loads(done.stdout)["redirectsTo"] == elsewhere and "geheim" not in json.loads(done.stdout)["meaning"]
        )
        assert f"run amesh fetch '{elsewhere}'. " in json.loads(done.stdout)["meaning"] + " "
        assert "The POST becomes a GET without a body." in json.loads(done.stdout)["meaning"]
        assert not other.asked.is_set()
        other.status = 401
        done = call("fetch", f"{root}/far", "-L", "--fail")
        assert done.exit_code == 22
        assert "had no signature, because a redirect led it to another origin" in done.stderr
        assert "authorization" not in other.headers or "AuthMesh" not in other.headers["authorization"]


@pytest.mark.parametrize(
    ("status", "body", "texts"),
    [
        (401, b'{"error": "unauthorized"}', ["The server rejects this device", "run amesh doctor http://127.0.0.1:"]),
        (401, b'{"error": "timestamp_out_of_range"}', ["clocks differ", "NTP", "run amesh doctor http://127.0.0.1:"]),
        (401, b"<html>", ["asks for credentials, but not for those of amesh", "run amesh doctor http://127.0.0.1:"]),
        (403, b'{"detail": "no"}', ["did not reject the signature"]),
        (413, b'{"error": "payload_too_large"}', ["exceeds the size limit"]),
    ],
)
def test_fetch_explains_a_rejection(directory: Path, status: int, body: bytes, texts: list[str]) -> None:
    with answering() as server:
        server.status, server.body = status, body
        meaning = json.loads(call("fetch", server.url, "--json").stdout)["meaning"]
        assert all(text in meaning for text in texts), meaning
        assert not call("fetch", server.url).stderr  # not a terminal: as quiet as curl


def test_fetch_does_not_explain_the_answer_of_a_view(directory: Path) -> None:
    with answering() as server:
        server.status = 404
        assert json.loads(call("fetch", server.url, "--json").stdout)["meaning"] is None


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["http://127.0.0.1:1/"], 1, "Nothing listens at 127.0.0.1, port 1. No request was sent."),
        (["ftp://127.0.0.1/"], 1, "http://"),
        (["/path"], 1, "http://"),
        (["http://a:b:c/"], 1, "http://"),
        (["http://127.0.0.1:1/", "-H", "no header"], 2, "Name: value"),
        (["http://127.0.0.1:1/", "-H", "authorization: x"], 2, "Omit -H"),
        (["http://127.0.0.1:1/", "-H", "X: a\nb"], 2, "Name: value"),
        (["http://127.0.0.1:1/", "-H", "X: ö"], 2, "printable ASCII"),
        (["http://127.0.0.1:1/", "-X", "GÉT"], 2, "HTTP method"),
        (["http://127.0.0.1:1/\udcff"], 1, "cannot be sent"),
        (
            ["http://127.0.0.1:1/", "-d", "@/nowhere/at/all"],
            1,
            "/nowhere/at/all: No such file or directory. No request",
        ),
        (["http://127.0.0.1:1/", "--timeout", "soon"], 2, "float"),
        *((["http://127.0.0.1:1/", f"--timeout={n}"], 2, "greater than 0") for n in ("0", "-1", "nan", "inf", "1e30")),
    ],
)
def test_fetch_refuses(directory: Path, words: list[str], exit_code: int, text: str) -> None:
    done = call("fetch", *words)
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert text in done.stderr


@pytest.mark.parametrize("url", ["/path", "ftp://127.0.0.1/", "http://127.0.0.1:1/", "http://a:b:c/"])
def test_the_text_of_a_library_ends_with_one_full_stop(directory: Path, url: str) -> None:
    for words in (["fetch", url], ["header", "GET", url]):
        assert ".." not in call(*words).stderr


def test_fetch_shows_no_password_of_a_url(directory: Path) -> None:
    assert "geheim" not in call("fetch", "http://user:geheim@127.0.0.1:1/").output


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_every_command_prints_one_json_document(directory: Path) -> None:
    device = EphemeralDevice()
    with answering() as server:
        for words in (
            ["list"],
            ["export-key"],
            ["trust", line_of(device), "--role", "controller", "--yes"],
            ["grant", id_of(device), "--shell"],
            ["revoke", id_of(device), "--yes"],
            ["sign-test"],
            ["fetch", server.url],
            ["header", "GET", "/"],
            ["init", "--name", "x", "--force", "--yes"],
        ):
            done = process(*words, "--json")
            assert (done.returncode, done.stderr) == (0, ""), done
            assert isinstance(json.loads(done.stdout), dict)


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code"),
    [(["list", "--jsno"], None), (["revoke"], "usage"), (["grant", "x"], "usage"), (["nothing"], "usage")],
)
def test_wrong_usage_ends_with_2(directory: Path, words: list[str], code: str | None) -> None:
    done = process(*words, *(["--json"] if code else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"] == code if code else "usage:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], ["trust", "-h"]])
def test_help_and_version_end_with_0(words: list[str]) -> None:
    done = process(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "amesh" in done.stdout


@pytest.mark.process
def test_without_a_terminal_nothing_is_styled(directory: Path) -> None:
    assert "\x1b" not in process("list", env={"TERM": "xterm-256color"}).stdout


@pytest.mark.process
def test_an_id_is_never_broken_into_two_lines(directory: Path) -> None:
    done = process("list", env={"COLUMNS": "20"})
    assert read_identity(directory).device_id in done.stdout.split()


@pytest.mark.process
def test_characters_that_the_terminal_lacks_do_not_end_the_command(directory: Path) -> None:
    allow(directory, EphemeralDevice("größer"))
    done = process("list", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfer" in done.stdout


@pytest.mark.process
def test_a_reader_that_stops_causes_no_message(directory: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*AMESH, "list"], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.process
def test_files_are_private_under_any_umask(tmp_path: Path) -> None:
    subprocess.run(
        [*AMESH, "--dir", tmp_path / "new", "init", "--name", "x"], umask=0, check=True, capture_output=True, cwd=ROOT
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert not [name for name, mode in modes.items() if mode & 0o077]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.process
def test_the_command_line_never_imports_django(directory: Path) -> None:
    code = "import sys; from authmesh.commands.app import run; run(['list']); sys.exit('django' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_a_missing_library_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['rich'] = None; from authmesh.commands.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "The amesh command needs the package rich. Install it with pip install 'amesh-django[cli]'.\n"


@pytest.mark.process
def test_without_a_command_the_help_is_shown() -> None:
    done = process()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: amesh" in done.stderr and "sign-test" in done.stderr


@pytest.mark.process
def test_an_option_is_not_shortened(directory: Path) -> None:
    done = process("trust", line_of(EphemeralDevice()), "--rol", "target", "--yes")
    assert done.returncode == 2
    assert not trusted(directory)


@pytest.mark.process
def test_wrong_usage_names_the_command(directory: Path) -> None:
    done = process("list", "--jsno")
    assert "usage: amesh list" in done.stderr
    assert "amesh list: error: unrecognized arguments: --jsno" in done.stderr

"""Devices with a key in a TPM, from `init` to signed requests: both front ends, both lists, PINs, and the files on disk."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.client import AmeshAuth
from authmesh.device import FileAllowList, LocalDevice, permission_problems, read_identity
from authmesh.keystore.tpm.store import TpmKeyStore
from authmesh.protocol import verify_signature
from authmesh.protocol.errors import (
    AllowListIntegrityFailure,
    IdentityExists,
    KeyStoreError,
    PinRequired,
    StorageError,
    WrongPin,
)
from authmesh.protocol.key_line import build_key_line
from tests.keystore.tpms import Swtpm, forget, running_swtpm
from tests.support import cheap_keys, databases, services
from tests.support.directories import contents, make, mode
from tests.support.services import ROOT
from tests.support.terminal import terminal

# The demo makes and uses keys in a TPM with each pair of versions.
pytestmark = [pytest.mark.process, pytest.mark.unversioned]

PIN = "correct horse"
PIN_QUESTION = "PIN of this device's key: "


@pytest.fixture(scope="module")
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.write_text(f"{PIN}\n")
    path.chmod(0o400)
    return path


class FrontEnd:
    """One of the two front ends, with a new directory and the TPM in its environment."""

    def __init__(self, django: bool, env: dict[str, str]) -> None:
        self.django = django
        self.env = env
        self.path = Path(env["AUTH_MESH_DIR"])

    def argv(self, name: str, *words: str | Path) -> list[str]:
        return cheap_keys.argv(self.django, name, *words)

    def run(self, name: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(name, *words), env={**self.env, **env}, capture_output=True, text=True, input="", cwd=ROOT
        )

    def done(self, name: str, *words: str | Path, **env: str) -> str:
        finished = self.run(name, *words, **env)
        assert finished.returncode == 0 and "Traceback" not in finished.stderr, finished.stderr
        return finished.stdout


@pytest.fixture(params=["amesh", "manage.py"])
def front_end(request: pytest.FixtureRequest, swtpm: Swtpm, tmp_path: Path) -> FrontEnd:
    env = {**os.environ, **swtpm.environ, "AUTH_MESH_DIR": str(tmp_path / "amesh")}
    env["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    if request.param == "manage.py":
        env |= databases.environment(request.getfixturevalue("sqlite_database"))
    return FrontEnd(request.param == "manage.py", env)


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_takes_the_tpm_by_itself(front_end: FrontEnd, swtpm: Swtpm) -> None:
    shown = front_end.done("init", "--name", "laptop", "--explain")
    identity = read_identity(front_end.path)
    assert identity.storage_backend == "tpm2" and identity.key_alias == identity.device_id
    for text in (
        "secure-enclave  no: It needs macOS.",
        "tpm2            yes",
        "The key goes into the TPM 2.0 of this machine (tpm2).",
        "Backend      tpm2\n",
        "protected by hardware",
    ):
        assert text in shown
    assert "encrypted-file" not in shown
    key_file = f"keys/{identity.device_id}.tpm"
    assert set(contents(front_end.path)) == {"identity.json", key_file}
    assert mode(front_end.path / key_file) == 0o600
    assert permission_problems(front_end.path) == []
    assert "signature verifies" in front_end.done("sign-test")
    assert swtpm.loaded() == []


def test_a_list_under_a_seal_of_the_tpm(front_end: FrontEnd) -> None:
    """The list in the file and the list in the database: trusted, listed and changed, each in a process of its own."""
    front_end.done("init", "--name", "server", "--max-controllers", "3")
    device = EphemeralDevice("phone")
    line = build_key_line(device.identity.public_key, "phone")
    front_end.done("trust", line, "--role", "controller", "--yes")
    assert device.identity.device_id in front_end.done("list")
    assert "phone" in front_end.done("list")
    if not front_end.django:
        path = front_end.path / "allow_list.json"
        path.write_text(path.read_text().replace("phone", "drone"))
        done = front_end.run("list")
        assert done.returncode == 1 and "seal" in done.stderr


def test_each_back_end_can_be_asked_for(front_end: FrontEnd) -> None:
    front_end.done("init", "--name", "one", "--backend", "encrypted-file")
    assert read_identity(front_end.path).storage_backend == "encrypted-file"
    old = next((front_end.path / "keys").iterdir())
    front_end.done("init", "--name", "two", "--backend", "tpm2", "--force", "--yes")
    assert read_identity(front_end.path).storage_backend == "tpm2"
    assert not old.exists()
    blob = next((front_end.path / "keys").iterdir())
    front_end.done("init", "--name", "three", "--backend", "tpm2", "--force", "--yes")
    assert not blob.exists()
    blob = next((front_end.path / "keys").iterdir())
    front_end.done("init", "--name", "four", "--backend", "encrypted-file", "--force", "--yes")
    assert not blob.exists()
    assert "signature verifies" in front_end.done("sign-test")


def test_json_says_where_the_key_is(front_end: FrontEnd) -> None:
    found = json.loads(front_end.done("init", "--name", "laptop", "--json"))
    assert found["storageBackend"] == "tpm2" and found["pin"] is False
    assert {"backend": "tpm2", "usable": True, "reason": None} in found["tried"]
    assert "hardware" in found["protection"]


def test_without_a_tpm_init_says_why_and_goes_on(front_end: FrontEnd) -> None:
    shown = front_end.done("init", "--name", "laptop", "--explain", AMESH_TPM_TCTI="device:/dev/no-tpm")
    assert "tpm2            no: No TPM 2.0 was found: /dev/no-tpm is missing" in shown
    assert "encrypted-file  yes" in shown
    done = front_end.run(
        "init", "--name", "x", "--force", "--yes", "--backend", "tpm2", AMESH_TPM_TCTI="device:/dev/no-tpm"
    )
    assert done.returncode == 1 and "/dev/no-tpm is missing" in done.stderr
    assert read_identity(front_end.path).storage_backend == "encrypted-file"


def test_an_identity_without_its_tpm(front_end: FrontEnd) -> None:
    front_end.done("init", "--name", "laptop")
    assert "amesh-key-v1." in front_end.done("export-key", AMESH_TPM_TCTI="device:/dev/no-tpm")
    done = front_end.run("sign-test", AMESH_TPM_TCTI="device:/dev/no-tpm")
    assert done.returncode == 1
    assert "This key is in a TPM 2.0" in done.stderr and "/dev/no-tpm is missing" in done.stderr
    assert "--force" not in done.stderr and "Traceback" not in done.stderr


# --- PINs -------------------------------------------------------------------------------------------------------------


def test_a_pin_out_of_a_file(front_end: FrontEnd, pin_file: Path) -> None:
    shown = front_end.done("init", "--name", "laptop", "--tpm-pin-file", pin_file)
    assert "tpm2, with a PIN for each signature" in shown and PIN not in shown
    front_end.done("list")
    assert "signature verifies" in front_end.done("sign-test", AMESH_TPM_PIN_FILE=str(pin_file))
    done = front_end.run("sign-test")
    assert done.returncode == 1 and "AMESH_TPM_PIN_FILE" in done.stderr
    pin_file.chmod(0o644)
    done = front_end.run("sign-test", AMESH_TPM_PIN_FILE=str(pin_file))
    assert f"{pin_file} is accessible to other users (mode 644). Make it private: chmod 400" in done.stderr
    pin_file.write_text("another\n")
    done = front_end.run("sign-test", AMESH_TPM_PIN_FILE=str(pin_file))
    assert done.returncode == 1 and "The TPM rejected the PIN" in done.stderr
    pin_file.write_text("")
    done = front_end.run("sign-test", AMESH_TPM_PIN_FILE=str(pin_file))
    assert done.returncode == 1 and "is empty" in done.stderr
    assert PIN not in "".join(text.decode(errors="replace") for text in contents(front_end.path).values())


def test_a_pin_is_typed_twice_and_never_shown(front_end: FrontEnd) -> None:
    with terminal(front_end.argv("init", "--name", "laptop", "--tpm-pin"), front_end.env) as person:
        person.expect("PIN for the new key: ")
        person.type(f"{PIN}\n")
        person.expect("The same PIN for the new key: ")
        person.type(f"{PIN}\n")
        person.expect("with a PIN for each signature")
        assert person.end() == 0
        assert PIN not in person.shown
    for typed, exit_code, text in ((PIN, 0, "signature verifies"), ("wrong", 1, "The TPM rejected the PIN")):
        with terminal(front_end.argv("sign-test"), front_end.env) as person:
            person.expect(PIN_QUESTION)
            person.type(f"{typed}\n")
            person.expect(text)
            assert person.end() == exit_code
            assert typed not in person.shown and person.shown.count("PIN of this") == 1


@pytest.mark.parametrize(
    ("keys", "exit_code", "text"),
    [
        (["one\n", "other\n"], 1, "two PINs differ"),
        (["\n"], 1, "was not answered"),
        (["\x04"], 1, "was not answered"),
        (["\x03"], 130, "Nothing was changed"),
        (["one\n", "\x03"], 130, "Nothing was changed"),
        (["x" * 33 + "\n"] * 2, 1, "1 to 32 bytes"),
    ],
)
def test_no_good_pin_makes_no_identity(front_end: FrontEnd, keys: list[str], exit_code: int, text: str) -> None:
    with terminal(front_end.argv("init", "--name", "laptop", "--tpm-pin"), front_end.env) as person:
        for key in keys:
            person.expect("for the new key: ")
            person.type(key)
        person.expect(text)
        assert person.end() == exit_code
        assert "Traceback" not in person.shown
    assert not (front_end.path / "identity.json").exists()
    assert not list(front_end.path.glob("keys/*"))


def test_a_pin_where_there_can_be_none(front_end: FrontEnd, pin_file: Path) -> None:
    words = ["init", "--name", "x", "--tpm-pin-file", pin_file]
    done = front_end.run(*words, "--backend", "encrypted-file")
    assert done.returncode == 2 and "Only a key in the TPM can have a PIN" in done.stderr
    done = front_end.run(*words, AMESH_TPM_TCTI="device:/dev/no-tpm")
    assert done.returncode == 1 and "/dev/no-tpm is missing" in done.stderr
    done = front_end.run("init", "--name", "x", "--tpm-pin")
    assert done.returncode == 1 and "--tpm-pin-file FILE" in done.stderr
    done = front_end.run("init", "--name", "x", "--tpm-pin-file", pin_file.parent / "none")
    assert done.returncode == 1 and "cannot be read" in done.stderr
    assert not (front_end.path / "identity.json").exists()
    front_end.done("init", "--name", "x")
    done = front_end.run("init", "--name", "x", "--tpm-pin")
    assert done.returncode == 1 and "There is already an identity" in done.stderr


# --- as a library -----------------------------------------------------------------------------------------------------


def test_a_device_in_a_tpm(swtpm: Swtpm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity = make(tmp_path, backend="tpm2", environ=swtpm.environ, pin=PIN)
    device = LocalDevice(tmp_path, environ=swtpm.environ)
    FileAllowList(device).add(EphemeralDevice("phone").entry())
    assert [entry.friendly_name for entry in FileAllowList(LocalDevice(tmp_path, environ=swtpm.environ)).read()] == [
        "phone"
    ]
    with pytest.raises(PinRequired, match="AMESH_TPM_PIN_FILE"):
        device.sign(b"m")
    device.ask_pin_by(lambda: "wrong")
    with pytest.raises(WrongPin):
        device.sign(b"m")
    device.ask_pin_by(lambda: PIN)
    assert verify_signature(identity.public_key, b"m", device.sign(b"m"))
    secret = device.seal_secret()
    for form in (PIN, secret.hex(), repr(secret)):
        assert form not in caplog.text
        assert form not in repr(device) + repr(device._keys) + repr(identity)


def test_a_list_of_another_device_is_not_taken(swtpm: Swtpm, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, backend="tpm2", environ=swtpm.environ)
        FileAllowList(LocalDevice(tmp_path / name, environ=swtpm.environ)).add(EphemeralDevice(name).entry())
    (tmp_path / "a" / "allow_list.json").replace(tmp_path / "b" / "allow_list.json")
    with pytest.raises(AllowListIntegrityFailure):
        FileAllowList(LocalDevice(tmp_path / "b", environ=swtpm.environ)).read()


def test_the_key_must_be_the_identity_s(swtpm: Swtpm, tmp_path: Path) -> None:
    identities = [make(tmp_path / name, backend="tpm2", environ=swtpm.environ) for name in ("a", "b")]
    (tmp_path / "b" / "keys" / f"{identities[1].device_id}.tpm").replace(
        tmp_path / "a" / "keys" / f"{identities[0].device_id}.tpm"
    )
    with pytest.raises(KeyStoreError, match="not the key in identity"):
        LocalDevice(tmp_path / "a", environ=swtpm.environ).sign(b"m")


def test_init_that_can_not_make_the_key_leaves_nothing(
    swtpm: Swtpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make(tmp_path, backend="tpm2", environ=swtpm.environ)
    before = contents(tmp_path)

    def broken(*words: Any, **more: Any) -> Any:
        raise KeyStoreError("the TPM went away")

    with monkeypatch.context() as patch:
        patch.setattr("authmesh.keystore.tpm.objects.make_key_file", broken)
        with pytest.raises(KeyStoreError, match="went away"):
            make(tmp_path, backend="tpm2", environ=swtpm.environ, force=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *words: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StorageError):
            make(tmp_path, backend="tpm2", environ=swtpm.environ, force=True)
    with pytest.raises(IdentityExists):
        make(tmp_path, backend="tpm2", environ=swtpm.environ)
    assert contents(tmp_path) == before
    assert LocalDevice(tmp_path, environ=swtpm.environ).identity == old
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_init_that_is_killed_by_ctrl_c_leaves_nothing(
    swtpm: Swtpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: TpmKeyStore, alias: str, message: bytes) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(TpmKeyStore, "sign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, backend="tpm2", environ=swtpm.environ)
    assert contents(tmp_path) == {}


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_signed_request_between_two_tpm_identities(swtpm: Swtpm, sqlite_database: Any, tmp_path: Path) -> None:
    """Server (two gunicorn workers, its list sealed by its TPM) and client each have their key in a TPM."""
    with running_swtpm() as laptop_tpm:
        server_env = {
            **swtpm.environ,
            "DJANGO_SETTINGS_MODULE": "tests.verification.wire_settings",
            "TEST_AMESH_DIR": str(tmp_path / "server"),
            **databases.environment(sqlite_database),
        }

        def manage(*words: str) -> str:
            return services.run([sys.executable, "-m", "django", *words], env=server_env)

        shown = manage("amesh_init", "--name", "server", "--max-controllers", "5")
        assert shown.startswith("The key goes into the TPM 2.0 of this machine (tpm2), the best place")
        make(tmp_path / "laptop", backend="tpm2", environ=laptop_tpm.environ)
        laptop = LocalDevice(tmp_path / "laptop", environ=laptop_tpm.environ)
        line = build_key_line(laptop.identity.public_key, "laptop")
        manage("amesh_trust", line, "--role", "controller", "--yes")
        with services.serve(services.gunicorn("tests.wsgi:application", 2), server_env) as server:
            url = f"{server.url}/drf"
            with httpx.Client(auth=AmeshAuth(laptop)) as client:
                for _ in range(10):
                    answer = client.get(url)
                    assert answer.status_code == 200, (answer.text, server.output())
            with httpx.Client(auth=AmeshAuth(EphemeralDevice("stranger"))) as client:
                assert client.get(url).status_code == 401
            manage("amesh_revoke", laptop.identity.device_id, "--yes")
            with httpx.Client(auth=AmeshAuth(laptop)) as client:
                assert client.get(url).status_code == 401

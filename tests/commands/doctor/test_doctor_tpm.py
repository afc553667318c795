"""`doctor` with a key in a TPM: running, stopped, with a PIN; and with a key that a bootstrap token created."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.pairing.bootstrap.staging import Staging, Trust
from authmesh.protocol.keys import verify_signature
from tests.commands.doctor.doctors import FrontEnd, told
from tests.keystore.tpms import Swtpm, forget, running_swtpm
from tests.support.directories import make, mode
from tests.support.terminal import terminal

# The demo makes and uses keys in a TPM with each pair of versions.
pytestmark = [pytest.mark.process, pytest.mark.unversioned]

PIN = "correct horse"


@pytest.fixture(scope="module")
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.fixture(params=["amesh", "manage.py"])
def front_end(request: pytest.FixtureRequest, swtpm: Swtpm, tmp_path: Path) -> FrontEnd:
    database = request.getfixturevalue("sqlite_database") if request.param == "manage.py" else None
    found = FrontEnd(tmp_path, database)
    found.env |= swtpm.environ
    return found


def test_a_tpm_that_is_up_and_one_that_is_down(front_end: FrontEnd, swtpm: Swtpm) -> None:
    make(front_end.path, backend="tpm2", environ=swtpm.environ)
    forget(swtpm.tcti)
    found = front_end.doctor()
    assert found.code == 0, found
    assert swtpm.tcti in found.text("key-store") and "its key loads" in found.text("key-store")
    assert found.status("key") == found.status("allow-list") == "ok"
    assert "A new key would be stored in tpm2" in found.text("backends")
    assert swtpm.loaded() == []
    swtpm.stop(signal.SIGKILL)
    try:
        found = front_end.doctor()
        assert found.code == 1 and found.problems() == {"key-store"}, found
        assert swtpm.tcti in found.text("key-store") and "does not respond" in found.text("key-store")
        assert found.status("key") == found.status("allow-list") == "skipped"
        assert "A new key would be stored in encrypted-file" in found.text(
            "backends"
        ) and "tpm2 is not available: " in found.text("backends")
    finally:
        swtpm.start()
    assert front_end.doctor().code == 0


def test_a_key_of_another_tpm(front_end: FrontEnd) -> None:
    with running_swtpm() as other:
        make(front_end.path, backend="tpm2", environ=other.environ)
        found = front_end.doctor()
        assert found.problems() == {"key-store"} and "another TPM" in found.text("key-store")
    found = front_end.doctor(AMESH_TPM_TCTI="device:/dev/no-tpm")
    assert found.problems() == {"key-store"} and "/dev/no-tpm is missing" in found.text("key-store")


def test_a_key_with_a_pin(front_end: FrontEnd, swtpm: Swtpm, tmp_path: Path) -> None:
    make(front_end.path, backend="tpm2", environ=swtpm.environ, pin=PIN)
    forget(swtpm.tcti)
    found = front_end.doctor()
    assert found.code == 0 and found.status("key") == "warning" and "AMESH_TPM_PIN_FILE" in found.text("key")
    assert found.status("allow-list") == "ok"
    with told() as server:
        assert front_end.doctor(server.url).status("known") == "skipped"
    file = tmp_path / "pin"
    file.write_text(PIN)
    file.chmod(0o644)
    found = front_end.doctor(AMESH_TPM_PIN_FILE=str(file))
    assert found.status("key") == "ok" and f"chmod 400 {file}" in found.text("permissions")
    for typed, exit_code, text in (
        (PIN, 0, "ok       key "),
        ("wrong", 1, "rejected the PIN"),
        ("\x03", 130, "Nothing"),
    ):
        with terminal(front_end.argv("doctor", "--no-relay"), front_end.env) as person:
            person.expect("PIN of this device's key: ")
            person.type(typed if typed == "\x03" else f"{typed}\n")
            person.expect(text)
            assert person.end() == exit_code
            assert PIN not in person.shown and "Traceback" not in person.shown


def test_init_force_reads_the_list_that_a_tpm_has_sealed(front_end: FrontEnd, swtpm: Swtpm) -> None:
    make(front_end.path, backend="tpm2", environ=swtpm.environ)
    forget(swtpm.tcti)
    server = front_end.trust(EphemeralDevice("backup"), "target")
    with terminal(front_end.argv("init", "--name", "new", "--force"), front_end.env) as person:
        assert server in person.expect("[y/N] ")
        person.type("y\n")
        assert person.end() == 0
    assert read_identity(front_end.path).storage_backend == "tpm2"
    assert len(list((front_end.path / "keys").iterdir())) == 1 and swtpm.loaded() == []


def test_a_key_that_was_made_aside_works_in_its_place(swtpm: Swtpm, tmp_path: Path) -> None:
    """A bootstrap token leads to the best key store, as init does, and its blob is moved."""
    environ = {**swtpm.environ, "AMESH_BOOTSTRAP_TOKEN": "not to be handed on"}
    path, controller = tmp_path / "amesh", EphemeralDevice("laptop").entry()
    path.mkdir(mode=0o700)
    staging = Staging(path, environ)
    aside = staging.device("edge")
    assert aside.identity.storage_backend == "tpm2"
    assert staging.device("edge").identity == aside.identity, "an attempt that was interrupted is taken up again"
    staging.record(controller)
    identity, stored = Staging(path, environ).settle(Trust())
    assert (identity, stored) == (aside.identity, controller) and not staging.path.exists()
    assert {file.name for file in path.iterdir()} >= {"identity.json", "keys", "allow_list.json"}
    assert not (path / ".passphrase").exists()
    blob = path / "keys" / f"{identity.key_alias}.tpm"
    assert [*blob.parent.iterdir()] == [blob] and mode(blob) == 0o600
    for _ in range(2):
        device = LocalDevice(path, environ=swtpm.environ)
        assert verify_signature(identity.public_key, b"m", device.sign(b"m"))
        assert [entry.public_key for entry in FileAllowList(device).read()] == [controller.public_key]
        forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_a_tpm_that_is_gone_in_the_middle_of_it(swtpm: Swtpm, tmp_path: Path) -> None:
    """The TPM is restarted after the answer and before the end: enrollment continues from there."""
    path, controller = tmp_path / "amesh", EphemeralDevice("laptop").entry()
    path.mkdir(mode=0o700)
    staging = Staging(path, {**os.environ, **swtpm.environ})
    made = staging.device("edge").identity
    staging.record(controller)
    with swtpm.down():
        forget(swtpm.tcti)
        with pytest.raises(Exception, match="TPM"):
            staging.settle(Trust())
        assert not (path / "identity.json").exists()
    forget(swtpm.tcti)
    assert staging.settle(Trust())[0] == made
    device = LocalDevice(path, environ=swtpm.environ)
    assert verify_signature(made.public_key, b"m", device.sign(b"m"))

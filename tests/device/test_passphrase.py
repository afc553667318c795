"""The passphrase: the order in which it is looked up, and the move out of identity.json."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path

import pytest

from amesh_django.test import EphemeralDevice
from amesh_django.test.devices import PASSPHRASE
from authmesh.device import LocalDevice, find_passphrase, init_device
from authmesh.device.passphrase import passphrase_source
from authmesh.protocol import verify_signature
from authmesh.protocol.errors import KeyStoreError, PassphraseRequired
from tests.support.directories import folder_of_nobody, give_to_nobody, legacy, mode, python


def test_the_order_in_which_it_is_looked_up(tmp_path: Path) -> None:
    legacy(tmp_path, "legacy")
    moved = tmp_path / "moved"
    environ = {"AUTH_MESH_PASSPHRASE": "variable", "AMESH_PASSPHRASE_FILE": str(moved)}
    moved.write_text("moved file\n")
    (tmp_path / ".passphrase").write_text(" file \n")
    assert find_passphrase(tmp_path, environ) == "variable"
    assert find_passphrase(tmp_path, {**environ, "AUTH_MESH_PASSPHRASE": ""}) == "moved file"
    assert find_passphrase(tmp_path, {}) == "file"
    (tmp_path / ".passphrase").unlink()
    assert find_passphrase(tmp_path, {}) == "legacy"


def test_an_old_passphrase_is_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = legacy(tmp_path)
    before = json.loads((tmp_path / "identity.json").read_text())
    assert verify_signature(device.identity.public_key, b"m", LocalDevice(tmp_path, environ={}).sign(b"m"))
    assert (tmp_path / ".passphrase").read_text() == PASSPHRASE
    assert (mode(tmp_path / ".passphrase"), mode(tmp_path / "identity.json")) == (0o400, 0o600)
    del before["passphrase"]
    assert (tmp_path / "identity.json").read_text() == json.dumps(before, indent=2)
    assert "was moved" in caplog.text
    assert PASSPHRASE not in caplog.text
    caplog.clear()
    assert LocalDevice(tmp_path, environ={}).sign(b"m")
    assert not caplog.records


def test_a_move_that_was_ended_half_way_is_finished(tmp_path: Path) -> None:
    legacy(tmp_path)
    (tmp_path / ".passphrase").write_text(PASSPHRASE)
    assert find_passphrase(tmp_path, {}) == PASSPHRASE
    assert "passphrase" not in json.loads((tmp_path / "identity.json").read_text())


def test_a_passphrase_that_a_file_can_not_hold_stays_where_it_is(tmp_path: Path) -> None:
    """The reference strips the white space around the contents of the file."""
    legacy(tmp_path, " spaced ")
    assert find_passphrase(tmp_path, {}) == find_passphrase(tmp_path, {}) == " spaced "
    assert not (tmp_path / ".passphrase").exists()


@pytest.mark.process
def test_a_move_that_can_not_be_is_no_reason_to_stop() -> None:
    """In a read-only folder, the passphrase is used where it is, with a warning that does not contain it."""
    with folder_of_nobody() as folder:
        legacy(folder)
        give_to_nobody(folder)
        folder.chmod(0o500)
        said = python(
            "import logging, sys; logging.basicConfig(stream=sys.stdout)\n"
            f"print(len(LocalDevice({str(folder)!r}, environ={{}}).sign(b'm')))",
            unprivileged=True,
        )
        assert "could not be moved" in said
        assert said.endswith("64\n")
        assert PASSPHRASE not in said
        assert "passphrase" in json.loads((folder / "identity.json").read_text())


def test_no_passphrase(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    file = tmp_path / ".passphrase"
    file.unlink()
    with pytest.raises(
        PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: .*Set AUTH_MESH_PASSPHRASE, or restore .*mode 0400"
    ):
        device.sign(b"m")
    for text in (b"", b" \n"):
        file.write_bytes(text)
        with pytest.raises(PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: .* is empty"):
            device.sign(b"m")
    file.write_bytes(b"\xff")
    with pytest.raises(
        PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: .* can't be read \(it is not UTF-8 text\)"
    ):
        device.sign(b"m")
    for none in ("", 5, None, ["x"]):
        legacy(tmp_path / "legacy", none)
        with pytest.raises(PassphraseRequired):
            find_passphrase(tmp_path / "legacy", {})
        (tmp_path / "legacy" / "identity.json").unlink()


def test_looking_for_a_passphrase_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PassphraseRequired):
        find_passphrase(tmp_path / "none" / "at all", {})
    assert os.listdir(tmp_path) == []
    with pytest.raises(PassphraseRequired):
        find_passphrase(tmp_path, {})
    assert os.listdir(tmp_path) == []


def test_the_passphrase_has_two_variables_that_must_agree(tmp_path: Path) -> None:
    one = {"AMESH_PASSPHRASE": "first secret"}
    both = {**one, "AUTH_MESH_PASSPHRASE": "second secret"}
    assert find_passphrase(tmp_path, one) == "first secret"
    assert passphrase_source(tmp_path, one) == "the variable AMESH_PASSPHRASE"
    assert find_passphrase(tmp_path, {**one, "AUTH_MESH_PASSPHRASE": ""}) == "first secret"
    assert find_passphrase(tmp_path, {**one, "AUTH_MESH_PASSPHRASE": "first secret"}) == "first secret"
    with pytest.raises(KeyStoreError, match="both set, and differ") as caught:
        find_passphrase(tmp_path, both)
    assert "secret" not in str(caught.value)
    with pytest.raises(KeyStoreError, match="both set, and differ"):
        init_device(tmp_path / "new", "laptop", now=dt.datetime.now(dt.UTC), environ=both)
    assert not list((tmp_path / "new" / "keys").glob("*"))

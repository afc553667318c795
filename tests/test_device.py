"""The device directory: made, opened, moved from older forms, damaged, full, and read-only."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amesh_django.device import (
    Device,
    FileAllowList,
    Identity,
    default_directory,
    find_passphrase,
    init_device,
    permission_problems,
    read_identity,
)
from amesh_django.device.storage import atomic_write, json_text, locked
from amesh_django.keystore import encrypted_file
from amesh_django.protocol import AmeshError, InvalidInput, KeyStoreError, b64decode, b64encode, verify_signature
from amesh_django.protocol.errors import (
    AllowListBusy,
    DirectoryError,
    IdentityExists,
    IdentityMissing,
    PassphraseRequired,
    StorageError,
    WrongPassphrase,
)
from amesh_django.test import EphemeralDevice
from amesh_django.test.devices import CHEAP_ARGON2, PASSPHRASE
from tests.services import ROOT

VECTORS = Path(__file__).parent / "vectors"
NOW = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
NOBODY = 65534


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """New key files open at once."""
    monkeypatch.setattr(encrypted_file.encrypt_key_file, "__defaults__", (CHEAP_ARGON2,))


def make(path: Path, **options: Any) -> Identity:
    return init_device(path, "laptop", **{"now": NOW, "environ": {}, **options})


def contents(path: Path) -> dict[str, bytes]:
    """Every file below, but the lock."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def python(code: str, *, unprivileged: bool = False) -> str:
    """What a piece of Python prints in a process of its own; without root's right to write everywhere, if asked."""
    drop = f"if os.geteuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    head = (
        "import os, datetime as dt; from pathlib import Path\n"
        "from amesh_django.device import *; from amesh_django.protocol import *; from amesh_django.device import storage\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + (drop if unprivileged else "") + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_to_nobody(path: Path) -> None:
    """Let the unprivileged user of :func:`python` own *path* and pass the folders above it."""
    if os.geteuid() == 0:
        for place in (path, *path.rglob("*")):
            os.chown(place, NOBODY, NOBODY)
        for above in path.parents:
            if not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_makes_what_the_protocol_says(tmp_path: Path) -> None:
    """With the real Argon2 parameters, once; nothing but what is written there, with the modes written there."""
    path = tmp_path / "a" / "amesh"
    reports: list[tuple[str, str | None]] = []
    identity = make(path, backend="encrypted-file", report=lambda *report: reports.append(report))
    assert reports == [("encrypted-file", None)]
    key_file = f"keys/{identity.device_id}.key.json"
    assert set(contents(path)) == {"identity.json", ".passphrase", key_file}
    assert {name: mode(path / name) for name in (".", "keys", "identity.json", ".passphrase", key_file)} == {
        ".": 0o700,
        "keys": 0o700,
        "identity.json": 0o600,
        ".passphrase": 0o400,
        key_file: 0o600,
    }
    assert permission_problems(path) == []
    text = (path / "identity.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2)
    assert list(json.loads(text).items()) == [
        ("version", "2.0.0"),
        ("deviceId", identity.device_id),
        ("keyAlias", identity.device_id),
        ("publicKey", b64encode(identity.public_key)),
        ("friendlyName", "laptop"),
        ("createdAt", "2026-03-28T10:05:00.000Z"),
        ("storageBackend", "encrypted-file"),
    ]
    passphrase = (path / ".passphrase").read_text()
    assert len(bytes.fromhex(passphrase)) == 32
    device = Device(path, environ={})
    assert device.identity == identity == read_identity(path)
    assert verify_signature(identity.public_key, b"m", device.sign(b"m"))


@pytest.mark.usefixtures("cheap")
class TestInit:
    def test_an_identity_is_not_overwritten(self, tmp_path: Path) -> None:
        make(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(IdentityExists, match="--force"):
            make(tmp_path)
        assert contents(tmp_path) == before

    def test_force_replaces_it_and_keeps_the_old_list(self, tmp_path: Path) -> None:
        old = make(tmp_path, max_controllers=2)
        FileAllowList(Device(tmp_path, environ={})).add(EphemeralDevice().entry())
        sealed = (tmp_path / "allow_list.json").read_bytes()
        new = make(tmp_path, force=True)
        assert new.device_id != old.device_id
        assert set(contents(tmp_path)) == {
            "identity.json",
            ".passphrase",
            f"keys/{new.device_id}.key.json",
            f"allow_list.{old.device_id}.json",
        }
        assert (tmp_path / f"allow_list.{old.device_id}.json").read_bytes() == sealed
        device = Device(tmp_path, environ={})
        assert FileAllowList(device).read() == []
        assert (old.controller_limit, device.identity.controller_limit) == (2, 1)

    @pytest.mark.parametrize("damage", ["{", '{"deviceId": "../../x", "keyAlias": "../x"}', None])
    def test_a_list_of_an_unknown_identity_does_not_stop_the_new_one(self, tmp_path: Path, damage: str | None) -> None:
        make(tmp_path)
        FileAllowList(Device(tmp_path, environ={})).add(EphemeralDevice().entry())
        if damage is None:
            (tmp_path / "identity.json").unlink()
        else:
            (tmp_path / "identity.json").write_text(damage)
        new = make(tmp_path, force=damage is not None)
        assert FileAllowList(Device(tmp_path, environ={})).read() == []
        assert (tmp_path / f"allow_list.before-{new.device_id}.json").exists()

    def test_an_old_alias_that_is_none_is_left_alone(self, tmp_path: Path) -> None:
        make(tmp_path)
        value = json.loads((tmp_path / "identity.json").read_text())
        (tmp_path / "identity.json").write_text(json.dumps({**value, "keyAlias": "../identity"}))
        new = make(tmp_path, force=True)
        assert read_identity(tmp_path) == new

    @pytest.mark.parametrize("name", ["", "  ", "x" * 129, "a\nb", "a\x1b[2J", "a\u202eb", "\ud800", "a\udcff"], ids=ascii)
    def test_a_name_that_could_not_be_shown(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidInput, match="--name"):
            init_device(tmp_path / "x", name, now=NOW, environ={})
        assert not (tmp_path / "x").exists()

    def test_names_and_limits(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="--max-controllers"):
            make(tmp_path, max_controllers=0)
        identity = init_device(tmp_path, "  Zoës 🜁 Läptop ", now=NOW, environ={}, max_controllers=3)
        assert identity.friendly_name == "Zoës 🜁 Läptop"
        assert "Zoës 🜁 Läptop" in (tmp_path / "identity.json").read_text("utf-8")
        assert json.loads((tmp_path / "identity.json").read_text("utf-8"))["maxControllers"] == 3
        assert read_identity(tmp_path).controller_limit == 3

    def test_a_passphrase_from_the_environment_does_not_touch_the_disk(self, tmp_path: Path) -> None:
        environ = {"AUTH_MESH_PASSPHRASE": "from outside"}
        make(tmp_path, environ=environ)
        assert not (tmp_path / ".passphrase").exists()
        assert Device(tmp_path, environ=environ).sign(b"m")
        with pytest.raises(PassphraseRequired):
            Device(tmp_path, environ={}).sign(b"m")

    def test_the_passphrase_file_can_live_elsewhere(self, tmp_path: Path) -> None:
        environ = {"AMESH_PASSPHRASE_FILE": str(tmp_path / "elsewhere")}
        make(tmp_path / "d", environ=environ)
        assert not (tmp_path / "d" / ".passphrase").exists()
        assert mode(tmp_path / "elsewhere") == 0o400
        assert Device(tmp_path / "d", environ=environ).sign(b"m")

    def test_an_empty_passphrase_file_is_not_used(self, tmp_path: Path) -> None:
        (tmp_path / ".passphrase").write_text("\n")
        with pytest.raises(PassphraseRequired, match="is empty"):
            make(tmp_path)
        assert set(contents(tmp_path)) == {".passphrase"}

    def test_nothing_half_made_stays_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever step fails, the directory is as before: empty, or with the old identity and its list."""
        empty, used = tmp_path / "empty", tmp_path / "used"
        make(used)
        FileAllowList(Device(used, environ={})).add(EphemeralDevice().entry())
        for path in (empty, used):
            path.mkdir(exist_ok=True)
            before = contents(path)
            for step in ("identity.json", ".key.json"):

                def failing(target: Path, text: str, step: str = step, **options: Any) -> None:
                    if target.name.endswith(step):
                        raise KeyboardInterrupt
                    atomic_write(target, text, **options)

                with monkeypatch.context() as patch:
                    patch.setattr("amesh_django.device.directory.atomic_write", failing)
                    patch.setattr("amesh_django.keystore.encrypted_file.atomic_write", failing)
                    with pytest.raises(KeyboardInterrupt):
                        make(path, force=True)
                assert contents(path) == before

    def test_ctrl_c_a_moment_too_late_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def late(target: Path, text: str, **options: Any) -> None:
            atomic_write(target, text, **options)
            if target.name == "identity.json":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("amesh_django.device.directory.atomic_write", late)
            make(tmp_path)
        assert Device(tmp_path, environ={}).sign(b"m")


def test_init_where_it_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="AUTH_MESH_DIR"):
        make(tmp_path / "file")
    with pytest.raises(StorageError, match="AUTH_MESH_DIR"):
        make(tmp_path / "file" / "below")


def test_init_in_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir(mode=0o500)
    open_to_nobody(folder)
    said = python(
        f"try: init_device(Path({str(folder)!r}), 'x', now=dt.datetime.now(dt.UTC), environ={{}})\n"
        "except AmeshError as error: print(type(error).__name__, error)",
        unprivileged=True,
    )
    assert said.startswith("StorageError ")
    assert "Check owner and permissions" in said.replace("\n", "")
    assert os.listdir(folder) == []


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_default_directory() -> None:
    assert default_directory({}) == Path.home() / ".amesh"
    assert default_directory({"AUTH_MESH_DIR": ""}) == Path.home() / ".amesh"
    assert default_directory({"AUTH_MESH_DIR": "~/x"}) == Path.home() / "x"


def test_no_identity(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(IdentityMissing, match="amesh init --name NAME"):
            Device(path, environ={})
    assert os.listdir(tmp_path) == ["file"]


GOOD = EphemeralDevice("good").identity.to_json()
DAMAGED: dict[str, Any] = {
    "empty": "",
    "not JSON": "{",
    "deep": "[" * 100_000,
    "a list": [],
    "null": None,
    "not UTF-8": b"\xff",
    "a member missing": {name: GOOD[name] for name in GOOD if name != "storageBackend"},
    "a name that is no text": {**GOOD, "friendlyName": 1},
    "another id": {**GOOD, "deviceId": "am_0000000000000000"},
    "a short key": {**GOOD, "publicKey": "AAAA"},
    "no limit": {**GOOD, "maxControllers": 0},
    "a limit in words": {**GOOD, "maxControllers": "two"},
    "a truth value": {**GOOD, "maxControllers": True},
}


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_identity(tmp_path: Path, value: Any) -> None:
    raw = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    (tmp_path / "identity.json").write_bytes(raw)
    with pytest.raises(DirectoryError, match="Restore it from a backup|Check owner and permissions") as caught:
        Device(tmp_path, environ={})
    assert "identity.json" in str(caught.value)


def test_an_identity_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(DirectoryError, match="can't be read"):
        Device(tmp_path, environ={})


def test_unknown_members_are_kept_but_the_passphrase_is_not_carried_along(tmp_path: Path) -> None:
    identity = Identity.from_text(json.dumps({**GOOD, "future": {"b": [1]}, "passphrase": "hush"}))
    assert identity.to_json() == {**GOOD, "future": {"b": [1]}}
    assert "hush" not in repr(identity)


def test_a_name_with_a_lone_surrogate_survives(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    text = json.dumps({**device.identity.to_json(), "friendlyName": "a\ud800b🜁"})
    (tmp_path / "identity.json").write_text(text)
    identity = read_identity(tmp_path)
    assert identity.friendly_name == "a\ud800b🜁"
    atomic_write(tmp_path / "identity.json", json_text(identity.to_json()))
    assert read_identity(tmp_path) == identity
    assert "a\\ud800b🜁" in (tmp_path / "identity.json").read_text("utf-8")


def test_a_key_that_is_not_the_identity_s(tmp_path: Path) -> None:
    mine, other = EphemeralDevice(), EphemeralDevice()
    mine.write(tmp_path)
    alias = mine.identity.key_alias
    other.write(tmp_path / "other")
    stolen = (tmp_path / "other" / "keys" / f"{other.identity.key_alias}.key.json").read_text()
    (tmp_path / "keys" / f"{alias}.key.json").write_text(stolen)
    device = Device(tmp_path, environ={})
    for use in (device.seal_secret, lambda: device.sign(b"m")):
        with pytest.raises(KeyStoreError, match="same backup"):
            use()


def test_an_alias_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path / "d")
    key_file = tmp_path / "d" / "keys" / f"{device.identity.key_alias}.key.json"
    key_file.rename(tmp_path / "d" / "out.key.json")
    (tmp_path / "d" / "identity.json").write_text(json.dumps({**device.identity.to_json(), "keyAlias": "../out"}))
    with pytest.raises(KeyStoreError, match="alias"):
        Device(tmp_path / "d", environ={}).sign(b"m")


def test_a_wrong_passphrase(tmp_path: Path) -> None:
    EphemeralDevice().write(tmp_path)
    with pytest.raises(WrongPassphrase):
        Device(tmp_path, environ={"AUTH_MESH_PASSPHRASE": "wrong one"}).sign(b"m")


def test_a_key_store_of_another_machine(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    for backend in ("secure-enclave", "floppy"):
        (tmp_path / "identity.json").write_text(json.dumps({**device.identity.to_json(), "storageBackend": backend}))
        if sys.platform != "darwin" or backend == "floppy":
            with pytest.raises(KeyStoreError):
                Device(tmp_path, environ={})


# --- what others can read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "to", "fix"),
    [
        (".", 0o755, "chmod 700"),
        ("keys", 0o710, "chmod 700"),
        ("identity.json", 0o644, "chmod 600"),
        ("allow_list.json", 0o620, "chmod 600"),
        (".passphrase", 0o440, "chmod 400"),
        ("keys/KEY", 0o604, "chmod 600"),
        ("elsewhere", 0o444, "chmod 400"),
    ],
)
def test_what_is_open_to_others_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, to: int, fix: str
) -> None:
    device = EphemeralDevice().write(tmp_path)
    FileAllowList(device).add(EphemeralDevice().entry())
    (tmp_path / "elsewhere").write_text(PASSPHRASE)
    (tmp_path / "elsewhere").chmod(0o400)
    environ = {"AMESH_PASSPHRASE_FILE": str(tmp_path / "elsewhere")} if name == "elsewhere" else {}
    assert not caplog.records
    Device(tmp_path, environ=environ)
    assert not caplog.records
    path = tmp_path / name.replace("KEY", f"{device.identity.key_alias}.key.json")
    path.chmod(to)
    Device(tmp_path, environ=environ)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{path} is open to others (mode {to:03o}). Close it: {fix} {path}" in caplog.text


# --- the passphrase ---------------------------------------------------------------------------------------------------


def legacy(path: Path, passphrase: Any = PASSPHRASE) -> EphemeralDevice:
    """A directory as versions before the passphrase file made it."""
    device = EphemeralDevice("old")
    device.write(path)
    (path / ".passphrase").unlink()
    (path / "identity.json").write_text(json_text({**device.identity.to_json(), "passphrase": passphrase, "z": 1}))
    return device


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
    assert verify_signature(device.identity.public_key, b"m", Device(tmp_path, environ={}).sign(b"m"))
    assert (tmp_path / ".passphrase").read_text() == PASSPHRASE
    assert (mode(tmp_path / ".passphrase"), mode(tmp_path / "identity.json")) == (0o400, 0o600)
    del before["passphrase"]
    assert (tmp_path / "identity.json").read_text() == json.dumps(before, indent=2)
    assert "was moved" in caplog.text
    assert PASSPHRASE not in caplog.text
    caplog.clear()
    assert Device(tmp_path, environ={}).sign(b"m")
    assert not caplog.records


def test_a_move_that_was_ended_half_way_is_finished(tmp_path: Path) -> None:
    legacy(tmp_path)
    (tmp_path / ".passphrase").write_text(PASSPHRASE)
    assert find_passphrase(tmp_path, {}) == PASSPHRASE
    assert "passphrase" not in json.loads((tmp_path / "identity.json").read_text())


def test_a_passphrase_that_a_file_can_not_hold_stays_where_it_is(tmp_path: Path) -> None:
    """The reference reads the file without the white space round it."""
    legacy(tmp_path, " spaced ")
    assert find_passphrase(tmp_path, {}) == find_passphrase(tmp_path, {}) == " spaced "
    assert not (tmp_path / ".passphrase").exists()


def test_a_move_that_can_not_be_is_no_reason_to_stop(tmp_path: Path) -> None:
    """A read-only folder: the passphrase is used as it is, with a warning that does not show it."""
    legacy(tmp_path)
    open_to_nobody(tmp_path)
    tmp_path.chmod(0o500)
    said = python(
        "import logging, sys; logging.basicConfig(stream=sys.stdout)\n"
        f"print(len(Device({str(tmp_path)!r}, environ={{}}).sign(b'm')))",
        unprivileged=True,
    )
    assert "could not be moved" in said
    assert said.endswith("64\n")
    assert PASSPHRASE not in said
    assert "passphrase" in json.loads((tmp_path / "identity.json").read_text())


def test_no_passphrase(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    file = tmp_path / ".passphrase"
    file.unlink()
    with pytest.raises(PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: set it, or put .* mode 0400"):
        device.sign(b"m")
    for text in (b"", b" \n"):
        file.write_bytes(text)
        with pytest.raises(PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: .* is empty"):
            device.sign(b"m")
    file.write_bytes(b"\xff")
    with pytest.raises(PassphraseRequired, match=r"AUTH_MESH_PASSPHRASE required: .* can't be read \(not UTF-8 text\)"):
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


# --- what the reference made ------------------------------------------------------------------------------------------


def reference_directory(path: Path, case: dict[str, Any], **members: Any) -> bytes:
    """A directory out of a key file of the vectors; the public key."""
    public_key = b64decode(case["expected"]["derived_public_key_b64"])
    identity = {
        "version": "2.0.0",
        "deviceId": members.pop("deviceId", None) or EphemeralDevice_id(public_key),
        "keyAlias": case["device_id"],
        "publicKey": b64encode(public_key),
        "friendlyName": "Réference",
        "createdAt": "2026-03-28T10:05:00.000Z",
        "storageBackend": "encrypted-file",
        **members,
    }
    (path / "keys").mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    for name, text in {
        "identity.json": json.dumps({k: v for k, v in identity.items() if v is not None}, indent=2, ensure_ascii=False),
        ".passphrase": case["passphrase"],
        f"keys/{case['device_id']}.key.json": case["file"],
    }.items():
        (path / name).write_text(text, "utf-8")
        (path / name).chmod(0o600)
    return public_key


def EphemeralDevice_id(public_key: bytes) -> str:  # noqa: N802
    from amesh_django.protocol import device_id

    return device_id(public_key)


KEY_FILES = [case for case in json.loads((VECTORS / "keyfile.json").read_text("utf-8"))["cases"] if case["tag"] == "ok"]


@pytest.mark.parametrize("case", KEY_FILES, ids=[case["device_id"] for case in KEY_FILES])
def test_a_directory_of_the_reference_signs_and_seals(tmp_path: Path, case: dict[str, Any]) -> None:
    public_key = reference_directory(tmp_path / "d", case)
    device = Device(tmp_path / "d", environ={})
    assert permission_problems(tmp_path / "d") == []
    assert verify_signature(public_key, b"m", device.sign(b"m"))
    assert device.seal_secret().hex() == case["expected"]["hmac_key_material_hex"]
    identity = (tmp_path / "d" / "identity.json").read_bytes()
    assert json_text(device.identity.to_json()).encode() == identity


def test_an_identity_without_a_key_alias(tmp_path: Path) -> None:
    """The first versions wrote none; the device id is meant."""
    device = EphemeralDevice().write(tmp_path)
    value = {name: item for name, item in device.identity.to_json().items() if name != "keyAlias"}
    (tmp_path / "identity.json").write_text(json.dumps(value))
    assert verify_signature(device.identity.public_key, b"m", Device(tmp_path, environ={}).sign(b"m"))


# --- files and locks --------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel enforces in the middle of the write."""
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try: storage.atomic_write(Path({str(path)!r}), "x" * 20_000)
except AmeshError as error: print(type(error).__name__, error)
"""
    said = python(code)
    assert said.startswith("StorageError ")
    assert "the old file is as it was" in said
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 64 KiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk(tiny_disk: Path | None) -> None:
    """Beside the test above, not in its place: only root can mount."""
    if tiny_disk is None:
        return
    device = EphemeralDevice().write(tiny_disk, max_controllers=100)
    allow_list = FileAllowList(device)
    allow_list.add(EphemeralDevice("kept").entry())
    before = (tiny_disk / "allow_list.json").read_bytes()
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match="Make room"):
        allow_list.add(EphemeralDevice("lost").entry())
    assert (tiny_disk / "allow_list.json").read_bytes() == before
    assert [entry.friendly_name for entry in allow_list.read()] == ["kept"]
    with pytest.raises(StorageError):
        make(tiny_disk, force=True)
    assert read_identity(tiny_disk) == device.identity
    assert [entry.friendly_name for entry in FileAllowList(Device(tiny_disk, environ={})).read()] == ["kept"]
    filler.unlink()
    allow_list.add(EphemeralDevice("next").entry())
    assert len(allow_list.read()) == 2


def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    order: list[str] = []
    taken = threading.Event()

    def other() -> None:
        taken.wait()
        with pytest.raises(AllowListBusy, match="Try again"), locked(tmp_path, seconds=0.05):
            order.append("never")
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with locked(tmp_path), locked(tmp_path):  # the same thread may take it again
        taken.set()
        code = f"""
try:
    with storage.locked(Path({str(tmp_path)!r}), seconds=0.05): print("in")
except AmeshError as error: print(type(error).__name__)
"""
        assert python(code) == "AllowListBusy\n"
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert mode(tmp_path / ".lock") == 0o600


def test_the_lock_makes_no_folder_and_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"), locked(tmp_path / "none"):
        pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(PermissionError, match="mine"), locked(tmp_path):
        raise PermissionError("mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".lock").mkdir()
    with pytest.raises(StorageError, match="Check owner|Make room"), locked(tmp_path / "d"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    left = [tmp_path / ".allow_list.json.abc.amesh-tmp", tmp_path / "keys" / ".x.key.json.def.amesh-tmp"]
    for path in left:
        path.write_text("half")
    FileAllowList(device).add(EphemeralDevice().entry())
    assert not any(path.exists() for path in left)


def test_errors_are_of_one_family() -> None:
    assert all(issubclass(kind, AmeshError) for kind in (StorageError, DirectoryError, AllowListBusy, KeyStoreError))

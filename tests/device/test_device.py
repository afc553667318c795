"""The device directory: created, replaced, opened, damaged, accessible to other users, and made by the reference."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from amesh_django.test import EphemeralDevice
from amesh_django.test.devices import PASSPHRASE
from authmesh.device import (
    FileAllowList,
    Identity,
    LocalDevice,
    default_directory,
    find_passphrase,
    init_device,
    permission_problems,
    read_identity,
)
from authmesh.files.storage import atomic_write, json_text
from authmesh.keystore.tpm.pin import cannot_ask, find_pin, pin_file_problems
from authmesh.protocol import InvalidInput, KeyStoreError, b64encode, verify_signature
from authmesh.protocol.errors import (
    DirectoryError,
    IdentityExists,
    IdentityMissing,
    PassphraseRequired,
    StorageError,
    WrongPassphrase,
)
from tests.support.directories import (
    KEY_FILES,
    NO_TPM,
    NOW,
    contents,
    folder_of_nobody,
    make,
    mode,
    python,
    reference_directory,
)

# --- init -------------------------------------------------------------------------------------------------------------


def test_init_makes_what_the_protocol_says(tmp_path: Path) -> None:
    """Compare all files and their modes with protocol.md."""
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
    device = LocalDevice(path, environ={})
    assert device.identity == identity == read_identity(path)
    assert verify_signature(identity.public_key, b"m", device.sign(b"m"))


class TestInit:
    def test_an_identity_is_not_overwritten(self, tmp_path: Path) -> None:
        make(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(IdentityExists, match="--force"):
            make(tmp_path)
        assert contents(tmp_path) == before

    def test_force_replaces_it_and_keeps_the_old_list(self, tmp_path: Path) -> None:
        old = make(tmp_path, max_controllers=2)
        FileAllowList(LocalDevice(tmp_path, environ={})).add(EphemeralDevice().entry())
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
        device = LocalDevice(tmp_path, environ={})
        assert FileAllowList(device).read() == []
        assert (old.controller_limit, device.identity.controller_limit) == (2, 1)

    @pytest.mark.parametrize("damage", ["{", '{"deviceId": "../../x", "keyAlias": "../x"}', None])
    def test_a_list_of_an_unknown_identity_does_not_stop_the_new_one(self, tmp_path: Path, damage: str | None) -> None:
        make(tmp_path)
        FileAllowList(LocalDevice(tmp_path, environ={})).add(EphemeralDevice().entry())
        if damage is None:
            (tmp_path / "identity.json").unlink()
        else:
            (tmp_path / "identity.json").write_text(damage)
        new = make(tmp_path, force=damage is not None)
        assert FileAllowList(LocalDevice(tmp_path, environ={})).read() == []
        assert (tmp_path / f"allow_list.before-{new.device_id}.json").exists()

    def test_an_old_alias_that_is_none_is_left_alone(self, tmp_path: Path) -> None:
        make(tmp_path)
        value = json.loads((tmp_path / "identity.json").read_text())
        (tmp_path / "identity.json").write_text(json.dumps({**value, "keyAlias": "../identity"}))
        new = make(tmp_path, force=True)
        assert read_identity(tmp_path) == new

    @pytest.mark.parametrize(
        "name", ["", "  ", "x" * 129, "a\nb", "a\x1b[2J", "a\u202eb", "\ud800", "a\udcff"], ids=ascii
    )
    def test_a_name_that_could_not_be_shown(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidInput, match="--name"):
            init_device(tmp_path / "x", name, now=NOW, environ={})
        assert not (tmp_path / "x").exists()

    def test_names_and_limits(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="--max-controllers"):
            make(tmp_path, max_controllers=0)
        identity = init_device(tmp_path, "  Zoës 🜁 Läptop ", now=NOW, environ=NO_TPM, max_controllers=3)
        assert identity.friendly_name == "Zoës 🜁 Läptop"
        assert "Zoës 🜁 Läptop" in (tmp_path / "identity.json").read_text("utf-8")
        assert json.loads((tmp_path / "identity.json").read_text("utf-8"))["maxControllers"] == 3
        assert read_identity(tmp_path).controller_limit == 3

    def test_a_passphrase_from_the_environment_does_not_touch_the_disk(self, tmp_path: Path) -> None:
        environ = {"AUTH_MESH_PASSPHRASE": "from outside"}
        make(tmp_path, environ=environ)
        assert not (tmp_path / ".passphrase").exists()
        assert LocalDevice(tmp_path, environ=environ).sign(b"m")
        with pytest.raises(PassphraseRequired):
            LocalDevice(tmp_path, environ={}).sign(b"m")

    def test_the_passphrase_file_can_live_elsewhere(self, tmp_path: Path) -> None:
        environ = {"AMESH_PASSPHRASE_FILE": str(tmp_path / "elsewhere")}
        make(tmp_path / "d", environ=environ)
        assert not (tmp_path / "d" / ".passphrase").exists()
        assert mode(tmp_path / "elsewhere") == 0o400
        assert LocalDevice(tmp_path / "d", environ=environ).sign(b"m")

    def test_an_empty_passphrase_file_is_not_used(self, tmp_path: Path) -> None:
        (tmp_path / ".passphrase").write_text("\n")
        with pytest.raises(PassphraseRequired, match="is empty"):
            make(tmp_path)
        assert set(contents(tmp_path)) == {".passphrase"}

    def test_nothing_half_made_stays_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If any step fails, the directory is as before: empty, or with the old identity and its list."""
        empty, used = tmp_path / "empty", tmp_path / "used"
        make(used)
        FileAllowList(LocalDevice(used, environ={})).add(EphemeralDevice().entry())
        for path in (empty, used):
            path.mkdir(exist_ok=True)
            before = contents(path)
            for step in ("identity.json", ".key.json"):

                def failing(target: Path, text: str, step: str = step, **options: Any) -> None:
                    if target.name.endswith(step):
                        raise KeyboardInterrupt
                    atomic_write(target, text, **options)

                with monkeypatch.context() as patch:
                    patch.setattr("authmesh.device.directory.atomic_write", failing)
                    patch.setattr("authmesh.keystore.encrypted_file.atomic_write", failing)
                    with pytest.raises(KeyboardInterrupt):
                        make(path, force=True)
                assert contents(path) == before

    def test_ctrl_c_a_moment_too_late_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def late(target: Path, text: str, **options: Any) -> None:
            atomic_write(target, text, **options)
            if target.name == "identity.json":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("authmesh.device.directory.atomic_write", late)
            make(tmp_path)
        assert LocalDevice(tmp_path, environ={}).sign(b"m")


def test_init_where_it_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="AUTH_MESH_DIR"):
        make(tmp_path / "file")
    with pytest.raises(StorageError, match="AUTH_MESH_DIR"):
        make(tmp_path / "file" / "below")


@pytest.mark.process
def test_init_in_a_read_only_folder() -> None:
    with folder_of_nobody() as folder:
        folder.chmod(0o500)
        said = python(
            f"try: init_device(Path({str(folder)!r}), 'x', now=dt.datetime.now(dt.UTC), backend='encrypted-file', environ={{}})\n"
            "except AmeshError as error: print(type(error).__name__, error)",
            unprivileged=True,
        )
        assert said.startswith("StorageError ")
        assert "heck the owner and permissions" in said
        assert os.listdir(folder) == []


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_default_directory() -> None:
    assert default_directory({}) == Path.home() / ".amesh"
    assert default_directory({"AUTH_MESH_DIR": ""}) == Path.home() / ".amesh"
    assert default_directory({"AUTH_MESH_DIR": "~/x"}) == Path.home() / "x"


def test_a_user_without_a_home() -> None:
    """As in a container whose user has a number and no name."""
    with pytest.raises(
        StorageError, match=r"~nobody-of-that-name/x can't be resolved .* no home folder\. Use an absolute path"
    ):
        default_directory({"AUTH_MESH_DIR": "~nobody-of-that-name/x"})


@pytest.mark.parametrize("variable", ["AMESH_PASSPHRASE_FILE", "AMESH_TPM_PIN_FILE"])
def test_a_file_in_a_home_that_is_not_there(tmp_path: Path, variable: str) -> None:
    with pytest.raises(StorageError, match="~nobody-of-that-name/x can't be resolved because there is no home folder"):
        (find_passphrase if "PASS" in variable else find_pin_there)(tmp_path, {variable: "~nobody-of-that-name/x"})


def find_pin_there(path: Path, environ: dict[str, str]) -> str:
    assert pin_file_problems(environ) == []  # a device that signs nothing needs no PIN
    return find_pin(environ, cannot_ask)


def test_no_identity(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(IdentityMissing, match="amesh init --name NAME"):
            LocalDevice(path, environ={})
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
    with pytest.raises(
        DirectoryError, match=r"Restore it from a backup|Check (the|its) owner and permissions"
    ) as caught:
        LocalDevice(tmp_path, environ={})
    assert "identity.json" in str(caught.value)


def test_an_identity_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(DirectoryError, match="can't be read"):
        LocalDevice(tmp_path, environ={})


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
    device = LocalDevice(tmp_path, environ={})
    for use in (device.seal_secret, lambda: device.sign(b"m")):
        with pytest.raises(KeyStoreError, match="same backup"):
            use()


def test_an_alias_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path / "d")
    key_file = tmp_path / "d" / "keys" / f"{device.identity.key_alias}.key.json"
    key_file.rename(tmp_path / "d" / "out.key.json")
    (tmp_path / "d" / "identity.json").write_text(json.dumps({**device.identity.to_json(), "keyAlias": "../out"}))
    with pytest.raises(KeyStoreError, match="alias"):
        LocalDevice(tmp_path / "d", environ={}).sign(b"m")


def test_a_wrong_passphrase(tmp_path: Path) -> None:
    EphemeralDevice().write(tmp_path)
    with pytest.raises(WrongPassphrase):
        LocalDevice(tmp_path, environ={"AUTH_MESH_PASSPHRASE": "wrong one"}).sign(b"m")


def test_a_key_store_of_another_machine(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    for backend in ("secure-enclave", "floppy"):
        (tmp_path / "identity.json").write_text(json.dumps({**device.identity.to_json(), "storageBackend": backend}))
        if sys.platform != "darwin" or backend == "floppy":
            with pytest.raises(KeyStoreError):
                LocalDevice(tmp_path, environ={})


# --- permissions ---------------------------------------------------------------------------------------------


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
    LocalDevice(tmp_path, environ=environ)
    assert not caplog.records
    path = tmp_path / name.replace("KEY", f"{device.identity.key_alias}.key.json")
    path.chmod(to)
    LocalDevice(tmp_path, environ=environ)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{path} is accessible to other users (mode {to:03o}). Make it private: {fix} {path}" in caplog.text


# --- directories of the reference ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", KEY_FILES, ids=[case["device_id"] for case in KEY_FILES])
def test_a_directory_of_the_reference_signs_and_seals(tmp_path: Path, case: dict[str, Any]) -> None:
    public_key = reference_directory(tmp_path / "d", case)
    device = LocalDevice(tmp_path / "d", environ={})
    assert permission_problems(tmp_path / "d") == []
    assert verify_signature(public_key, b"m", device.sign(b"m"))
    assert device.seal_secret().hex() == case["expected"]["hmac_key_material_hex"]
    identity = (tmp_path / "d" / "identity.json").read_bytes()
    assert json_text(device.identity.to_json()).encode() == identity


def test_an_identity_without_a_key_alias(tmp_path: Path) -> None:
    """The first versions wrote no alias. The device ID is then the alias."""
    device = EphemeralDevice().write(tmp_path)
    value = {name: item for name, item in device.identity.to_json().items() if name != "keyAlias"}
    (tmp_path / "identity.json").write_text(json.dumps(value))
    assert verify_signature(device.identity.public_key, b"m", LocalDevice(tmp_path, environ={}).sign(b"m"))

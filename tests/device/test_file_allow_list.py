"""The sealed file: lists of the reference, all operations, tampering, older forms."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amesh_django.test import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from authmesh.protocol import (
    AllowListIntegrityFailure,
    DeviceEntry,
    parse_time,
    seal_document,
    verify_seal,
    verify_signature,
)
from authmesh.protocol.errors import ControllerLimitReached, DeviceNotFound, StorageError
from tests.support.directories import KEY_FILES, VECTORS, reference_directory

SEALS = json.loads((VECTORS / "seal.json").read_text("utf-8"))["cases"]


@dataclasses.dataclass
class Owner:
    """The owner of the list of a vector. Vectors have the secret of the seal, not the key from which it is derived."""

    path: Path
    case: dict[str, Any]

    @property
    def identity(self) -> Any:
        owner = EphemeralDevice().identity
        return dataclasses.replace(owner, device_id=self.case["device_id"], max_controllers=1000)

    def seal_secret(self) -> bytes:
        return bytes.fromhex(self.case["hmac_key_material_hex"])


def of_vector(path: Path, case: dict[str, Any], **options: Any) -> FileAllowList:
    (path / "allow_list.json").write_bytes(case["file"].encode())
    return FileAllowList(Owner(path, case), **options)  # type: ignore[arg-type]


@pytest.fixture
def device(tmp_path: Path) -> LocalDevice:
    return EphemeralDevice("owner").write(tmp_path / "d", max_controllers=2)


@pytest.fixture
def allow_list(device: LocalDevice) -> FileAllowList:
    return FileAllowList(device)


def names(allow_list: FileAllowList) -> list[str]:
    return [entry.friendly_name for entry in allow_list.read()]


# --- lists of the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SEALS, ids=[f"{case['tag']}-{number}" for number, case in enumerate(SEALS)])
def test_lists_of_the_reference(tmp_path: Path, case: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    allow_list = of_vector(tmp_path, case)
    before = (tmp_path / "allow_list.json").read_bytes()
    if not case["expected"]["ok"]:
        for use in (allow_list.read, lambda: allow_list.add(EphemeralDevice().entry())):
            with pytest.raises(AllowListIntegrityFailure):
                use()
        assert {record.levelno for record in caplog.records} == {logging.CRITICAL}
        assert (tmp_path / "allow_list.json").read_bytes() == before
        return
    assert [entry.to_json() for entry in allow_list.read()] == case["expected"]["devices"]
    after = (tmp_path / "allow_list.json").read_bytes()
    assert (after != before) is case["expected"]["resealed"]
    assert verify_seal(json.loads(after), bytes.fromhex(case["hmac_key_material_hex"]), case["device_id"])
    assert [entry.to_json() for entry in allow_list.read()] == case["expected"]["devices"]
    assert (tmp_path / "allow_list.json").read_bytes() == after


AS_WRITTEN = [
    case
    for case in SEALS
    if case["expected"]["ok"] and not case["expected"]["resealed"] and case["written_by"].startswith("v")
]


#: Their extra members are numbers and integer-like names, which JavaScript spells and orders in another way than Python.
SPELLED_DIFFERENTLY = {"extra_fields", "extra_keys_utf16_sort"}


@pytest.mark.parametrize("case", AS_WRITTEN, ids=[case["tag"] for case in AS_WRITTEN])
def test_what_the_reference_wrote_is_written_again_byte_for_byte(tmp_path: Path, case: dict[str, Any]) -> None:
    updated_at = parse_time(json.loads(case["file"])["updatedAt"])
    allow_list = of_vector(tmp_path, case, clock=lambda: updated_at)
    passer_by = EphemeralDevice().entry()
    allow_list.add(passer_by)
    assert (tmp_path / "allow_list.json").read_bytes() != case["file"].encode()
    allow_list.revoke(passer_by.device_id)
    after = (tmp_path / "allow_list.json").read_bytes()
    assert json.loads(after) == json.loads(case["file"])
    assert after == case["file"].encode() or case["tag"] in SPELLED_DIFFERENTLY


@pytest.mark.slow
def test_a_directory_of_the_reference_lists_and_signs(tmp_path: Path) -> None:
    """Key file and entries come from the reference. The seal is made with the secret that the vector has for the key."""
    entries = [
        DeviceEntry.from_json(v) for case in SEALS if case["tag"] == "three" for v in case["expected"]["devices"]
    ]
    for number, case in enumerate(KEY_FILES):
        path = tmp_path / str(number)
        public_key = reference_directory(path, case)
        identity_id = json.loads((path / "identity.json").read_text("utf-8"))["deviceId"]
        document = seal_document(
            entries,
            key_material=bytes.fromhex(case["expected"]["hmac_key_material_hex"]),
            device_id=identity_id,
            updated_at=dt.datetime(2026, 3, 28, tzinfo=dt.UTC),
        )
        (path / "allow_list.json").write_text(json.dumps(document, indent=2, ensure_ascii=False), "utf-8")
        device = LocalDevice(path, environ={})
        assert FileAllowList(device).read() == entries
        assert len(entries) == 3
        assert verify_signature(public_key, b"m", device.sign(b"m"))


# --- the operations ---------------------------------------------------------------------------------------------------


def test_an_empty_list(allow_list: FileAllowList, device: LocalDevice) -> None:
    assert allow_list.read() == []
    assert allow_list.find(device.identity.public_key) is None
    assert (allow_list.count("controller"), allow_list.count("target")) == (0, 0)
    assert not (device.path / "allow_list.json").exists()


def test_add_find_get_count(allow_list: FileAllowList, device: LocalDevice) -> None:
    one, two = EphemeralDevice("one").entry(), EphemeralDevice("two").entry("target", permissions={"shell": True})
    allow_list.add(one)
    allow_list.add(two)
    assert allow_list.read() == [one, two]
    assert FileAllowList(LocalDevice(device.path, environ={})).read() == [one, two]
    assert (allow_list.find(one.public_key), allow_list.get(two.device_id)) == (one, two)
    assert (allow_list.count("controller"), allow_list.count("target")) == (1, 1)
    path = device.path / "allow_list.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2)
    assert list(json.loads(text)) == ["version", "devices", "updatedAt", "hmac"]
    assert [list(entry) for entry in json.loads(text)["devices"]] == [
        ["deviceId", "publicKey", "friendlyName", "addedAt", "addedBy", "role"],
        ["deviceId", "publicKey", "friendlyName", "addedAt", "addedBy", "role", "permissions"],
    ]


def test_a_known_device_is_refreshed(allow_list: FileAllowList) -> None:
    known = EphemeralDevice("old name")
    allow_list.add(known.entry("target", permissions={"shell": True}))
    fresh = dataclasses.replace(known.entry(), friendly_name="new name")
    allow_list.add(fresh)
    assert allow_list.read() == [fresh]


def test_the_limit_on_controllers(allow_list: FileAllowList) -> None:
    one, two, three = (EphemeralDevice(name) for name in ("one", "two", "three"))
    allow_list.add(one.entry())
    allow_list.add(two.entry())
    allow_list.add(EphemeralDevice("target").entry("target"))
    allow_list.add(dataclasses.replace(two.entry(), friendly_name="two again"))
    with pytest.raises(ControllerLimitReached, match=r"accepts 2 controllers .*maxControllers"):
        allow_list.add(three.entry())
    with pytest.raises(ControllerLimitReached):
        allow_list.add_all([three.entry()])
    with pytest.raises(ControllerLimitReached):
        allow_list.replace(
            allow_list.read()[1].device_id, three.entry()
        )  # a target, so the number of controllers stays the same
    assert names(allow_list) == ["one", "target", "two again"]
    allow_list.replace(one.identity.device_id, three.entry())
    assert names(allow_list) == ["target", "two again", "three"]


def test_add_all_is_all_or_nothing(allow_list: FileAllowList) -> None:
    known = EphemeralDevice("known")
    allow_list.add(known.entry())
    many = [EphemeralDevice(f"t{n}").entry("target") for n in range(20)]
    assert allow_list.add_all([*many, dataclasses.replace(known.entry(), friendly_name="again")]) == []
    assert names(allow_list) == [*(f"t{n}" for n in range(20)), "again"]
    with pytest.raises(ControllerLimitReached):
        allow_list.add_all([EphemeralDevice("x").entry("target"), *(EphemeralDevice().entry() for _ in range(2))])
    assert len(allow_list.read()) == 21


def test_revoke_and_permissions(allow_list: FileAllowList) -> None:
    one, two = EphemeralDevice("one").entry(), EphemeralDevice("two").entry()
    allow_list.add_all([one, two])
    changed = allow_list.set_permissions(one.device_id, {"shell": True})
    assert changed == dataclasses.replace(one, permissions={"shell": True}) == allow_list.get(one.device_id)
    allow_list.set_permissions(one.device_id, {})
    assert allow_list.read() == [one, two]
    assert allow_list.revoke(one.device_id, reason="lost", by="me") == one
    assert allow_list.read() == [two]


def test_a_device_that_is_not_there(allow_list: FileAllowList) -> None:
    allow_list.add(EphemeralDevice("there").entry())
    uses: list[Callable[[], object]] = [
        lambda: allow_list.revoke("am_none"),
        lambda: allow_list.get("am_none"),
        lambda: allow_list.set_permissions("am_none", {}),
        lambda: allow_list.replace("am_none", EphemeralDevice().entry()),
    ]
    for use in uses:
        with pytest.raises(DeviceNotFound, match="am_none"):
            use()
    assert names(allow_list) == ["there"]


def test_members_that_we_do_not_know_are_kept(device: LocalDevice, allow_list: FileAllowList) -> None:
    entry = dataclasses.replace(
        EphemeralDevice("a\ud800b\u2028c🜁\x01").entry(), extra={"note": {"ü": [1, None]}, "7": "x"}
    )
    allow_list.add(entry)
    allow_list.add(EphemeralDevice("later").entry())
    assert allow_list.read()[0] == entry


# --- tampering --------------------------------------------------------------------------------------------------------


def test_whatever_is_changed_behind_our_back_halts_everything(device: LocalDevice, allow_list: FileAllowList) -> None:
    one = EphemeralDevice("one").entry(permissions={"shell": True})
    allow_list.add(one)
    path = device.path / "allow_list.json"
    good = path.read_text("utf-8")
    edits = [
        good.replace("controller", "target"),
        good.replace("true", "false"),
        good.replace('"one"', '"eno"'),
        good.replace(json.loads(good)["updatedAt"], "2020-01-01T00:00:00.000Z"),
        good.replace(json.loads(good)["hmac"], ""),
        json.dumps({**json.loads(good), "devices": []}),
        json.dumps({**json.loads(good), "devices": json.loads(good)["devices"] * 2}),
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
    ]
    uses: list[Callable[[], object]] = [
        allow_list.read,
        lambda: allow_list.find(one.public_key),
        lambda: allow_list.get(one.device_id),
        lambda: allow_list.count("controller"),
        lambda: allow_list.add(EphemeralDevice().entry()),
        lambda: allow_list.add_all([]),
        lambda: allow_list.revoke(one.device_id),
        lambda: allow_list.set_permissions(one.device_id, {}),
    ]
    for text in edits:
        assert text != good
        path.write_text(text, "utf-8")
        for use in uses:
            with pytest.raises(AllowListIntegrityFailure, match="from a backup"):
                use()
        assert path.read_text("utf-8") == text
    path.write_text(good, "utf-8")
    assert allow_list.read() == [one]


def test_a_halt_is_critical_in_the_log(
    device: LocalDevice, allow_list: FileAllowList, caplog: pytest.LogCaptureFixture
) -> None:
    (device.path / "allow_list.json").write_bytes(b"\xff\xfe")
    with pytest.raises(AllowListIntegrityFailure, match="not JSON"):
        allow_list.read()
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    assert str(device.path / "allow_list.json") in caplog.text


def test_the_list_of_another_device(tmp_path: Path, device: LocalDevice, allow_list: FileAllowList) -> None:
    allow_list.add(EphemeralDevice().entry())
    other = EphemeralDevice().write(tmp_path / "other")
    (other.path / "allow_list.json").write_bytes((device.path / "allow_list.json").read_bytes())
    with pytest.raises(AllowListIntegrityFailure, match="belongs to another device"):
        FileAllowList(other).read()


def test_a_list_that_can_not_be_read(device: LocalDevice, allow_list: FileAllowList) -> None:
    (device.path / "allow_list.json").mkdir()
    with pytest.raises(AllowListIntegrityFailure, match="can't be read"):
        allow_list.read()


# --- older forms ------------------------------------------------------------------------------------------------------


def test_an_older_form_that_can_not_be_written_anew_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = next(case for case in SEALS if case["tag"] == "legacy_no_role")
    allow_list = of_vector(tmp_path, case)
    (tmp_path / ".lock").mkdir()
    assert [entry.to_json() for entry in allow_list.read()] == case["expected"]["devices"]
    assert {entry.role for entry in allow_list.read()} == {"controller"}
    assert "could not be rewritten" in caplog.text
    assert (tmp_path / "allow_list.json").read_text("utf-8") == case["file"]
    with pytest.raises(StorageError):
        allow_list.add(EphemeralDevice().entry())


def test_the_reader_needs_no_lock(device: LocalDevice, allow_list: FileAllowList) -> None:
    """A service that can only read its directory can still read the list."""
    allow_list.add(EphemeralDevice("one").entry())
    os.chmod(device.path, 0o500)
    try:
        assert names(allow_list) == ["one"]
    finally:
        os.chmod(device.path, 0o700)

"""The TPM key store against swtpm: keys, signatures, the sealed secret, PINs, other TPMs, and damaged files."""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from authmesh.keystore.tpm import blob as tpm_blob
from authmesh.keystore.tpm import link as tpm_link
from authmesh.keystore.tpm import objects as tpm_objects
from authmesh.keystore.tpm.connection import Stale
from authmesh.keystore.tpm.place import load_library, open_connection
from authmesh.keystore.tpm.store import TpmKeyStore, unavailable
from authmesh.protocol import b64decode, b64encode, device_id, verify_signature
from authmesh.protocol.errors import (
    BackendUnavailable,
    InvalidInput,
    KeyStoreError,
    PinRequired,
    StorageError,
    WrongPin,
)
from authmesh.protocol.keys import GROUP_ORDER, HALF_ORDER, load_public_key
from tests.keystore.tpms import Swtpm, forget, running_swtpm

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

PIN = "correct horse"


@pytest.fixture(scope="module")
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def no_pin() -> str:
    raise AssertionError("asked for a PIN")


def store_of(swtpm: Swtpm, folder: Path, pin: Any = no_pin) -> TpmKeyStore:
    """Return a store as in a new process, with no key known or loaded."""
    forget(swtpm.tcti)
    return TpmKeyStore(folder, swtpm.tcti, pin)


# --- making, using, deleting ------------------------------------------------------------------------------------------


def test_create_sign_delete(swtpm: Swtpm, folder: Path) -> None:
    store = store_of(swtpm, folder)
    alias, public_key = store.create()
    path = folder / f"{alias}.tpm"
    assert alias == device_id(public_key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == [path.name]
    assert store.public_key(alias) == public_key
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert not verify_signature(public_key, b"n", store.sign(alias, b"m"))
    again = store_of(swtpm, folder)
    assert again.public_key(alias) == public_key
    assert verify_signature(public_key, b"m", again.sign(alias, b"m"))
    again.delete(alias)
    again.delete(alias)
    assert os.listdir(folder) == []
    with pytest.raises(KeyStoreError, match="no key file"):
        again.sign(alias, b"m")
    assert swtpm.loaded() == []


def test_what_the_key_is(swtpm: Swtpm, folder: Path) -> None:
    """It has the attributes fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA and sign, and no others."""
    store = store_of(swtpm, folder)
    alias = store.create().alias
    library = load_library()
    members = json.loads((folder / f"{alias}.tpm").read_text())
    assert list(members) == [
        "version",
        "publicKey",
        "parent",
        "public",
        "private",
        "sealPublic",
        "sealPrivate",
        "mark",
        "pin",
    ]
    area = library.TPM2B_PUBLIC.unmarshal(b64decode(members["public"]))[0].publicArea
    bits = library.TPMA_OBJECT
    assert area.objectAttributes == (
        bits.FIXEDTPM | bits.FIXEDPARENT | bits.SENSITIVEDATAORIGIN | bits.USERWITHAUTH | bits.NODA | bits.SIGN_ENCRYPT
    )
    assert area.parameters.eccDetail.scheme.scheme == library.TPM2_ALG.ECDSA
    assert area.parameters.eccDetail.scheme.details.ecdsa.hashAlg == library.TPM2_ALG.SHA256
    assert area.parameters.eccDetail.curveID == library.TPM2_ECC.NIST_P256
    sealed = library.TPM2B_PUBLIC.unmarshal(b64decode(members["sealPublic"]))[0].publicArea
    assert sealed.objectAttributes == bits.FIXEDTPM | bits.FIXEDPARENT | bits.USERWITHAUTH | bits.NODA


def test_signatures_are_low_s(swtpm: Swtpm, folder: Path) -> None:
    store = store_of(swtpm, folder)
    alias, public_key = store.create()
    key = load_public_key(public_key)
    for number in range(300):
        message = secrets.token_bytes(number)
        signature = store.sign(alias, message)
        assert len(signature) == 64
        assert int.from_bytes(signature[32:], "big") <= HALF_ORDER
        assert verify_signature(key, message, signature)


@pytest.mark.parametrize(
    ("r", "s"), [(1, 1), (1, HALF_ORDER), (1 << 248, HALF_ORDER + 1), ((1 << 248) - 1, GROUP_ORDER - 1)]
)
def test_a_signature_of_the_tpm_is_read(r: int, s: int) -> None:
    """Some TPMs pad the numbers, others do not."""
    for length in (None, 32):
        raw = [n.to_bytes(length or (n.bit_length() + 7) // 8, "big") for n in (r, s)]
        made = bytes.fromhex("0018000b") + b"".join(len(part).to_bytes(2, "big") + part for part in raw)
        assert tpm_blob.raw_signature(made) == r.to_bytes(32, "big") + min(s, GROUP_ORDER - s).to_bytes(32, "big")


@pytest.mark.parametrize(
    "made", ["", "0018000b", "0018000b0001", "0018000c000101000101", "0018000b0001010002ff", "0014000b00"]
)
def test_what_is_no_signature(made: str) -> None:
    with pytest.raises(KeyStoreError, match="not an ECDSA signature"):
        tpm_blob.raw_signature(bytes.fromhex(made))


def test_the_key_is_loaded_once(swtpm: Swtpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(swtpm, folder)
    alias = store.create().alias
    commands: list[str] = []
    library = load_library()

    def counted(name: str) -> Any:
        real = getattr(library.ESAPI, name)

        def call(*words: Any, **more: Any) -> Any:
            commands.append(name)
            return real(*words, **more)

        return call

    for name in ("create_primary", "load", "context_load", "sign"):
        monkeypatch.setattr(library.ESAPI, name, counted(name))
    for _ in range(20):
        store.sign(alias, b"m")
    assert commands == ["sign"] * 20


def test_two_keys_in_one_process_take_turns(swtpm: Swtpm, folder: Path) -> None:
    store = store_of(swtpm, folder)
    keys = [store.create() for _ in range(5)]
    for _ in range(3):
        for alias, public_key in keys:
            assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert len(swtpm.loaded()) == 1


@pytest.mark.parametrize("pins", [(None, None), (PIN, None), (None, PIN), (PIN, PIN)])
def test_another_program_in_our_slot_is_noticed(
    swtpm: Swtpm, folder: Path, pins: tuple[str | None, str | None]
) -> None:
    """Without a resource manager, any program can unload the key and load another one into its slot."""
    store = store_of(swtpm, folder, lambda: PIN)
    ours, other = (store.create(pin=pin) for pin in pins)
    store.sign(ours.alias, b"m")
    tpm = tpm_link.link_to(swtpm.tcti)._tpm
    assert tpm is not None
    (place,) = (raw for (kind, _), (_, raw) in tpm.loaded.items() if kind == "key")
    tpm.unload(place)
    library = load_library()
    context, tcti = open_connection(library, swtpm.tcti)
    file = tpm_blob.parse_key_file((folder / f"{other.alias}.tpm").read_text())
    parent = context.create_primary(
        library.TPM2B_SENSITIVE_CREATE(), tpm_blob.parent_template(library), library.ESYS_TR.OWNER
    )[0]
    blobs = library.TPM2B_PRIVATE.unmarshal(file.private)[0], library.TPM2B_PUBLIC.unmarshal(file.public)[0]
    key = context.load(parent, *blobs)
    saved = context.context_save(key)
    context.flush_context(key)
    context.flush_context(parent)
    assert context.tr_get_tpm_handle(context.context_load(saved)) == place
    context.close()
    tcti.close()
    for _ in range(3):
        assert verify_signature(ours.public_key, b"m", store.sign(ours.alias, b"m"))


def test_another_program_in_the_place_of_our_session_is_noticed(swtpm: Swtpm, folder: Path) -> None:
    """The error must not be a wrong PIN."""
    store = store_of(swtpm, folder, lambda: PIN)
    alias, public_key = store.create(pin=PIN)
    store.sign(alias, b"m")
    tpm = tpm_link.link_to(swtpm.tcti)._tpm
    assert tpm is not None
    (place,) = (raw for (kind, _), (_, raw) in tpm.loaded.items() if kind == "session")
    tpm.unload(place)
    library = load_library()
    context, tcti = open_connection(library, swtpm.tcti)
    nothing = library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL)
    sessions = []
    while True:  # the TPM assigns handles in turn
        nobody, kind, digest = library.ESYS_TR.NONE, library.TPM2_SE.HMAC, library.TPM2_ALG.SHA256
        sessions.append(context.start_auth_session(nobody, nobody, kind, nothing, digest))
        if context.tr_get_tpm_handle(sessions[-1]) == place:
            break
        context.flush_context(sessions.pop())
    context.close()
    tcti.close()
    for _ in range(3):
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))


def test_a_tpm_that_signs_wrongly_makes_no_key(swtpm: Swtpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_objects, "raw_signature", lambda made: bytes(31) + b"\1" + bytes(31) + b"\1")
    with pytest.raises(KeyStoreError, match="does not sign with the key that it created"):
        store_of(swtpm, folder).create()
    assert os.listdir(folder) == []


def test_slots_that_others_filled(swtpm: Swtpm, folder: Path) -> None:
    store = store_of(swtpm, folder)
    alias, public_key = store.create()
    forget(swtpm.tcti)
    library = load_library()
    context, tcti = open_connection(library, swtpm.tcti)
    template = tpm_blob.parent_template(library)
    for _ in range(3):
        context.create_primary(library.TPM2B_SENSITIVE_CREATE(), template, library.ESYS_TR.OWNER)
    assert len(swtpm.loaded()) == 3
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    context.close()
    tcti.close()


# --- the seal secret --------------------------------------------------------------------------------------------------


def test_the_seal_secret_is_nowhere_on_the_disk(swtpm: Swtpm, folder: Path) -> None:
    store = store_of(swtpm, folder)
    alias = store.create().alias
    secret = store.seal_secret(alias)
    assert len(secret) == 32
    assert store_of(swtpm, folder).seal_secret(alias) == secret
    assert store.seal_secret(store.create().alias) != secret
    texts = [path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()]
    for form in (secret, secret.hex().encode(), b64encode(secret).encode()):
        assert not any(form in text for text in texts)


def test_secrets_do_not_cross_the_bus_in_clear(swtpm: Swtpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search everything that is sent over the TCTI, which swtpm logs."""
    log = swtpm.log.with_suffix(".wire")
    with running_swtpm() as watched:
        watched.stop()
        watched.argv = [*watched.argv, "--log", f"file={log},level=20"]
        watched.start()
        store = TpmKeyStore(folder, watched.tcti, lambda: PIN)
        alias = store.create(pin=PIN).alias
        store.sign(alias, b"m")
        forget(watched.tcti)
        secret = TpmKeyStore(folder, watched.tcti, no_pin).seal_secret(alias)
        wire = "".join(log.read_text().split()).lower()
    assert "80020000" in wire  # the log has commands with sessions
    assert secret.hex() not in wire
    assert PIN.encode().hex() not in wire


# --- PINs -------------------------------------------------------------------------------------------------------------


def test_a_pin_is_asked_once_for_each_process(swtpm: Swtpm, folder: Path) -> None:
    alias, public_key = store_of(swtpm, folder).create(pin=PIN)
    asked = []
    store = store_of(swtpm, folder, lambda: (asked.append(1), PIN)[1])
    assert store.seal_secret(alias) and not asked  # a server that only verifies needs no PIN
    for _ in range(3):
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert asked == [1]
    assert json.loads((folder / f"{alias}.tpm").read_text())["pin"] is True


def test_a_wrong_pin(swtpm: Swtpm, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    alias, public_key = store_of(swtpm, folder).create(pin=PIN)
    pins = ["wrong pin 1", "wrong pin 2", *["wrong again"] * 40, PIN]
    store = store_of(swtpm, folder, lambda: pins.pop(0))
    for _ in range(42):  # more often than the lockout of a TPM allows
        with pytest.raises(WrongPin, match="AMESH_TPM_PIN_FILE") as caught:
            store.sign(alias, b"m")
        assert "wrong" not in repr(caught.value)
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert PIN not in caplog.text and "wrong pin" not in caplog.text


def test_a_flag_taken_out_of_the_file_does_not_take_the_pin_away(swtpm: Swtpm, folder: Path) -> None:
    alias = store_of(swtpm, folder).create(pin=PIN).alias
    path = folder / f"{alias}.tpm"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pin": False}))
    with pytest.raises(KeyStoreError, match="damaged"):
        store_of(swtpm, folder).sign(alias, b"m")


def test_nobody_says_the_pin(swtpm: Swtpm, folder: Path) -> None:
    alias = store_of(swtpm, folder).create(pin=PIN).alias

    def nobody() -> str:
        raise PinRequired("nobody is there")

    store = store_of(swtpm, folder, nobody)
    for _ in range(2):
        with pytest.raises(PinRequired, match="nobody is there"):
            store.sign(alias, b"m")


@pytest.mark.parametrize("pin", ["", "x" * 33, "ü" * 17, "tab\t", "line\n", "\0", "\udcff"])
def test_what_is_no_pin(swtpm: Swtpm, folder: Path, pin: str) -> None:
    with pytest.raises(InvalidInput, match="1 to 32 bytes") as caught:
        store_of(swtpm, folder).create(pin=pin)
    assert not pin.strip() or pin not in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize("pin", ["0", "x" * 32, "ü" * 16, "with a space "])
def test_what_is_a_pin(swtpm: Swtpm, folder: Path, pin: str) -> None:
    alias, public_key = store_of(swtpm, folder).create(pin=pin)
    assert verify_signature(public_key, b"m", store_of(swtpm, folder, lambda: pin).sign(alias, b"m"))
    with pytest.raises(WrongPin):
        store_of(swtpm, folder, lambda: "y").sign(alias, b"m")


# --- other TPMs -------------------------------------------------------------------------------------------------------


def test_a_key_on_another_tpm(swtpm: Swtpm, folder: Path) -> None:
    alias, public_key = store_of(swtpm, folder).create()
    with running_swtpm() as other:
        store = TpmKeyStore(folder, other.tcti, no_pin)
        for use in (lambda: store.sign(alias, b"m"), lambda: store.seal_secret(alias)):
            with pytest.raises(KeyStoreError, match="created by another TPM, or the TPM of this machine was cleared"):
                use()
        assert store.public_key(alias) == public_key
        assert other.loaded() == []
    assert verify_signature(public_key, b"m", store_of(swtpm, folder).sign(alias, b"m"))


def test_a_cleared_tpm(folder: Path) -> None:
    with running_swtpm() as swtpm:
        store = TpmKeyStore(folder, swtpm.tcti, no_pin)
        alias = store.create().alias
        swtpm.clear()
        for one in (store, store_of(swtpm, folder)):
            with pytest.raises(KeyStoreError, match="was cleared"):
                one.sign(alias, b"m")
        alias, public_key = store.create()
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))


def test_an_owner_password(folder: Path) -> None:
    with running_swtpm() as swtpm:
        store = TpmKeyStore(folder, swtpm.tcti, no_pin)
        alias = store.create().alias
        swtpm.set_owner_password("secret")
        forget(swtpm.tcti)
        assert "owner hierarchy of this TPM has a password" in str(unavailable(swtpm.tcti))
        with pytest.raises(BackendUnavailable, match="owner hierarchy of this TPM has a password"):
            store_of(swtpm, folder).sign(alias, b"m")
        with pytest.raises(BackendUnavailable, match="owner hierarchy of this TPM has a password"):
            store_of(swtpm, folder).create()
        assert os.listdir(folder) == [f"{alias}.tpm"]


def test_a_tpm_that_was_not_started_up(folder: Path) -> None:
    with running_swtpm() as swtpm:
        swtpm.stop()
        swtpm.argv = [word.replace(",startup-clear", "") for word in swtpm.argv]
        swtpm.start()
        assert "was not started" in str(unavailable(swtpm.tcti))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(swtpm: Swtpm, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("made")
    alias = TpmKeyStore(folder, swtpm.tcti, no_pin).create().alias
    return alias, json.loads((folder / f"{alias}.tpm").read_text())


def flipped(text: str, at: int = -1) -> str:
    data = bytearray(b64decode(text))
    data[at] ^= 1
    return b64encode(bytes(data))


@pytest.mark.parametrize("member", ["private", "public", "sealPrivate", "sealPublic", "publicKey", "pin", "parent"])
@pytest.mark.parametrize("how", ["missing", "null", "empty", "long", "number", "text"])
def test_a_damaged_member(swtpm: Swtpm, folder: Path, made: tuple[str, dict[str, Any]], member: str, how: str) -> None:
    alias, members = made
    values = {"null": None, "empty": "", "long": "AAAA" * 2000, "number": 7, "text": "ä"}
    changed = {name: value for name, value in members.items() if name != member}
    if how != "missing":
        changed[member] = values[how]
    folder.mkdir()
    (folder / f"{alias}.tpm").write_text(json.dumps(changed))
    with pytest.raises(KeyStoreError, match="key file is damaged"):
        store_of(swtpm, folder).sign(alias, b"m")


@pytest.mark.parametrize("member", ["private", "sealPrivate", "sealPublic", "public"])
@pytest.mark.parametrize("at", [0, 1, 2, 30, 40, -1])
def test_a_flipped_bit(swtpm: Swtpm, folder: Path, made: tuple[str, dict[str, Any]], member: str, at: int) -> None:
    alias, members = made
    folder.mkdir()
    (folder / f"{alias}.tpm").write_text(json.dumps({**members, member: flipped(members[member], at)}))
    store = store_of(swtpm, folder)
    with pytest.raises(KeyStoreError, match="damaged"):
        store.seal_secret(alias)
        store.sign(alias, b"m")
    assert "Traceback" not in swtpm.output()
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '"x"', "\ufffe"])
def test_no_key_file(swtpm: Swtpm, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "k.tpm").write_text(text)
    with pytest.raises(KeyStoreError, match="damaged"):
        store_of(swtpm, folder).public_key("k")


def test_files_that_can_not_be_read(swtpm: Swtpm, folder: Path) -> None:
    folder.mkdir()
    (folder / "k.tpm").write_bytes(b"\xff")
    (folder / "d.tpm").mkdir()
    store = store_of(swtpm, folder)
    with pytest.raises(KeyStoreError, match="damaged"):
        store.public_key("k")
    with pytest.raises(KeyStoreError, match="cannot be read"):
        store.public_key("d")
    with pytest.raises(StorageError, match="cannot be deleted"):
        store.delete("d")


@pytest.mark.parametrize("alias", ["", "..", "a/b", "a.b", "ä", "a" * 129])
def test_an_alias_never_becomes_another_path(swtpm: Swtpm, folder: Path, alias: str) -> None:
    store = store_of(swtpm, folder)
    for use in (store.public_key, store.seal_secret, store.delete, lambda alias: store.sign(alias, b"m")):
        with pytest.raises(KeyStoreError, match="alias"):
            use(alias)


def test_a_disk_that_is_full_leaves_nothing(swtpm: Swtpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space"):
        store_of(swtpm, folder).create()
    assert os.listdir(folder) == []
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_a_key_that_does_not_sign_is_not_kept(swtpm: Swtpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TpmKeyStore, alias: str, message: bytes) -> bytes:
        raise KeyStoreError("no")

    monkeypatch.setattr(TpmKeyStore, "sign", broken)
    with pytest.raises(KeyStoreError, match="no"):
        store_of(swtpm, folder).create()
    assert os.listdir(folder) == []


def test_stale_is_no_error_that_gets_out(swtpm: Swtpm) -> None:
    def stale(tpm: Any) -> None:
        raise Stale("what it did")

    with pytest.raises(KeyStoreError, match="what it did"):
        tpm_link.link_to(swtpm.tcti).run(stale)

"""The encrypted-file key store: files of the reference, damage, bounds, aliases, and unlocking once per process."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh import keystore
from authmesh.keystore import EncryptedFileKeyStore, encrypted_file
from authmesh.keystore.encrypted_file import decrypt_key_file, encrypt_key_file, parse_key_file
from authmesh.protocol import (
    InvalidInput,
    KeyStoreError,
    b64decode,
    b64encode,
    device_id,
    load_private_key,
    public_key_bytes,
    verify_signature,
)
from authmesh.protocol.errors import BackendUnavailable, PassphraseRequired, StorageError, WrongPassphrase
from tests.support.directories import VECTORS
from tests.support.services import ROOT

DOCUMENT = json.loads((VECTORS / "keyfile.json").read_text("utf-8"))
CASES = [pytest.param(case, id=f"{case['tag']}-{number}") for number, case in enumerate(DOCUMENT["cases"])]

KEY = bytes(range(1, 33))
PUBLIC = public_key_bytes(load_private_key(KEY))
PASSPHRASE = "correct horse"
TEXT = encrypt_key_file(KEY, PASSPHRASE, CHEAP_ARGON2)


def store_with(
    tmp_path: Path, text: str = TEXT, passphrase: str = PASSPHRASE, alias: str = "k"
) -> EncryptedFileKeyStore:
    (tmp_path / f"{alias}.key.json").write_text(text, "utf-8")
    return EncryptedFileKeyStore(tmp_path, lambda: passphrase, cost=CHEAP_ARGON2)


def changed(**members: Any) -> str:
    return json.dumps({**json.loads(TEXT), **members})


# --- the reference's files --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.unversioned  # it is about the format of the file
def test_key_files_of_the_reference(case: dict[str, Any], tmp_path: Path) -> None:
    expected = case["expected"]
    if not expected["ok"]:
        with pytest.raises(WrongPassphrase):
            decrypt_key_file(case["file"], case["passphrase"])
        return
    assert decrypt_key_file(case["file"], case["passphrase"]).hex() == expected["private_key_hex"]
    store = store_with(tmp_path, case["file"], case["passphrase"], case["device_id"])
    derived = b64decode(expected["derived_public_key_b64"])
    assert store.public_key(case["device_id"]) == b64decode(expected["public_key_b64"])
    if expected["public_key_b64"] != expected["derived_public_key_b64"]:
        for use in (store.seal_secret, lambda alias: store.sign(alias, b"x")):
            with pytest.raises(KeyStoreError, match="public key does not belong to its private key"):
                use(case["device_id"])
        return
    assert store.seal_secret(case["device_id"]).hex() == expected["hmac_key_material_hex"]
    assert verify_signature(derived, b"message", store.sign(case["device_id"], b"message"))
    assert store.public_key(case["device_id"]) == derived


def test_our_files_have_the_reference_s_form() -> None:
    sample = json.loads(DOCUMENT["cases"][0]["file"])
    ours = json.loads(TEXT)
    assert list(ours) == list(sample)
    assert {name: type(value) for name, value in ours.items()} == {name: type(value) for name, value in sample.items()}
    assert {name: len(ours[name]) for name in ("salt", "nonce", "ciphertext", "publicKey")} == {
        name: len(sample[name]) for name in ("salt", "nonce", "ciphertext", "publicKey")
    }
    assert json.dumps(ours, indent=2) == TEXT
    assert sample["argon2Params"] == encrypted_file.DEFAULT_COST._asdict()


# --- making, using, deleting ------------------------------------------------------------------------------------------


def test_create_sign_delete(tmp_path: Path) -> None:
    """With the default cost."""
    store = EncryptedFileKeyStore(tmp_path / "keys", lambda: PASSPHRASE)
    alias, public_key = store.create()
    path = tmp_path / "keys" / f"{alias}.key.json"
    assert alias == device_id(public_key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["argon2Params"] == {"t": 3, "m": 65536, "p": 1}
    assert store.public_key(alias) == public_key
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert os.listdir(path.parent) == [path.name]
    store.delete(alias)
    store.delete(alias)
    assert not path.exists()
    with pytest.raises(KeyStoreError, match="no key file"):
        store.sign(alias, b"m")


def test_two_files_of_one_key_differ() -> None:
    again = parse_key_file(encrypt_key_file(KEY, PASSPHRASE, CHEAP_ARGON2))
    first = parse_key_file(TEXT)
    assert all(one != other for one, other in zip(again[:3], first[:3], strict=True))


def test_the_key_is_unlocked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derive, calls = encrypted_file.hash_secret_raw, []

    def counted(**arguments: Any) -> bytes:
        calls.append(threading.get_ident())
        return derive(**arguments)

    monkeypatch.setattr(encrypted_file, "hash_secret_raw", counted)
    store = store_with(tmp_path)
    barrier = threading.Barrier(8)
    signatures = []

    def work() -> None:
        barrier.wait()
        signatures.append(store.sign("k", b"m"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.seal_secret("k")
    assert len(signatures) == 8
    assert all(verify_signature(PUBLIC, b"m", signature) for signature in signatures)
    assert len(calls) == 1


def test_nothing_is_kept_of_a_failed_unlocking(tmp_path: Path) -> None:
    answers = iter(["wrong", PASSPHRASE])
    (tmp_path / "k.key.json").write_text(TEXT)
    store = EncryptedFileKeyStore(tmp_path, lambda: next(answers))
    with pytest.raises(WrongPassphrase):
        store.sign("k", b"m")
    assert verify_signature(PUBLIC, b"m", store.sign("k", b"m"))


# --- what is wrong with it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ["bad horse", "Correct horse", "correct horse ", "\ud800"])
def test_a_wrong_passphrase(tmp_path: Path, passphrase: str) -> None:
    with pytest.raises(WrongPassphrase) as caught:
        store_with(tmp_path, passphrase=passphrase).sign("k", b"m")
    assert "AUTH_MESH_PASSPHRASE" in str(caught.value)
    assert passphrase not in repr(caught.value)
    assert caught.value.__context__ is None or passphrase not in repr(vars(caught.value.__context__))


def test_an_empty_passphrase_is_never_used(tmp_path: Path) -> None:
    with pytest.raises(PassphraseRequired, match="AUTH_MESH_PASSPHRASE required"):
        encrypt_key_file(KEY, "")
    with pytest.raises(PassphraseRequired, match="AUTH_MESH_PASSPHRASE required"):
        store_with(tmp_path, passphrase="").sign("k", b"m")


DAMAGE: dict[str, str] = {
    "empty": "",
    "not JSON": "{",
    "truncated": TEXT[: len(TEXT) // 2],
    "a list": "[]",
    "deep": "[" * 100_000,
    "a member missing": json.dumps({"salt": "AA=="}),
    "salt empty": changed(salt=""),
    "salt short": changed(salt=b64encode(bytes(15))),
    "salt not base64": changed(salt="*" * 24),
    "salt a number": changed(salt=16),
    "nonce long": changed(nonce=b64encode(bytes(16))),
    "ciphertext empty": changed(ciphertext=""),
    "ciphertext without its tag": changed(ciphertext=b64encode(bytes(32))),
    "public key short": changed(publicKey="AAAA"),
    "no parameters": changed(argon2Params=None),
    "no passes": changed(argon2Params={"t": 0, "m": 65536, "p": 1}),
    "too many passes": changed(argon2Params={"t": 17, "m": 65536, "p": 1}),
    "too much memory": changed(argon2Params={"t": 3, "m": 1 << 30, "p": 1}),
    "too little memory": changed(argon2Params={"t": 3, "m": 8, "p": 2}),
    "too many lanes": changed(argon2Params={"t": 3, "m": 65536, "p": 1000}),
    "a truth value": changed(argon2Params={"t": True, "m": 65536, "p": 1}),
    "a fraction": changed(argon2Params={"t": 3.5, "m": 65536, "p": 1}),
    "text": changed(argon2Params={"t": "3", "m": 65536, "p": 1}),
}


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    store = store_with(tmp_path, text)
    for use in (store.sign, lambda alias, _: store.public_key(alias)):
        with pytest.raises(
            KeyStoreError,
            match=r"damaged .*Restore it from a backup. Or to make a new identity, run amesh init --name NAME --force",
        ) as caught:
            use("k", b"m")
        assert not isinstance(caught.value, WrongPassphrase)


def test_a_file_that_is_not_text_or_not_a_file(tmp_path: Path) -> None:
    store = EncryptedFileKeyStore(tmp_path, lambda: PASSPHRASE)
    (tmp_path / "bytes.key.json").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.key.json").mkdir()
    for alias in ("bytes", "folder"):
        with pytest.raises(KeyStoreError, match="Check its owner and permissions"):
            store.sign(alias, b"m")
    with pytest.raises(StorageError, match="cannot be deleted"):
        store.delete("folder")


@pytest.mark.parametrize(
    "private_key", [b"", bytes(32), bytes(31), b"\xff" * 32], ids=["empty", "zero", "short", "large"]
)
def test_an_empty_or_truncated_key_is_never_a_key(private_key: bytes) -> None:
    with pytest.raises(InvalidInput):
        encrypt_key_file(private_key, PASSPHRASE, CHEAP_ARGON2)


def test_a_file_that_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid tag around a zero key, as a faulty program may have written it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = encrypted_file._derive(PASSPHRASE, bytes(16), CHEAP_ARGON2)
    text = changed(
        salt=b64encode(bytes(16)),
        nonce=b64encode(bytes(12)),
        ciphertext=b64encode(AESGCM(key).encrypt(bytes(12), bytes(32), None)),
    )
    with pytest.raises(KeyStoreError, match="it has no private key"):
        store_with(tmp_path, text).sign("k", b"m")


ALIASES = ["", ".", "..", "../k", "a/b", "a\\b", "a.b", "k\n", " k", "é", "x" * 129, "\0", "%2e%2e", "Ⅷ"]


@pytest.mark.parametrize("alias", ALIASES, ids=ascii)
def test_an_alias_never_reaches_a_path_unchecked(tmp_path: Path, alias: str) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    (tmp_path / "k.key.json").write_text(TEXT)
    store = EncryptedFileKeyStore(folder, lambda: PASSPHRASE)
    uses: list[Callable[[str], object]] = [
        store.public_key,
        store.seal_secret,
        store.delete,
        lambda name: store.sign(name, b"m"),
    ]
    for use in uses:
        with pytest.raises(KeyStoreError, match="alias"):
            use(alias)
    assert (tmp_path / "k.key.json").exists()


@pytest.mark.process
def test_too_little_memory_is_said(tmp_path: Path) -> None:
    """Run in a separate process whose address space is limited."""
    (tmp_path / "k.key.json").write_text(changed(argon2Params={"t": 1, "m": 1 << 20, "p": 1}))
    code = f"""
import resource
from pathlib import Path
from authmesh.keystore import EncryptedFileKeyStore
from authmesh.protocol import KeyStoreError
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
try:
    EncryptedFileKeyStore(Path({str(tmp_path)!r}), lambda: "x").sign("k", b"m")
except KeyStoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1024 MiB of memory" in done.stdout, done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_the_best_back_end_is_chosen_and_each_is_reported() -> None:
    tried: list[tuple[str, KeyStoreError | None]] = []
    chosen = keystore.choose(report=lambda backend, problem: tried.append((backend, problem)))
    assert tried[-1] == (chosen, None)
    assert [backend for backend, _ in tried] == list(keystore.BACKENDS)[: len(tried)]
    assert all(problem is not None for _, problem in tried[:-1])
    assert keystore.choose("encrypted-file") == "encrypted-file"


@pytest.mark.skipif(sys.platform == "darwin", reason="this machine has it")
def test_a_back_end_that_is_not_here() -> None:
    with pytest.raises(BackendUnavailable, match="needs macOS"):
        keystore.choose("keychain")
    with pytest.raises(BackendUnavailable, match="needs macOS"):
        keystore.open_key_store("secure-enclave", folder=Path(), passphrase=lambda: "")
    with pytest.raises(BackendUnavailable, match="Choose one of"):
        keystore.choose("floppy")

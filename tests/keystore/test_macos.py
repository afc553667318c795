"""The key stores of macOS, with a replacement of Apple's Security framework. They have not run on a Mac."""

from __future__ import annotations

import builtins
import json
import logging
import os
import platform
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from amesh_django.test.devices import EphemeralDevice
from authmesh import keystore
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.keystore.macos import chain as macos_chain
from authmesh.keystore.macos import store as macos
from authmesh.keystore.macos.store import KeychainKeyStore, MacKeyStore, SecureEnclaveKeyStore
from authmesh.protocol import InvalidInput, KeyStoreError, load_public_key, verify_signature
from authmesh.protocol.errors import BackendUnavailable, StorageError
from authmesh.protocol.keys import HALF_ORDER
from tests.keystore import macos_security
from tests.keystore.macos_security import NSError, SecKey, Security, install
from tests.support.front_ends import invoke

STORES = [SecureEnclaveKeyStore, KeychainKeyStore]
NO_TPM = {"AMESH_TPM_TCTI": "none"}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Security:
    """A Mac whose Python is signed for the Secure Enclave."""
    return install(monkeypatch, Security(entitled=True))


@pytest.fixture(params=STORES, ids=lambda store: store.backend)
def store(request: pytest.FixtureRequest, mac: Security, tmp_path: Path) -> MacKeyStore:
    made: MacKeyStore = request.param(tmp_path)
    return made


def items(mac: Security) -> list[macos_security.Item]:
    return mac.file + mac.data_protection


def chain_of(mac: Security, store: MacKeyStore) -> list[macos_security.Item]:
    return mac.data_protection if isinstance(store, SecureEnclaveKeyStore) else mac.file


# --- a key ------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_used_and_deleted(mac: Security, store: MacKeyStore, tmp_path: Path) -> None:
    alias, public_key = store.create()
    assert keystore.base.check_alias(alias) == alias != store.create().alias
    assert store.public_key(alias) == public_key and len(public_key) == 33
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert not verify_signature(public_key, b"n", store.sign(alias, b"m"))
    again = type(store)(tmp_path)
    assert again.public_key(alias) == public_key
    assert verify_signature(public_key, b"m", again.sign(alias, b"m"))
    assert again.seal_secret(alias) == store.seal_secret(alias)
    assert len(again.seal_secret(alias)) == 32
    before = len(items(mac))
    again.delete(alias)
    again.delete(alias)
    halves = 1 if isinstance(store, SecureEnclaveKeyStore) else 2
    assert len(items(mac)) == before - halves - 1
    assert os.listdir(tmp_path) == []
    for use in (lambda: again.sign(alias, b"m"), lambda: again.public_key(alias), lambda: again.seal_secret(alias)):
        with pytest.raises(KeyStoreError, match="amesh init --name NAME --force"):
            use()


def test_where_things_lie(mac: Security, store: MacKeyStore) -> None:
    alias = store.create().alias
    lying = chain_of(mac, store)
    assert items(mac) == lying
    keys = [item for item in lying if item.attributes["kSecClass"] == "kSecClassKey"]
    assert {item.attributes["kSecAttrApplicationTag"] for item in keys} == {f"amesh.{alias}".encode()}
    (secret,) = [item for item in lying if item not in keys]
    assert secret.attributes["kSecAttrService"] == "amesh" and secret.attributes["kSecAttrAccount"] == alias
    assert secret.value == store.seal_secret(alias)


def test_signatures_are_low_s_whatever_macos_gives(mac: Security, store: MacKeyStore) -> None:
    alias, public_key = store.create()
    key = load_public_key(public_key)
    for number in range(200):
        message = secrets.token_bytes(number)
        signature = store.sign(alias, message)
        assert len(signature) == 64
        assert int.from_bytes(signature[32:], "big") <= HALF_ORDER
        assert verify_signature(key, message, signature)
    assert 50 < mac.high < 150  # the replacement returned both kinds


def test_stale_items_of_the_same_name_are_removed_first(
    mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda length: "0" * 2 * length)
    alias = "amesh_" + "0" * 32
    lying = chain_of(mac, store)
    for half in ("Private", "Public", "Private"):
        key = ec.generate_private_key(ec.SECP256R1())
        lying.append(mac.key_item(key, f"amesh.{alias}".encode(), half))
    lying.append(mac.key_item(ec.generate_private_key(ec.SECP256R1()), b"com.example.other"))
    password = {"kSecClass": "kSecClassGenericPassword", "kSecAttrService": "amesh", "kSecAttrAccount": alias}
    lying += [macos_security.Item(dict(password), b"old") for _ in range(2)]
    lying.append(macos_security.Item({**password, "kSecAttrService": "other"}, b"theirs"))
    assert store.create().alias == alias
    keys = 1 if isinstance(store, SecureEnclaveKeyStore) else 2
    assert (
        len([item for item in lying if item.attributes.get("kSecAttrApplicationTag") == f"amesh.{alias}".encode()])
        == keys
    )
    assert [item.value for item in lying if item.attributes.get("kSecAttrAccount") == alias] == [
        b"theirs",
        store.seal_secret(alias),
    ]
    assert any(item.attributes.get("kSecAttrApplicationTag") == b"com.example.other" for item in lying)


def test_what_can_not_be_got_rid_of_ends(mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac, "SecItemDelete", lambda query: 0)
    with pytest.raises(KeyStoreError, match="100 items were removed, and there are still more"):
        store.delete("k")
    with pytest.raises(KeyStoreError, match="100 items were removed, and there are still more"):
        store.create()


def test_two_directories_do_not_destroy_each_other_s_keys(mac: Security, store: MacKeyStore, tmp_path: Path) -> None:
    made = [type(store)(tmp_path / name).create() for name in ("a", "b")]
    type(store)(tmp_path / "a").delete(made[0].alias)
    other = type(store)(tmp_path / "b")
    assert verify_signature(made[1].public_key, b"m", other.sign(made[1].alias, b"m"))
    assert len(other.seal_secret(made[1].alias)) == 32


def test_there_is_no_pin(store: MacKeyStore) -> None:
    with pytest.raises(InvalidInput, match="tpm2"):
        store.create(pin="1234")


@pytest.mark.parametrize("alias", ["", "../k", "a/b", "k\n", "ä"])
def test_only_aliases(mac: Security, store: MacKeyStore, alias: str) -> None:
    for use in (store.public_key, store.seal_secret, store.delete, lambda alias: store.sign(alias, b"")):
        with pytest.raises(KeyStoreError, match="alias"):
            use(alias)
    assert mac.calls == []


@pytest.mark.parametrize("point", [b"", b"\x04" + bytes(64), b"\x02" + bytes(32), b"\x04" + b"\xff" * 64, b"\x05" * 65])
def test_what_is_no_point(point: bytes) -> None:
    with pytest.raises(KeyStoreError, match="not a P-256 key"):
        macos_chain.compressed(point)


def test_macos_returns_nonsense(mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = store.create().alias
    monkeypatch.setattr(mac, "SecKeyCreateSignature", lambda *words: (macos_security.NSData(b"\x30\x00"), None))
    with pytest.raises(KeyStoreError, match="DER"):
        store.sign(alias, b"m")
    with pytest.raises(KeyStoreError, match="DER"):
        store.create()
    mac.fail["SecKeyCopyPublicKey"] = 1
    with pytest.raises(KeyStoreError, match="no reason"):
        type(store)(store._folder).public_key(alias)


def test_a_store_that_gives_back_something_else(
    mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mac, "SecItemAdd", lambda given, result: (0, None))
        with pytest.raises(KeyStoreError, match="no secret"):
            store.create()
    other = SecKey(ec.generate_private_key(ec.SECP256R1()), True)
    with monkeypatch.context() as patch:
        patch.setattr(store.chain, "find_key", lambda alias: other)
        with pytest.raises(KeyStoreError, match="does not sign with the key"):
            store.create()
    with monkeypatch.context() as patch:
        patch.setattr(store.chain, "find_secret", lambda alias: bytes(32))
        with pytest.raises(KeyStoreError, match="does not return the secret"):
            store.create()
    assert items(mac) == []


# --- the secret of the seal -------------------------------------------------------------------------------------------


def without_secret(mac: Security, store: MacKeyStore) -> str:
    alias = store.create().alias
    store._secrets.clear()
    lying = chain_of(mac, store)
    lying[:] = [item for item in lying if item.attributes["kSecClass"] == "kSecClassKey"]
    return alias


def test_the_file_of_the_reference_is_read_and_deleted(mac: Security, store: MacKeyStore, tmp_path: Path) -> None:
    alias = without_secret(mac, store)
    secret = secrets.token_bytes(32)
    (tmp_path / f"{alias}.hmac").write_bytes(secret)
    assert store.seal_secret(alias) == secret
    store.delete(alias)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("secret", [b"", b"x", bytes(31), bytes(33)])
def test_a_truncated_secret_is_refused(mac: Security, store: MacKeyStore, tmp_path: Path, secret: bytes) -> None:
    alias = store.create().alias
    store._secrets.clear()
    next(item for item in chain_of(mac, store) if "kSecAttrAccount" in item.attributes).value = secret
    with pytest.raises(KeyStoreError, match=f"in the key chain is .* {len(secret)} bytes"):
        store.seal_secret(alias)
    alias = without_secret(mac, store)
    (tmp_path / f"{alias}.hmac").write_bytes(secret)
    with pytest.raises(KeyStoreError, match=rf"\.hmac is .* {len(secret)} bytes"):
        store.seal_secret(alias)


def test_an_empty_secret_without_an_object(mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = store.create().alias
    store._secrets.clear()
    monkeypatch.setattr(mac, "SecItemCopyMatching", lambda query, result: (0, None))
    with pytest.raises(KeyStoreError, match="has 0 bytes"):
        store.seal_secret(alias)


def test_a_file_does_not_replace_the_secret_of_the_key_chain(mac: Security, store: MacKeyStore, tmp_path: Path) -> None:
    """Someone who can only write files must not be able to seal a list."""
    alias = store.create().alias
    secret = store.seal_secret(alias)
    (tmp_path / f"{alias}.hmac").write_bytes(bytes(32))
    assert type(store)(tmp_path).seal_secret(alias) == secret
    mac.fail["SecItemCopyMatching"] = macos_security.LOCKED
    with pytest.raises(KeyStoreError, match="locked"):
        type(store)(tmp_path).seal_secret(alias)


def test_a_file_that_can_not_be_read_or_removed(
    mac: Security, store: MacKeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = without_secret(mac, store)
    (tmp_path / f"{alias}.hmac").mkdir()
    with pytest.raises(KeyStoreError, match="can't be read"):
        store.seal_secret(alias)

    def refused(path: Path, missing_ok: bool) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(StorageError, match=r"\.hmac can't be deleted"):
            store.delete(alias)
    assert items(mac) == []
    (tmp_path / "file").write_text("")
    type(store)(tmp_path / "file").delete("k")


# --- errors of macOS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (-128, "was denied or closed"),
        (-25308, "security unlock-keychain"),
        (-25315, "security unlock-keychain"),
        (-2070, "security unlock-keychain"),
        (-25293, "Keychain Access"),
        (-34018, "not signed"),
        (-25299, "at the same time"),
        (-25307, "no key chain"),
        (-25291, "no key chain"),
        (-4, "does not support it"),
        (-26276, "login session"),
        (-50, "does not support the request"),
        (-67000, "security error -67000"),
    ],
)
def test_each_status_has_its_sentence(mac: Security, store: MacKeyStore, status: int, text: str) -> None:
    alias = store.create().alias
    functions: dict[str, Any] = {
        "SecKeyCreateRandomKey": store.create,
        "SecItemAdd": store.create,
        "SecItemCopyMatching": lambda: type(store)(store._folder).seal_secret(alias),
        "SecItemDelete": lambda: store.delete(alias),
        "SecKeyCreateSignature": lambda: store.sign(alias, b"m"),
        "SecKeyCopyExternalRepresentation": lambda: type(store)(store._folder).public_key(alias),
    }
    if isinstance(store, SecureEnclaveKeyStore):
        functions["SecAccessControlCreateWithFlags"] = store.create
    for function, use in functions.items():
        before = len(items(mac))
        mac.fail = {function: status}
        with pytest.raises(KeyStoreError, match=text) as caught:
            use()
        assert f"({status}, " in str(caught.value)
        assert isinstance(caught.value, BackendUnavailable) == (status == -34018)
        mac.fail = {}
        assert len(items(mac)) == before, function
        if function == "SecItemDelete":
            assert verify_signature(store.public_key(alias), b"m", store.sign(alias, b"m"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NSError(-2, "com.apple.LocalAuthentication"), "was denied or closed"),
        (NSError(-1004, "com.apple.LocalAuthentication"), "unlock-keychain"),
        (NSError(-128, "CryptoTokenKit"), r"CryptoTokenKit -128\): The operation"),
        (NSError(-77, "com.apple.LocalAuthentication"), r"LocalAuthentication -77\): The operation"),
    ],
)
def test_numbers_mean_something_within_their_domain(
    mac: Security, store: MacKeyStore, error: NSError, text: str
) -> None:
    alias = store.create().alias
    mac.fail["SecKeyCreateSignature"] = error
    with pytest.raises(KeyStoreError, match=text):
        store.sign(alias, b"m")


def test_no_reason_at_all(mac: Security, store: MacKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac, "SecKeyCreateRandomKey", lambda parameters, error: (None, None))
    with pytest.raises(KeyStoreError, match="gives no reason"):
        store.create()


def test_a_locked_key_chain_and_then_an_open_one(mac: Security, tmp_path: Path) -> None:
    store = KeychainKeyStore(tmp_path)
    alias, public_key = store.create()
    mac.locked = True
    other = KeychainKeyStore(tmp_path)
    for use in (lambda: store.sign(alias, b"m"), lambda: other.seal_secret(alias), store.create):
        with pytest.raises(KeyStoreError, match="locked"):
            use()
    mac.locked = False
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert len(other.seal_secret(alias)) == 32


def test_a_key_is_looked_up_again_after_a_failure(mac: Security, store: MacKeyStore) -> None:
    alias = store.create().alias
    mac.calls.clear()
    store.sign(alias, b"m")
    assert "SecItemCopyMatching" not in mac.calls
    mac.fail["SecKeyCreateSignature"] = macos_security.CANCELED
    with pytest.raises(KeyStoreError):
        store.sign(alias, b"m")
    mac.fail.clear()
    store.sign(alias, b"m")
    assert "SecItemCopyMatching" in mac.calls


def test_a_failure_leaves_nothing_and_its_own_reason(mac: Security, store: MacKeyStore) -> None:
    mac.fail["SecKeyCreateSignature"] = macos_security.CANCELED
    with pytest.raises(KeyStoreError, match="was denied or closed"):
        store.create()
    assert items(mac) == []

    def interrupted(*words: Any) -> Any:
        raise KeyboardInterrupt

    mac.SecKeyCreateSignature = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.create()
    assert items(mac) == []


# --- threads and forks ------------------------------------------------------------------------------------------------


def test_threads_look_the_key_up_once(mac: Security, store: MacKeyStore, tmp_path: Path) -> None:
    alias, public_key = store.create()
    other = type(store)(tmp_path)
    mac.calls.clear()
    signatures: list[bytes] = []
    threads = [threading.Thread(target=lambda: signatures.append(other.sign(alias, b"m"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 8 and all(verify_signature(public_key, b"m", signature) for signature in signatures)
    assert mac.calls.count("SecItemCopyMatching") == 1


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_gets_its_own_key(mac: Security, store: MacKeyStore) -> None:
    """The replacement rejects references of another process. The lock may be held while the parent forks."""
    alias, public_key = store.create()
    store.sign(alias, b"m")
    with store._lock:
        child = os.fork()
        if child == 0:
            good = verify_signature(public_key, b"m", store.sign(alias, b"m")) and len(store.seal_secret(alias)) == 32
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- choosing ---------------------------------------------------------------------------------------------------------


def tried_here(**environ: str) -> tuple[str, dict[str, KeyStoreError | None]]:
    tried: dict[str, KeyStoreError | None] = {}
    chosen = keystore.choose(report=lambda name, problem: tried.update({name: problem}), environ={**NO_TPM, **environ})
    return chosen, tried


def test_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = install(monkeypatch, Security(entitled=True))
    assert tried_here() == ("secure-enclave", {"secure-enclave": None})
    mac.entitled = False
    chosen, tried = tried_here()
    assert chosen == "keychain" and list(tried) == ["secure-enclave", "keychain"]
    assert "(-34018, errSecMissingEntitlement): this Python is not signed for it" in str(tried["secure-enclave"])
    mac.entitled, mac.enclave = True, False
    chosen, tried = tried_here()
    assert chosen == "keychain" and "does not support it" in str(tried["secure-enclave"])
    mac.locked = True
    chosen, tried = tried_here()
    assert chosen == "encrypted-file" and list(tried) == list(keystore.BACKENDS)
    assert "locked" in str(tried["keychain"])
    for problem in tried.values():
        assert problem is None or (problem.message[0].isupper() and problem.message.endswith(".") and problem.hint)
    with pytest.raises(
        BackendUnavailable, match=r"keychain can't be used on this machine. No key can be created .* locked"
    ):
        keystore.choose("keychain")
    assert items(mac) == []  # nothing remains of the keys that were tried


def test_a_trial_that_was_killed_is_cleaned_up_by_the_next(mac: Security) -> None:
    for chain in (mac.file, mac.data_protection):
        chain += [mac.key_item(ec.generate_private_key(ec.SECP256R1()), b"amesh.probe") for _ in range(3)]
    assert all(macos.unavailable(store) is None for store in STORES)
    assert items(mac) == []


def test_without_pyobjc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.delitem(sys.modules, "Security", raising=False)
    chosen, tried = tried_here()
    assert chosen == "encrypted-file"
    assert "pip install 'amesh-django[macos]'" in str(tried["secure-enclave"])
    assert str(tried["secure-enclave"]) == str(tried["keychain"])
    with pytest.raises(BackendUnavailable, match=r"in the key store keychain, which can't be used\. .*\[macos\]"):
        keystore.open_key_store("keychain", folder=Path(), passphrase=lambda: "")


def test_a_pyobjc_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = install(monkeypatch, Security())
    del mac.kSecUseDataProtectionKeychain
    assert "10.15" in str(macos.missing())
    monkeypatch.delitem(sys.modules, "Security")
    real = builtins.__import__

    def broken(name: str, *words: Any, **more: Any) -> Any:
        if name == "Security":
            raise ImportError("dlopen failed\nand more")
        return real(name, *words, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert "can't be loaded (dlopen failed and more). Reinstall it" in str(macos.missing())


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    for problem in (macos.missing(), macos.unavailable(KeychainKeyStore), keystore.unavailable("secure-enclave")):
        assert str(problem) == "It needs macOS."


def test_opening_asks_nothing(mac: Security, tmp_path: Path) -> None:
    for backend, kind in (("secure-enclave", SecureEnclaveKeyStore), ("keychain", KeychainKeyStore)):
        assert type(keystore.open_key_store(backend, folder=tmp_path, passphrase=lambda: "")) is kind
    assert mac.calls == []


# --- as a whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entitled", [True, False])
def test_init_and_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entitled: bool) -> None:
    mac = install(monkeypatch, Security(entitled=entitled))
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "amesh"))
    done = invoke(["init", "--name", "laptop", "--explain"])
    assert done.exit_code == 0, done.output
    identity = read_identity(tmp_path / "amesh")
    if entitled:
        assert "secure-enclave  yes" in done.stdout and "protected by hardware" in done.stdout
    else:
        assert "secure-enclave  no: No key can be created in the Secure Enclave" in done.stdout
        assert "keychain        yes" in done.stdout and "Warning: The key is protected by software only" in done.stdout
    assert identity.storage_backend == ("secure-enclave" if entitled else "keychain")
    assert json.loads((tmp_path / "amesh" / "identity.json").read_text())["keyAlias"] == identity.key_alias
    assert not (tmp_path / "amesh" / ".passphrase").exists()
    assert not [name for _, _, names in os.walk(tmp_path / "amesh" / "keys") for name in names]
    FileAllowList(LocalDevice(tmp_path / "amesh")).add(EphemeralDevice("phone").entry())
    device = LocalDevice(tmp_path / "amesh")
    assert [entry.friendly_name for entry in FileAllowList(device).read()] == ["phone"]
    assert verify_signature(identity.public_key, b"m", device.sign(b"m"))
    before = len(items(mac))
    done = invoke(["init", "--name", "laptop", "--force", "--yes"])
    assert done.exit_code == 0, done.output
    replaced = read_identity(tmp_path / "amesh")
    assert replaced.key_alias != identity.key_alias and len(items(mac)) == before
    assert verify_signature(replaced.public_key, b"m", LocalDevice(tmp_path / "amesh").sign(b"m"))


def test_init_that_fails_keeps_the_old_identity(mac: Security, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "amesh"))
    assert invoke(["init", "--name", "laptop"]).exit_code == 0
    old, before = read_identity(tmp_path / "amesh"), len(items(mac))
    mac.fail["SecItemAdd"] = macos_security.LOCKED
    done = invoke(["init", "--name", "laptop", "--force", "--yes"])
    assert done.exit_code == 1 and "locked" in done.stderr
    mac.fail.clear()
    assert len(items(mac)) == before
    assert verify_signature(old.public_key, b"m", LocalDevice(tmp_path / "amesh").sign(b"m"))


def test_a_directory_of_another_mac(mac: Security, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "amesh"))
    assert invoke(["init", "--name", "laptop"]).exit_code == 0
    install(monkeypatch, Security(entitled=True))
    with pytest.raises(KeyStoreError, match="the Mac that created it"):
        LocalDevice(tmp_path / "amesh").sign(b"m")


def test_nothing_secret_is_shown(store: MacKeyStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = store.seal_secret(store.create().alias)
    for form in (secret.hex(), repr(secret)):
        assert form not in caplog.text + repr(store) + repr(store.chain)


# --- the replacement itself ------------------------------------------------------------------------------------------------


def test_the_stand_in_is_strict(mac: Security) -> None:
    query = {
        "kSecClass": "kSecClassKey",
        "kSecAttrApplicationTag": b"t",
        "kSecAttrKeyClass": "kSecAttrKeyClassPrivate",
    }
    assert mac.SecItemDelete(query) == macos_security.NOT_FOUND
    for wrong in (
        {**query, "kSecMatchLimit": "kSecMatchLimitAll"},
        {**query, "kSecAttrAccount": "a"},
        {**query, "kSecAttrApplicationTag": "t"},
        {**query, "kSecUseDataProtectionKeychain": 1},
        {"kSecAttrApplicationTag": b"t"},
        {"kSecClass": "kSecClassKey", "kSecAttrApplicationTag": b"t"},
    ):
        with pytest.raises((ValueError, TypeError)):
            mac.SecItemDelete(wrong)
    with pytest.raises(AttributeError):
        _ = mac.kSecAttrNoSuchThing
    with pytest.raises(TypeError):
        mac.SecKeyCreateRandomKey({}, 0)

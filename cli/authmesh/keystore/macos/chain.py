"""The calls of Apple's Security framework through PyObjC: keys and secrets in a key chain (TN3137; SecItem.h; SecKey.h).

This module was written from the documentation of Apple and PyObjC; it has not run on a Mac yet. PyObjC takes None for an output
argument and returns a tuple: the result, then the value of the argument. ``bytes`` are passed as CFData; CFData is returned as NSData.

Apple's pages: "Generating new cryptographic keys", "Protecting keys with the Secure Enclave", "Storing keys in the keychain",
"Signing and verifying", "SecItemDelete(_:)", "kSecUseDataProtectionKeychain"; the technote TN3137 "On Mac keychain APIs and
implementations".
"""

from __future__ import annotations

import platform
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from authmesh.protocol.errors import BackendUnavailable, InvalidInput, KeyStoreError
from authmesh.protocol.keys import public_key_bytes, signature_from_der

from ..base import NEW_IDENTITY
from .codes import ITEM_NOT_FOUND, SUCCESS, refusal, refusal_of

#: Prefix of the alias in the tag of a key, and service of a secret.
SERVICE: Final = "amesh"
#: Alias of the key that :meth:`KeyChain.probe` creates. No other key has it.
PROBE: Final = "probe"
#: Items of one name that are removed before an error is raised.
MAX_ITEMS: Final = 100

_POINT_BYTES: Final = 65


def load_library() -> Any:
    """Return PyObjC's module ``Security``.

    Raises:
        BackendUnavailable: this machine is not a Mac, or the module is not installed or too old.
    """
    if platform.system() != "Darwin":
        raise BackendUnavailable("It needs macOS.")
    try:
        import Security
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"The Python package pyobjc-framework-Security is missing ({error.name}).",
            hint="Install it: pip install 'amesh-django[macos]'",
        ) from None
    except ImportError as error:
        raise BackendUnavailable(
            f"The Python package pyobjc-framework-Security cannot be loaded ({' '.join(str(error).split())}).",
            hint="Reinstall it: pip install --force-reinstall 'amesh-django[macos]'",
        ) from None
    if not hasattr(Security, "kSecUseDataProtectionKeychain"):
        raise BackendUnavailable("It needs macOS 10.15 or later, and a version of PyObjC that supports it.")
    return Security


class KeyChain:
    """One of the two key chains of a Mac.

    Args:
        enclave: True for the data protection key chain with keys in the Secure Enclave; False for the file-based key chain of the
            user (usually "login") with keys in software.
    """

    def __init__(self, *, enclave: bool) -> None:
        self._enclave = enclave
        self._name = "the Secure Enclave" if enclave else "the key chain"

    def make_key(self, alias: str) -> Any:
        """Create a P-256 key, after removing any items with the same alias.

        Returns:
            the private key, a SecKey.

        Raises:
            KeyStoreError: macOS returned an error; nothing remains of the key.
        """
        failure = f"No key can be created in {self._name}"
        self._remove_keys(alias, failure)
        library = load_library()
        parameters = {
            library.kSecAttrKeyType: library.kSecAttrKeyTypeECSECPrimeRandom,
            library.kSecAttrKeySizeInBits: 256,
            library.kSecAttrLabel: _label(alias),
        }
        stored = {library.kSecAttrIsPermanent: True, library.kSecAttrApplicationTag: _tag(alias)}
        if self._enclave:
            parameters[library.kSecUseDataProtectionKeychain] = True
            parameters[library.kSecAttrTokenID] = library.kSecAttrTokenIDSecureEnclave
            parameters[library.kSecPrivateKeyAttrs] = {**stored, library.kSecAttrAccessControl: self._access_control()}
        else:
            # Both halves get the tag, so that both are found when they must be removed.
            parameters[library.kSecPrivateKeyAttrs] = dict(stored)
            parameters[library.kSecPublicKeyAttrs] = dict(stored)
        key, error = library.SecKeyCreateRandomKey(parameters, None)
        if key is None:
            raise refusal_of(error, failure)
        return key

    def find_key(self, alias: str) -> Any:
        """Return the private key with this alias, a SecKey.

        Raises:
            KeyStoreError: there is none, or macOS returned an error.
        """
        library = load_library()
        query = {
            **self._keys(alias, library.kSecAttrKeyClassPrivate),
            library.kSecReturnRef: True,
            library.kSecMatchLimit: library.kSecMatchLimitOne,
        }
        status, key = library.SecItemCopyMatching(query, None)
        if status != SUCCESS or key is None:
            raise refusal(status or ITEM_NOT_FOUND, f"The key {alias} cannot be read from {self._name}")
        return key

    def public_key(self, private_key: Any) -> bytes:
        """Return the public key of a SecKey, 33 bytes.

        Raises:
            KeyStoreError: macOS does not return it, or not as a point of P-256.
        """
        library = load_library()
        public = library.SecKeyCopyPublicKey(private_key)
        if public is None:
            raise KeyStoreError(
                f"The public key cannot be read from {self._name}: macOS gives no reason.",
                hint=("Unlock the key chain. Or to make a new identity, run ", NEW_IDENTITY, "."),
            )
        data, error = library.SecKeyCopyExternalRepresentation(public, None)
        if data is None:
            raise refusal_of(error, f"The public key cannot be read from {self._name}")
        return compressed(bytes(data))

    def sign(self, private_key: Any, message: bytes) -> bytes:
        """Return the ECDSA signature of SHA-256(message): ``r || s``, low-S, 64 bytes. macOS returns DER with a low or high s.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        library = load_library()
        algorithm = library.kSecKeyAlgorithmECDSASignatureMessageX962SHA256
        der, error = library.SecKeyCreateSignature(private_key, algorithm, bytes(message), None)
        if der is None:
            raise refusal_of(error, f"No signature can be created in {self._name}")
        try:
            return signature_from_der(bytes(der))
        except InvalidInput as error:
            raise KeyStoreError(error.message, hint=error.hint) from None

    def keep_secret(self, alias: str, secret: bytes) -> None:
        """Store *secret* as a generic password, after removing any secrets with the same alias.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        self.remove_secrets(alias)
        library = load_library()
        item = {**self._secrets(alias), library.kSecAttrLabel: _label(alias), library.kSecValueData: secret}
        if self._enclave:  # the file-based key chain has no protection classes
            item[library.kSecAttrAccessible] = library.kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
        status, _ = library.SecItemAdd(item, None)
        if status != SUCCESS:
            raise refusal(status, "The secret of the seal cannot be stored in the key chain")

    def find_secret(self, alias: str) -> bytes | None:
        """Return the secret with this alias, or None if there is none.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        library = load_library()
        query = {
            **self._secrets(alias),
            library.kSecReturnData: True,
            library.kSecMatchLimit: library.kSecMatchLimitOne,
        }
        status, data = library.SecItemCopyMatching(query, None)
        if status == ITEM_NOT_FOUND:
            return None
        if status != SUCCESS:
            raise refusal(status, "The secret of the seal cannot be read from the key chain")
        return bytes(data) if data is not None else b""  # macOS returns no object for an empty item

    def remove_keys(self, alias: str) -> None:
        """Remove all keys with this alias, both halves.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        self._remove_keys(alias, f"The key {alias} cannot be removed from {self._name}")

    def remove_secrets(self, alias: str) -> None:
        """Remove all secrets with this alias.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        self._remove(self._secrets(alias), "The secret of the seal cannot be removed from the key chain")

    def probe(self) -> None:
        """Create a key and remove it. There is no other way to find out if this program may store keys.

        A key outside the key chain would not prove it, because the Secure Enclave creates such keys for all programs.

        Raises:
            KeyStoreError: macOS returned an error.
        """
        self.make_key(PROBE)
        self.remove_keys(PROBE)

    def _remove_keys(self, alias: str, failure: str) -> None:
        # In the file-based key chain the two halves are items of different kinds, and a search finds one kind.
        library = load_library()
        for half in (library.kSecAttrKeyClassPublic, library.kSecAttrKeyClassPrivate):
            self._remove(self._keys(alias, half), failure)

    def _remove(self, query: dict[Any, Any], failure: str) -> None:
        # The file-based key chain removes the first of several items, the other one all. Neither returns how many remain.
        library = load_library()
        for _ in range(MAX_ITEMS):
            status = library.SecItemDelete(query)
            if status == ITEM_NOT_FOUND:
                return
            if status != SUCCESS:
                raise refusal(status, failure)
        raise KeyStoreError(
            f"{failure}: {MAX_ITEMS} items were removed, and there are still more.",
            hint=f"Remove the items named {SERVICE} in the app Keychain Access.",
        )

    def _keys(self, alias: str, half: Any) -> dict[Any, Any]:
        library = load_library()
        return {
            library.kSecClass: library.kSecClassKey,
            library.kSecAttrKeyClass: half,
            library.kSecAttrApplicationTag: _tag(alias),
            library.kSecUseDataProtectionKeychain: self._enclave,
        }

    def _secrets(self, alias: str) -> dict[Any, Any]:
        library = load_library()
        return {
            library.kSecClass: library.kSecClassGenericPassword,
            library.kSecAttrService: SERVICE,
            library.kSecAttrAccount: alias,
            library.kSecUseDataProtectionKeychain: self._enclave,
        }

    def _access_control(self) -> Any:
        # No presence of a person is required, because a device signs without one. After the first login, the screen may be locked.
        library = load_library()
        control, error = library.SecAccessControlCreateWithFlags(
            None,
            library.kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly,
            library.kSecAccessControlPrivateKeyUsage,
            None,
        )
        if control is None:
            raise refusal_of(error, f"No key can be created in {self._name}")
        return control


def compressed(point: bytes) -> bytes:
    """Return the 33 bytes of an uncompressed X9.63 point, the form in which macOS returns public keys.

    Raises:
        KeyStoreError: not 65 bytes, or not a point of P-256.
    """
    try:
        if len(point) != _POINT_BYTES:
            raise ValueError
        return public_key_bytes(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    except ValueError:
        raise KeyStoreError(
            "macOS returned something that is not a P-256 key.",
            hint=("To make a new identity, run ", NEW_IDENTITY, "."),
        ) from None


def _tag(alias: str) -> bytes:
    return f"{SERVICE}.{alias}".encode()


def _label(alias: str) -> str:
    return f"{SERVICE} {alias}"

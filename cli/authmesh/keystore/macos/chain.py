"""The calls of Apple's Security framework, through PyObjC: keys and secrets in a key chain (TN3137; SecItem.h; SecKey.h).

Written against Apple's documentation and PyObjC's; it has not run on a Mac yet. PyObjC takes None for an output argument and
returns a tuple: the result, then what the argument was filled with. ``bytes`` go in as CFData, CFData comes out as NSData.

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

from .codes import ITEM_NOT_FOUND, SUCCESS, refusal, refusal_of

#: Stands before the alias in the tag of a key, and is the service of a secret.
SERVICE: Final = "amesh"
#: The name under which a key is made in order to see whether one can be made. No alias is ever this.
PROBE: Final = "probe"
#: How many items of one name are removed before something else is wrong.
MOST_ITEMS: Final = 100

_POINT_BYTES: Final = 65


def load_library() -> Any:
    """PyObjC's ``Security``.

    Raises:
        BackendUnavailable: not macOS, not installed, or too old. A reason without a capital letter.
    """
    if platform.system() != "Darwin":
        raise BackendUnavailable("needs macOS")
    try:
        import Security
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"the Python package pyobjc-framework-Security is missing ({error.name}); install it: "
            "pip install 'amesh-django[macos]'"
        ) from None
    except ImportError as error:
        raise BackendUnavailable(
            f"the Python package pyobjc-framework-Security does not load ({str(error).partition(chr(10))[0]}); install it anew: "
            "pip install --force-reinstall 'amesh-django[macos]'"
        ) from None
    if not hasattr(Security, "kSecUseDataProtectionKeychain"):
        raise BackendUnavailable("needs macOS 10.15 or newer, and a PyObjC that knows it")
    return Security


class KeyChain:
    """One of the two key chains of a Mac.

    Args:
        enclave: True for the data protection key chain with keys in the Secure Enclave; False for the file-based one of the user
            (usually "login"), with keys in software.
    """

    def __init__(self, *, enclave: bool) -> None:
        self._enclave = enclave
        self._where = "the Secure Enclave" if enclave else "the key chain"

    def make_key(self, alias: str) -> Any:
        """A new P-256 key under *alias*; what lay there before is removed first.

        Returns:
            The private key, a SecKey.

        Raises:
            KeyStoreError: macOS refuses; nothing is left behind.
        """
        doing = f"No key can be made in {self._where}"
        self._remove_keys(alias, doing)
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
            # Both halves get the tag, so that both are found when they are to be removed.
            parameters[library.kSecPrivateKeyAttrs] = dict(stored)
            parameters[library.kSecPublicKeyAttrs] = dict(stored)
        key, error = library.SecKeyCreateRandomKey(parameters, None)
        if key is None:
            raise refusal_of(error, doing)
        return key

    def find_key(self, alias: str) -> Any:
        """The private key of *alias*, a SecKey.

        Raises:
            KeyStoreError: there is none, or macOS refuses.
        """
        library = load_library()
        query = {
            **self._keys(alias, library.kSecAttrKeyClassPrivate),
            library.kSecReturnRef: True,
            library.kSecMatchLimit: library.kSecMatchLimitOne,
        }
        status, key = library.SecItemCopyMatching(query, None)
        if status != SUCCESS or key is None:
            raise refusal(status or ITEM_NOT_FOUND, f"The key {alias} can't be had from {self._where}")
        return key

    def public_key(self, private_key: Any) -> bytes:
        """The public key of a SecKey, 33 bytes.

        Raises:
            KeyStoreError: macOS does not hand it out, or not as a point of P-256.
        """
        library = load_library()
        public = library.SecKeyCopyPublicKey(private_key)
        if public is None:
            raise KeyStoreError(
                f"The public key can't be had from {self._where}: macOS gives no reason. Unlock the key chain, or make a new "
                "identity: init --force."
            )
        data, error = library.SecKeyCopyExternalRepresentation(public, None)
        if data is None:
            raise refusal_of(error, f"The public key can't be had from {self._where}")
        return compressed(bytes(data))

    def sign(self, private_key: Any, message: bytes) -> bytes:
        """ECDSA over SHA-256(message): ``r || s``, low-S, 64 bytes. macOS gives DER, with either s.

        Raises:
            KeyStoreError: macOS refuses.
        """
        library = load_library()
        algorithm = library.kSecKeyAlgorithmECDSASignatureMessageX962SHA256
        der, error = library.SecKeyCreateSignature(private_key, algorithm, bytes(message), None)
        if der is None:
            raise refusal_of(error, f"{self._where[0].upper()}{self._where[1:]} does not sign")
        try:
            return signature_from_der(bytes(der))
        except InvalidInput as error:
            raise KeyStoreError(str(error)) from None

    def keep_secret(self, alias: str, secret: bytes) -> None:
        """Keep *secret* as a generic password; what lay there before is removed first.

        Raises:
            KeyStoreError: macOS refuses.
        """
        self.remove_secrets(alias)
        library = load_library()
        item = {**self._secrets(alias), library.kSecAttrLabel: _label(alias), library.kSecValueData: secret}
        if self._enclave:  # the file-based key chain knows no classes of protection
            item[library.kSecAttrAccessible] = library.kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
        status, _ = library.SecItemAdd(item, None)
        if status != SUCCESS:
            raise refusal(status, "The secret of the seal can't be kept in the key chain")

    def find_secret(self, alias: str) -> bytes | None:
        """The secret of *alias*; None where there is none.

        Raises:
            KeyStoreError: macOS refuses.
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
            raise refusal(status, "The secret of the seal can't be had from the key chain")
        return bytes(data) if data is not None else b""  # macOS has no object for an item without bytes

    def remove_keys(self, alias: str) -> None:
        """Remove every key of *alias*, both halves.

        Raises:
            KeyStoreError: macOS refuses.
        """
        self._remove_keys(alias, f"The key {alias} can't be removed from {self._where}")

    def remove_secrets(self, alias: str) -> None:
        """Remove every secret of *alias*.

        Raises:
            KeyStoreError: macOS refuses.
        """
        self._remove(self._secrets(alias), "The secret of the seal can't be removed from the key chain")

    def probe(self) -> None:
        """Make a key and remove it: nothing less says whether this program may, here and now.

        A key without a place in the key chain would not do: the Secure Enclave makes those for programs that may keep none.

        Raises:
            KeyStoreError: macOS refuses.
        """
        self.make_key(PROBE)
        self.remove_keys(PROBE)

    def _remove_keys(self, alias: str, doing: str) -> None:
        # The file-based key chain has the two halves as records of two kinds, and a search is for one of them.
        library = load_library()
        for half in (library.kSecAttrKeyClassPublic, library.kSecAttrKeyClassPrivate):
            self._remove(self._keys(alias, half), doing)

    def _remove(self, query: dict[Any, Any], doing: str) -> None:
        # The file-based key chain takes the first of several, the other one takes all; neither says how many are left.
        library = load_library()
        for _ in range(MOST_ITEMS):
            status = library.SecItemDelete(query)
            if status == ITEM_NOT_FOUND:
                return
            if status != SUCCESS:
                raise refusal(status, doing)
        raise KeyStoreError(
            f"{doing}: after {MOST_ITEMS} times there is still one. Remove those named {SERVICE} in the app Keychain Access."
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
        # No presence of a person is asked for: a device signs by itself. After the first login a locked screen does not matter.
        library = load_library()
        control, error = library.SecAccessControlCreateWithFlags(
            None,
            library.kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly,
            library.kSecAccessControlPrivateKeyUsage,
            None,
        )
        if control is None:
            raise refusal_of(error, f"No key can be made in {self._where}")
        return control


def compressed(point: bytes) -> bytes:
    """The 33 bytes of an X9.63 point in its uncompressed form, which is how macOS hands out public keys.

    Raises:
        KeyStoreError: not 65 bytes, or not a point of P-256.
    """
    try:
        if len(point) != _POINT_BYTES:
            raise ValueError
        return public_key_bytes(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    except ValueError:
        raise KeyStoreError(
            "macOS returned something that is not a P-256 key. Make a new identity: init --force."
        ) from None


def _tag(alias: str) -> bytes:
    return f"{SERVICE}.{alias}".encode()


def _label(alias: str) -> str:
    return f"{SERVICE} {alias}"

"""A replacement of PyObjC's ``Security``: the functions that amesh calls, with strict arguments and the results of macOS.

It supports only what Apple documents. An unexpected key of a dictionary, a value of another type, or a constant in the wrong place
raises an error, so that a call that macOS would not understand fails in the tests. In one respect it is stricter than macOS: it
rejects a SecKey of another process, because Apple's frameworks do not survive a fork.
"""

from __future__ import annotations

import os
import platform
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authmesh.protocol.keys import HALF_ORDER

NOT_FOUND, DUPLICATE, CANCELED, LOCKED, AUTH_FAILED = -25300, -25299, -128, -25308, -25293
NOT_ENTITLED, PARAM, UNIMPLEMENTED = -34018, -50, -4

CONSTANTS = [
    "kSecClass",
    "kSecClassKey",
    "kSecClassGenericPassword",
    "kSecAttrLabel",
    "kSecAttrApplicationTag",
    "kSecAttrKeyClass",
    "kSecAttrKeyClassPrivate",
    "kSecAttrKeyClassPublic",
    "kSecAttrKeyType",
    "kSecAttrKeyTypeEC",
    "kSecAttrKeyTypeECSECPrimeRandom",
    "kSecAttrKeySizeInBits",
    "kSecAttrIsPermanent",
    "kSecAttrTokenID",
    "kSecAttrTokenIDSecureEnclave",
    "kSecAttrAccessControl",
    "kSecAttrAccessible",
    "kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly",
    "kSecAttrService",
    "kSecAttrAccount",
    "kSecValueData",
    "kSecPrivateKeyAttrs",
    "kSecPublicKeyAttrs",
    "kSecReturnRef",
    "kSecReturnData",
    "kSecMatchLimit",
    "kSecMatchLimitOne",
    "kSecMatchLimitAll",
    "kSecUseDataProtectionKeychain",
    "kSecKeyAlgorithmECDSASignatureMessageX962SHA256",
    "kSecKeyAlgorithmECDSASignatureDigestX962SHA256",
]


class NSData:
    """CFData as PyObjC returns it: an object that has bytes and is not ``bytes``."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class NSError:
    """CFError as PyObjC returns it."""

    def __init__(self, code: int, domain: str = "NSOSStatusErrorDomain") -> None:
        self._code, self._domain = code, domain

    def code(self) -> int:
        return self._code

    def domain(self) -> str:
        return self._domain

    def localizedDescription(self) -> str:
        return f"The operation couldn’t be completed. ({self._domain} error {self._code}.)"


@dataclass(frozen=True)
class AccessControl:
    protection: str
    flags: int


@dataclass(eq=False)
class SecKey:
    key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey
    data_protection: bool
    process: int = field(default_factory=os.getpid)


@dataclass(eq=False)
class Item:
    attributes: dict[str, Any]
    value: Any


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and value in names


_STORED = {
    "kSecAttrIsPermanent": _is(bool),
    "kSecAttrApplicationTag": _is(bytes),
    "kSecAttrAccessControl": _is(AccessControl),
}
_GENERATE = {
    "kSecAttrKeyType": _one_of("kSecAttrKeyTypeECSECPrimeRandom", "kSecAttrKeyTypeEC"),
    "kSecAttrKeySizeInBits": lambda value: type(value) is int and value == 256,
    "kSecAttrLabel": _is(str),
    "kSecUseDataProtectionKeychain": _is(bool),
    "kSecAttrTokenID": _one_of("kSecAttrTokenIDSecureEnclave"),
    "kSecPrivateKeyAttrs": _is(dict),
    "kSecPublicKeyAttrs": _is(dict),
}
_KEY = {
    "kSecAttrApplicationTag": _is(bytes),
    "kSecAttrLabel": _is(str),
    "kSecAttrKeyClass": _one_of("kSecAttrKeyClassPrivate", "kSecAttrKeyClassPublic"),
}
_PASSWORD = {"kSecAttrService": _is(str), "kSecAttrAccount": _is(str), "kSecAttrLabel": _is(str)}
_ANY = {
    "kSecClass": _one_of("kSecClassKey", "kSecClassGenericPassword"),
    "kSecUseDataProtectionKeychain": _is(bool),
}
_ADD = {"kSecValueData": _is(bytes), "kSecAttrAccessible": _one_of("kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly")}
_FIND = {
    "kSecReturnRef": _is(bool),
    "kSecReturnData": _is(bool),
    "kSecMatchLimit": _one_of("kSecMatchLimitOne", "kSecMatchLimitAll"),
}


def _check(given: Any, known: dict[str, Callable[[Any], bool]], *needed: str) -> dict[str, Any]:
    if type(given) is not dict:
        raise TypeError(f"a CFDictionary is wanted, not {given!r}")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name} does not belong here")
        if not known[name](value):
            raise TypeError(f"{name} is not {value!r}")
    for name in needed:
        if name not in given:
            raise ValueError(f"{name} is missing")
    return given


def _null(argument: Any) -> None:
    if argument is not None:
        raise TypeError("an output argument is None")


class Security(types.ModuleType):
    """The module, with the state of one Mac.

    Attributes:
        entitled: the program is signed for the data protection key chain.
        enclave: this Mac has a Secure Enclave.
        fail: function name → status or CFError with which the function fails.
        locked: the file-based key chain is locked, and no person can be asked.
        file, data_protection: items of the two key chains.
        calls: names of the called functions, in order.
    """

    kSecAccessControlPrivateKeyUsage = 1 << 30

    def __init__(self, *, entitled: bool = False, enclave: bool = True) -> None:
        super().__init__("Security")
        for name in CONSTANTS:
            setattr(self, name, name)
        self.entitled, self.enclave, self.locked = entitled, enclave, False
        self.fail: dict[str, Any] = {}
        self.file: list[Item] = []
        self.data_protection: list[Item] = []
        self.calls: list[str] = []
        self.high = self.signatures = 0

    # --- what Apple has ---

    def SecAccessControlCreateWithFlags(
        self, allocator: Any, protection: Any, flags: Any, error: Any
    ) -> tuple[Any, Any]:
        _null(allocator)
        _null(error)
        if protection != "kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly" or type(flags) is not int:
            raise TypeError((protection, flags))
        refused = self._error("SecAccessControlCreateWithFlags")
        return (None, refused) if refused else (AccessControl(protection, flags), None)

    def SecKeyCreateRandomKey(self, parameters: Any, error: Any) -> tuple[Any, Any]:
        _null(error)
        given = _check(parameters, _GENERATE, "kSecAttrKeyType", "kSecAttrKeySizeInBits", "kSecPrivateKeyAttrs")
        private = _check(given["kSecPrivateKeyAttrs"], _STORED, "kSecAttrIsPermanent")
        public = _check(given.get("kSecPublicKeyAttrs", {}), _STORED)
        protected = given.get("kSecUseDataProtectionKeychain", False)
        refused = self._error("SecKeyCreateRandomKey")
        if refused:
            return None, refused
        if "kSecAttrTokenID" in given:
            control = private.get("kSecAttrAccessControl")
            if not protected or public or control is None or not control.flags & self.kSecAccessControlPrivateKeyUsage:
                return None, NSError(PARAM)
            if not self.enclave:
                return None, NSError(UNIMPLEMENTED)
        elif "kSecAttrAccessControl" in private:
            return None, NSError(PARAM)
        status = self._closed(protected)
        if status and private["kSecAttrIsPermanent"]:
            return None, NSError(status)
        key = ec.generate_private_key(ec.SECP256R1())
        label = given.get("kSecAttrLabel", "")
        for half, attributes, name in ((key, private, "Private"), (key.public_key(), public, "Public")):
            if attributes.get("kSecAttrIsPermanent"):
                self._chain(protected).append(self.key_item(half, attributes["kSecAttrApplicationTag"], name, label))
        return SecKey(key, protected), None

    def SecItemCopyMatching(self, query: Any, result: Any) -> tuple[int, Any]:
        _null(result)
        attributes, protected = self._query(query, _FIND, "kSecMatchLimit")
        status = self._status("SecItemCopyMatching") or (self._closed(protected) if protected else 0)
        if status:
            return status, None
        found = self._matching(attributes, protected)
        if not found:
            return NOT_FOUND, None
        if query.get("kSecReturnRef"):
            return 0, SecKey(found[0].value, protected)
        if not query.get("kSecReturnData"):
            raise ValueError("nothing is to be returned")
        return (LOCKED, None) if self.locked and not protected else (0, NSData(found[0].value))

    def SecItemAdd(self, attributes: Any, result: Any) -> tuple[int, Any]:
        _null(result)
        given, protected = self._query(attributes, _ADD, "kSecValueData")
        if given["kSecClass"] != "kSecClassGenericPassword" or ("kSecAttrAccessible" in given) != protected:
            raise ValueError(given)
        status = self._status("SecItemAdd") or self._closed(protected)
        if status:
            return status, None
        primary = {name: given[name] for name in ("kSecClass", "kSecAttrService", "kSecAttrAccount")}
        if self._matching(primary, protected):
            return DUPLICATE, None
        value = given.pop("kSecValueData")
        self._chain(protected).append(Item(given, value))
        return 0, None

    def SecItemDelete(self, query: Any) -> int:
        attributes, protected = self._query(query, {})
        status = self._status("SecItemDelete") or (self._closed(protected) if protected else 0)
        if status:
            return status
        found = self._matching(attributes, protected)
        for item in found if protected else found[:1]:
            self._chain(protected).remove(item)
        return 0 if found else NOT_FOUND

    def SecKeyCopyPublicKey(self, key: Any) -> Any:
        self.calls.append("SecKeyCopyPublicKey")
        if "SecKeyCopyPublicKey" in self.fail:
            return None
        return SecKey(self._private(key).public_key(), key.data_protection)

    def SecKeyCopyExternalRepresentation(self, key: Any, error: Any) -> tuple[Any, Any]:
        _null(error)
        if type(key) is not SecKey or not isinstance(key.key, ec.EllipticCurvePublicKey):
            raise TypeError("only public keys are exported")
        refused = self._error("SecKeyCopyExternalRepresentation")
        if refused:
            return None, refused
        return NSData(key.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)), None

    def SecKeyCreateSignature(self, key: Any, algorithm: Any, data: Any, error: Any) -> tuple[Any, Any]:
        _null(error)
        private = self._private(key)
        if algorithm != "kSecKeyAlgorithmECDSASignatureMessageX962SHA256" or type(data) is not bytes:
            raise TypeError((algorithm, data))
        refused = self._error("SecKeyCreateSignature")
        if refused or (self.locked and not key.data_protection):
            return None, refused or NSError(LOCKED)
        der = private.sign(data, ec.ECDSA(hashes.SHA256()))  # not deterministic: half of the signatures have a high s
        self.signatures += 1
        self.high += decode_dss_signature(der)[1] > HALF_ORDER
        return NSData(der), None

    # --- for tests ---

    def key_item(self, key: Any, tag: bytes, half: str = "Private", label: str = "") -> Item:
        """Return a key as an item of a key chain."""
        return Item(
            {
                "kSecClass": "kSecClassKey",
                "kSecAttrApplicationTag": tag,
                "kSecAttrKeyClass": f"kSecAttrKeyClass{half}",
                "kSecAttrLabel": label,
            },
            key,
        )

    def _chain(self, protected: bool) -> list[Item]:
        return self.data_protection if protected else self.file

    def _closed(self, protected: bool) -> int:
        if protected:
            return 0 if self.entitled else NOT_ENTITLED
        return LOCKED if self.locked else 0

    def _status(self, function: str) -> int:
        self.calls.append(function)
        return int(self.fail.get(function, 0))

    def _error(self, function: str) -> NSError | None:
        self.calls.append(function)
        refused = self.fail.get(function)
        return refused if refused is None or isinstance(refused, NSError) else NSError(refused)

    def _query(self, given: Any, more: dict[str, Callable[[Any], bool]], *needed: str) -> tuple[dict[str, Any], bool]:
        of_class, half = (_KEY, ["kSecAttrKeyClass"]) if given.get("kSecClass") == "kSecClassKey" else (_PASSWORD, [])
        _check(given, {**_ANY, **of_class, **more}, "kSecClass", *half, *needed)
        left = {name: value for name, value in given.items() if name not in _FIND}
        return left, left.pop("kSecUseDataProtectionKeychain", False)

    def _matching(self, attributes: dict[str, Any], protected: bool) -> list[Item]:
        return [
            item
            for item in self._chain(protected)
            if all(item.attributes.get(name) == value for name, value in attributes.items())
        ]

    def _private(self, key: Any) -> ec.EllipticCurvePrivateKey:
        if type(key) is not SecKey or not isinstance(key.key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"a private SecKey is wanted, not {key!r}")
        if key.process != os.getpid():
            raise RuntimeError("macOS ends a process that goes on with what its parent had loaded")
        return key.key


def install(monkeypatch: pytest.MonkeyPatch, security: Security) -> Security:
    """Make this process believe that it runs on a Mac."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setitem(sys.modules, "Security", security)
    return security

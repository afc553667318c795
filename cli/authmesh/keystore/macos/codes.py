"""What macOS answers, in words for people (Apple: "Security Framework Result Codes", "LAError.Code")."""

from __future__ import annotations

from typing import Any, Final

from authmesh.protocol.errors import BackendUnavailable, KeyStoreError

SUCCESS: Final = 0
ITEM_NOT_FOUND: Final = -25300
MISSING_ENTITLEMENT: Final = -34018

_STATUS_DOMAIN: Final = "NSOSStatusErrorDomain"
_AUTHENTICATION_DOMAIN: Final = "com.apple.LocalAuthentication"

_CANCELLED = "somebody said no in the dialog of macOS, or closed it. Try again and allow it"
_LOCKED = (
    "the key chain is locked, or macOS must ask a person and there is no screen (ssh, a service in the background). Unlock it: "
    "security unlock-keychain; or log in at the screen once"
)
_DENIED = (
    "macOS does not let this program use it, or the password was wrong. Allow this Python in the app Keychain Access (the item, "
    "Access Control); after an update of Python that is needed anew"
)
_NO_KEY_CHAIN = (
    "this user has no key chain that can be used. A service without a login session has none; else make one in Keychain Access, or "
    "name it: security default-keychain -s login.keychain-db"
)
_NOT_SIGNED = (
    "this Python is not signed for it: the Secure Enclave keeps keys only for programs with the entitlement keychain-access-groups. "
    "An app with Python inside can be signed so; else take another back end: keychain, or encrypted-file"
)

#: What a status means and what to do. Names as in SecBase.h.
_SENTENCES: Final = {
    -128: ("errSecUserCanceled", _CANCELLED),
    -25308: ("errSecInteractionNotAllowed", _LOCKED),
    -25315: ("errSecInteractionRequired", _LOCKED),
    -25293: ("errSecAuthFailed", _DENIED),
    MISSING_ENTITLEMENT: ("errSecMissingEntitlement", _NOT_SIGNED),
    ITEM_NOT_FOUND: (
        "errSecItemNotFound",
        "it is not there. It belongs to the user and the Mac that made it: go back there, or make a new identity: init --force",
    ),
    -25299: ("errSecDuplicateItem", "another process made an item of the same name at the same time. Try again"),
    -25291: ("errSecNotAvailable", _NO_KEY_CHAIN),
    -25294: ("errSecNoSuchKeychain", _NO_KEY_CHAIN),
    -25307: ("errSecNoDefaultKeychain", _NO_KEY_CHAIN),
    -25292: (
        "errSecReadOnly",
        "the key chain can't be written to. Take another as the default: security default-keychain -s",
    ),
    -61: ("errSecWrPerm", "the key chain's file can't be written. Check its owner in ~/Library/Keychains"),
    -4: ("errSecUnimplemented", "this Mac has no such thing. Take another back end: init --backend"),
    -2070: ("errSecInternalComponent", _LOCKED),  # what signing in an ssh session gets
    -26276: (
        "errSecInternalError",
        "macOS failed inside. Services without a login session can't use the Secure Enclave: take another back end there",
    ),
    -50: ("errSecParam", "this macOS does not understand what amesh asks of it. Take another back end: init --backend"),
}
_AUTHENTICATION: Final = {-2: _CANCELLED, -4: _CANCELLED, -9: _CANCELLED, -1: _DENIED, -1004: _LOCKED}


def refusal(status: int, doing: str) -> KeyStoreError:
    """The error for a status that is not success.

    Args:
        status: an OSStatus.
        doing: what was tried, as the beginning of a sentence: "The key can't be found".
    """
    name, sentence = _SENTENCES.get(
        status,
        ("unknown to amesh", f"what it means: security error {status}. Else take another back end: init --backend"),
    )
    kind = BackendUnavailable if status == MISSING_ENTITLEMENT else KeyStoreError
    return kind(f"{doing} ({status}, {name}): {sentence}.")


def refusal_of(error: Any, doing: str) -> KeyStoreError:
    """The error for a CFError, which PyObjC hands out as NSError. Numbers mean something only within their domain.

    Args:
        error: of an output argument; None where macOS gave no reason.
        doing: as in :func:`refusal`.
    """
    if error is None:
        return KeyStoreError(f"{doing}: macOS gives no reason. Try again, or take another back end: init --backend.")
    domain, code = str(error.domain()), int(error.code())
    if domain == _STATUS_DOMAIN:
        return refusal(code, doing)
    if domain == _AUTHENTICATION_DOMAIN and code in _AUTHENTICATION:
        return KeyStoreError(f"{doing} ({domain} {code}): {_AUTHENTICATION[code]}.")
    described = str(error.localizedDescription()).rstrip(".")
    return KeyStoreError(
        f"{doing} ({domain} {code}: {described}). Try again, or take another back end: init --backend."
    )

"""The result codes of macOS, as messages and hints for people (Apple: "Security Framework Result Codes", "LAError.Code")."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from authmesh.protocol.errors import BackendUnavailable, Hint, KeyStoreError

from ..base import NEW_IDENTITY, OTHER_BACKEND

SUCCESS: Final = 0
ITEM_NOT_FOUND: Final = -25300
MISSING_ENTITLEMENT: Final = -34018

_STATUS_DOMAIN: Final = "NSOSStatusErrorDomain"
_AUTHENTICATION_DOMAIN: Final = "com.apple.LocalAuthentication"


class Reason(NamedTuple):
    """The meaning of a code, as the end of a sentence, and what to do."""

    meaning: str
    hint: Hint


_CANCELED = Reason("the dialog of macOS was denied or closed", "Try again and allow the access.")
_LOCKED = Reason(
    "the key chain is locked, or macOS must ask a person and there is no screen (ssh, a background service)",
    "Unlock the key chain: security unlock-keychain. Or log in at the screen once.",
)
_DENIED = Reason(
    "macOS does not allow this program to use the item, or the password was wrong",
    "Allow this Python in the app Keychain Access (the item, Access Control). An update of Python makes that necessary again.",
)
_NO_KEY_CHAIN = Reason(
    "this user has no key chain that can be used, which is usual for a service without a login session",
    "Create one in Keychain Access, or set the default: security default-keychain -s login.keychain-db",
)
_NOT_SIGNED = Reason(
    "this Python is not signed for it. The Secure Enclave keeps keys only for programs with the entitlement "
    "keychain-access-groups",
    "Sign an app that contains Python with that entitlement, or choose another key store: --backend keychain or encrypted-file.",
)

#: The name in SecBase.h and the reason of each status.
_REASONS: Final = {
    -128: ("errSecUserCanceled", _CANCELED),
    -25308: ("errSecInteractionNotAllowed", _LOCKED),
    -25315: ("errSecInteractionRequired", _LOCKED),
    -25293: ("errSecAuthFailed", _DENIED),
    MISSING_ENTITLEMENT: ("errSecMissingEntitlement", _NOT_SIGNED),
    ITEM_NOT_FOUND: (
        "errSecItemNotFound",
        Reason(
            "there is no such item. It belongs to the user and the Mac that created it",
            ("Use that user on that Mac. Or to make a new identity, run ", NEW_IDENTITY, "."),
        ),
    ),
    -25299: (
        "errSecDuplicateItem",
        Reason("another process created an item of the same name at the same time", "Try again."),
    ),
    -25291: ("errSecNotAvailable", _NO_KEY_CHAIN),
    -25294: ("errSecNoSuchKeychain", _NO_KEY_CHAIN),
    -25307: ("errSecNoDefaultKeychain", _NO_KEY_CHAIN),
    -25292: (
        "errSecReadOnly",
        Reason("the key chain is read-only", "Set another default: security default-keychain -s NAME"),
    ),
    -61: (
        "errSecWrPerm",
        Reason("the file of the key chain cannot be written", "Check its owner in ~/Library/Keychains."),
    ),
    -4: ("errSecUnimplemented", Reason("this Mac does not support it", OTHER_BACKEND)),
    -2070: ("errSecInternalComponent", _LOCKED),  # returned for a signature in an ssh session
    -26276: (
        "errSecInternalError",
        Reason(
            "macOS had an internal error. Services without a login session cannot use the Secure Enclave", OTHER_BACKEND
        ),
    ),
    -50: ("errSecParam", Reason("this version of macOS does not support the request", OTHER_BACKEND)),
}
_AUTHENTICATION: Final = {-2: _CANCELED, -4: _CANCELED, -9: _CANCELED, -1: _DENIED, -1004: _LOCKED}


def refusal(status: int, failure: str) -> KeyStoreError:
    """Return the error for a status that is not success.

    Args:
        status: an OSStatus.
        failure: the failed operation, as the start of a sentence, such as "The key cannot be found".
    """
    unknown = Reason("its meaning is not known", f"To see it, run: security error {status}. {OTHER_BACKEND}")
    name, reason = _REASONS.get(status, ("unknown to amesh", unknown))
    kind = BackendUnavailable if status == MISSING_ENTITLEMENT else KeyStoreError
    return kind(f"{failure} ({status}, {name}): {reason.meaning}.", hint=reason.hint)


def refusal_of(error: Any, failure: str) -> KeyStoreError:
    """Return the error for a CFError, which PyObjC returns as NSError. A code has a meaning only in its domain.

    Args:
        error: value of an output argument; None if macOS gave no reason.
        failure: as for :func:`refusal`.
    """
    hint = "Try again, or choose another key store with --backend."
    if error is None:
        return KeyStoreError(f"{failure}: macOS gives no reason.", hint=hint)
    domain, code = str(error.domain()), int(error.code())
    if domain == _STATUS_DOMAIN:
        return refusal(code, failure)
    if domain == _AUTHENTICATION_DOMAIN and code in _AUTHENTICATION:
        reason = _AUTHENTICATION[code]
        return KeyStoreError(f"{failure} ({domain} {code}): {reason.meaning}.", hint=reason.hint)
    return KeyStoreError(f"{failure} ({domain} {code}): {error.localizedDescription()}", hint=hint)

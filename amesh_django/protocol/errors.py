"""Every error of amesh: a code of the protocol, a sentence that says what to do, an HTTP status where there is one."""

from __future__ import annotations

from typing import ClassVar


class AmeshError(Exception):
    """Base of all errors. ``str(error)`` is written for people and says what to do next.

    Attributes:
        code: stable machine-readable name (protocol.md where it has one).
        status: HTTP status of the answer, or None where the error never reaches HTTP.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int | None] = None


class InvalidInput(AmeshError, ValueError):
    """A value does not have the form that protocol.md asks for."""

    code = "invalid_input"


# --- this device: directory, identity, keys -------------------------------------------------------------------------


class DirectoryError(AmeshError):
    """The device directory can't be read or written. The sentence names the file and the fix."""

    code = "directory_error"


class StorageError(DirectoryError):
    """Writing failed (disk full, read-only, no permission). The old file is untouched."""

    code = "storage_error"


class IdentityMissing(DirectoryError):
    """There is no identity in the device directory. Run ``amesh init --name NAME`` to make one."""

    code = "identity_missing"


class IdentityExists(DirectoryError):
    """There is an identity already; ``init --force`` replaces it."""

    code = "identity_exists"


class KeyStoreError(AmeshError):
    """The key store refuses: key missing, file damaged, back end not usable here."""

    code = "key_store_error"


class BackendUnavailable(KeyStoreError):
    """The key store back end can't be used on this machine; the sentence says why and how to get it."""

    code = "backend_unavailable"


class PassphraseRequired(KeyStoreError):
    """AUTH_MESH_PASSPHRASE required: no passphrase was found for the encrypted key."""

    code = "passphrase_required"


class WrongPassphrase(KeyStoreError):
    """The key file does not open with this passphrase, or it is damaged."""

    code = "wrong_passphrase"


class PinRequired(KeyStoreError):
    """The key in the TPM has a PIN, and nobody has said it."""

    code = "pin_required"


class WrongPin(KeyStoreError):
    """The TPM refuses the PIN of the key."""

    code = "wrong_pin"


# --- the allow list -------------------------------------------------------------------------------------------------


class AllowListError(AmeshError):
    """A change of the allow list was refused; nothing was written."""

    code = "allow_list_error"


class DeviceNotFound(AllowListError):
    """No device of that id is in the allow list. ``amesh list`` shows those that are."""

    code = "device_not_found"


class ControllerLimitReached(AllowListError):
    """One more controller would be over ``maxControllers``. Replace one, or raise the limit."""

    code = "controller_limit_reached"


class AllowListBusy(AllowListError):
    """Another process kept the list locked for too long. Try again."""

    code = "allow_list_busy"


# --- a request ------------------------------------------------------------------------------------------------------


class RequestError(AmeshError):
    """A request is refused.

    ``code`` and ``status`` are what the caller sees (protocol.md §3); ``reason`` and ``device_id`` are for the log only.
    """

    status: ClassVar[int] = 401

    def __init__(self, message: str = "", *, reason: str | None = None, device_id: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").split("\n")[0])
        self.reason = reason or self.code
        self.device_id = device_id


class MissingHeader(RequestError):
    """No Authorization header. Sign the request with an amesh client."""

    code = "missing_header"
    status = 400


class MalformedHeader(RequestError):
    """The Authorization header is not a well-formed AuthMesh header (protocol.md §2)."""

    code = "malformed_header"
    status = 400


class UnsupportedVersion(RequestError):
    """The header's version is not one that this server speaks. Use a client that speaks version 1."""

    code = "unsupported_version"
    status = 400


class Unauthorized(RequestError):
    """Refused; the log of the server has the reason."""

    code = "unauthorized"
    status = 401


class TimestampOutOfRange(RequestError):
    """The signature is good, but the clock of the device is off. Set it by NTP."""

    code = "timestamp_out_of_range"
    status = 401


class PayloadTooLarge(RequestError):
    """The body is over the limit (AMESH["MAX_BODY_BYTES"])."""

    code = "payload_too_large"
    status = 413


class AllowListIntegrityFailure(RequestError, AllowListError):
    """The allow list does not match its seal: nobody is let in until a person has mended it.

    Run ``manage.py amesh_integrity`` (database) to see what differs.
    """

    code = "allow_list_integrity_failure"
    status = 500


class BodyParserOrderingError(RequestError):
    """Something consumed the raw body before it was verified. Put the amesh middleware first."""

    code = "body_parser_ordering_error"
    status = 500


class BodyStorageUnavailable(RequestError):
    """The server has no room for a body while it is verified: the disk is full, or FILE_UPLOAD_TEMP_DIR can't be written."""

    code = "body_storage_unavailable"
    status = 503


class NonceStoreUnavailable(RequestError):
    """The nonce store can't be reached; every request is refused until it can."""

    code = "nonce_store_unavailable"
    status = 503

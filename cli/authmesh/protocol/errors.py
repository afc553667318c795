"""Every error of amesh: its code, its message, what to do next, and its HTTP status if it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Run:
    """A command of amesh that a person should run next. Each front end spells it in its own way.

    Attributes:
        name: name of the command, with dashes, such as ``export-key``.
        arguments: the rest of the command line, such as ``--name NAME``; empty if there is none.
    """

    name: str
    arguments: str = ""

    def __str__(self) -> str:
        return f"amesh {self.name} {self.arguments}".rstrip()


#: A text for people, or its parts: texts and commands to run. A front end joins them with :func:`spelled`.
Hint = str | tuple[str | Run, ...]


def spelled(hint: Hint, spell: Callable[[Run], str] = str) -> str:
    """Return the text of a hint.

    Args:
        spell: returns how a command is written here; the default writes ``amesh NAME …``.
    """
    parts = (hint,) if isinstance(hint, str) else hint
    return "".join(spell(part) if isinstance(part, Run) else str(part) for part in parts)


class AmeshError(Exception):
    """Base of all errors.

    Args:
        message: what happened and what was not changed: one or more sentences. Defaults to the class's own.
        hint: what to do next. Defaults to the class's own, unless a message is given: then there is none.

    Attributes:
        code: stable machine-readable name (protocol.md if it has one).
        status: HTTP status of the answer, or None if the error never reaches HTTP.
        default_message, default_hint: message and hint of an error that is raised without.
        message, hint: as given.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int | None] = None
    default_message: ClassVar[str] = "The operation failed."
    default_hint: ClassVar[Hint] = ""

    def __init__(self, message: str = "", *, hint: Hint = "") -> None:
        super().__init__(message)
        self.message = message or self.default_message
        self.hint: Hint = hint or ("" if message else self.default_hint)

    def text(self, spell: Callable[[Run], str] = str) -> str:
        """Return message and hint as one text.

        Args:
            spell: as for :func:`spelled`.
        """
        return " ".join(filter(None, (str(self.message), spelled(self.hint, spell))))

    def __str__(self) -> str:
        return self.text()


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

    def __init__(
        self, message: str = "", *, hint: Hint = "", reason: str | None = None, device_id: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
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

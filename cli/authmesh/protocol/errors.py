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
    """A value does not have the form that protocol.md requires."""

    code = "invalid_input"
    default_message = "The value does not have the required form. Nothing was changed."
    default_hint = "Correct the value, then try again."


# --- this device: directory, identity, keys -------------------------------------------------------------------------


class DirectoryError(AmeshError):
    """The device directory cannot be read or written."""

    code = "directory_error"
    default_message = "The device directory cannot be read or written."
    default_hint: ClassVar[Hint] = "Check its owner and its permissions."


class StorageError(DirectoryError):
    """Writing a file failed: disk full, read-only file system, no permission. The previous file is unchanged."""

    code = "storage_error"
    default_message = "Writing to the device directory failed. The previous file was not changed."
    default_hint = "Check the free disk space and the permissions, then try again."


class IdentityMissing(DirectoryError):
    """There is no identity in the device directory."""

    code = "identity_missing"
    default_message = "There is no identity in the device directory."
    default_hint: ClassVar[Hint] = ("To create one, run ", Run("init", "--name NAME"), ".")


class IdentityExists(DirectoryError):
    """An identity would be created, but the device directory has one already."""

    code = "identity_exists"
    default_message = "There is already an identity in the device directory. Nothing was changed."
    default_hint = ("To replace it, run ", Run("init", "--name NAME --force"), ".")


class KeyStoreError(AmeshError):
    """The key store cannot do what was asked: key missing, file damaged, backend not usable on this machine."""

    code = "key_store_error"
    default_message = "The key store cannot be used. Nothing was changed."
    default_hint: ClassVar[Hint] = ("To find the cause, run ", Run("doctor"), ".")


class BackendUnavailable(KeyStoreError):
    """The key store backend cannot be used on this machine."""

    code = "backend_unavailable"
    default_message = "This key store backend cannot be used on this machine. Nothing was changed."
    default_hint = ("To find the cause, run ", Run("doctor"), ". To use another backend, choose it with --backend.")


class PassphraseRequired(KeyStoreError):
    """No passphrase was found for the encrypted key."""

    code = "passphrase_required"
    default_message = "AUTH_MESH_PASSPHRASE required: no passphrase was found for the encrypted key."
    default_hint = "Set AUTH_MESH_PASSPHRASE."


class WrongPassphrase(KeyStoreError):
    """The key file cannot be decrypted with this passphrase."""

    code = "wrong_passphrase"
    default_message = "The key file cannot be decrypted: the passphrase is wrong, or the file is damaged."
    default_hint = "Check the passphrase, or restore the key file from a backup."


class PinRequired(KeyStoreError):
    """The key in the TPM has a PIN, and none was given."""

    code = "pin_required"
    default_message = "The key in the TPM has a PIN, and no PIN was given."
    default_hint = "Write the PIN to a file that only this user can read, and set AMESH_TPM_PIN_FILE to its path."


class WrongPin(KeyStoreError):
    """The TPM rejected the PIN of the key."""

    code = "wrong_pin"
    default_message = "The TPM rejected the PIN of the key."
    default_hint = "Check the PIN before you try again: after several wrong PINs, the TPM locks itself for a while."


# --- the allow list -------------------------------------------------------------------------------------------------


class AllowListError(AmeshError):
    """The allow list cannot be changed; nothing was written."""

    code = "allow_list_error"
    default_message = "The allow list was not changed."


class DeviceNotFound(AllowListError):
    """No device in the allow list has this device ID."""

    code = "device_not_found"
    default_message = "No device in the allow list has this device ID. Nothing was changed."
    default_hint = ("To see the devices in the list, run ", Run("list"), ".")


class ControllerLimitReached(AllowListError):
    """One more controller would exceed ``maxControllers``."""

    code = "controller_limit_reached"
    default_message = "The allow list has as many controllers as its limit allows. Nothing was changed."
    default_hint = "Replace a controller, or raise the limit (maxControllers)."


class AllowListBusy(AllowListError):
    """Another process held the lock of the allow list for too long."""

    code = "allow_list_busy"
    default_message = "Another process keeps the allow list locked. Nothing was changed."
    default_hint = "Try again in a moment."


# --- a request ------------------------------------------------------------------------------------------------------


class RequestError(AmeshError):
    """A request is rejected. Callers see ``code`` and ``status`` only (protocol.md §3).

    Args:
        reason: the reason in the log: one stable word, such as ``replay_detected``. Defaults to the code.
        detail: what the log says about the reason in brackets, such as the name of an exception.
        device_id: the device in the log, if it is known.
        device_name: the friendly name of a device in the allow list.

    Attributes:
        retry_after: seconds until the request may succeed, if that is known.
    """

    status: ClassVar[int] = 401
    default_message = "The request was rejected."
    retry_after: int | None = None

    def __init__(
        self,
        message: str = "",
        *,
        hint: Hint = "",
        reason: str | None = None,
        detail: str = "",
        device_id: str | None = None,
        device_name: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason or self.code
        self.detail = detail
        self.device_id = device_id
        self.device_name = device_name


class MissingHeader(RequestError):
    """The request has no Authorization header."""

    code = "missing_header"
    status = 400
    default_message = "The request has no Authorization header."
    default_hint = "Sign the request with an amesh client."


class MalformedHeader(RequestError):
    """The Authorization header is not a well-formed AuthMesh header (protocol.md §2)."""

    code = "malformed_header"
    status = 400
    default_message = "The Authorization header is not a well-formed AuthMesh header."
    default_hint = "Sign the request with an amesh client."


class UnsupportedVersion(RequestError):
    """The Authorization header has a version that this server does not support."""

    code = "unsupported_version"
    status = 400
    default_message = "The Authorization header has a version that this server does not support."
    default_hint = "Use a client that supports version 1."


class Unauthorized(RequestError):
    """The request is not from a device that may authenticate; ``reason`` says why."""

    code = "unauthorized"
    status = 401
    default_hint = "The log of the server has the reason."


class TimestampOutOfRange(RequestError):
    """The signature is valid, but the clocks of device and server differ too much."""

    code = "timestamp_out_of_range"
    status = 401
    default_message = (
        "The signature is valid, but the clock of the device differs too much from the clock of the server."
    )
    default_hint = "Synchronize both clocks with NTP."


class UserRequired(RequestError):
    """The device is trusted, but is not mapped to a Django user, which the address requires."""

    code = "user_required"
    status = 403
    default_message = (
        "This address requires a device that is mapped to a Django user, and this device is not mapped to one."
    )
    default_hint = "On the server, map the device to a user in the admin."


class ScopeMissing(RequestError):
    """The device is trusted, but does not have a scope that the address requires."""

    code = "insufficient_scope"
    status = 403
    default_message = "This address requires a scope that this device does not have."
    default_hint = "On the server, grant the scope to the device."


class PayloadTooLarge(RequestError):
    """The request body exceeds the size limit of the server."""

    code = "payload_too_large"
    status = 413
    default_message = "The request body exceeds the size limit of the server."
    default_hint = "Send a smaller body, or raise the limit on the server."


class AllowListIntegrityFailure(RequestError, AllowListError):
    """The allow list does not match its seal: all requests are rejected until a person fixes the list."""

    code = "allow_list_integrity_failure"
    status = 500
    default_message = "The allow list does not match its seal. All requests are rejected until the list is fixed."
    default_hint = ("To see what differs, run ", Run("integrity"), ".")


class AllowListUnavailable(RequestError, AllowListError):
    """The allow list cannot be read, because the database is down: all requests are rejected until it can."""

    code = "allow_list_unavailable"
    status = 503
    default_message = "The allow list cannot be read. All requests are rejected until it can be read again."
    default_hint = "Check the database of the server."


class BodyParserOrderingError(RequestError):
    """Something consumed the raw body before it was verified."""

    code = "body_parser_ordering_error"
    status = 500
    default_message = "Something on the server read the request body before it was verified."
    default_hint = "Verify the request before anything else reads its body."


class BodyStorageUnavailable(RequestError):
    """The server cannot store the body while it is verified: disk full, or no permission to write."""

    code = "body_storage_unavailable"
    status = 503
    default_message = "The server cannot store the request body while it is verified."
    default_hint = "Check the free disk space and the permissions of the folder for temporary files."


class NonceStoreUnavailable(RequestError):
    """The nonce store cannot be reached: all requests are rejected until it can."""

    code = "nonce_store_unavailable"
    status = 503
    default_message = "The nonce store cannot be reached. All requests are rejected until it can be reached again."
    default_hint = "Check the cache server that stores the nonces."

"""The optional PIN of a TPM key: its form, and the places where it is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from authmesh.files.storage import PermissionProblem, expanded, permission_problem
from authmesh.protocol.errors import InvalidInput, PinRequired, StorageError

#: Variable that names the file with the PIN.
VARIABLE: Final = "AMESH_TPM_PIN_FILE"
#: An authorization value is at most as long as the digest of the object (TPM 2.0 Library, Part 1, 16.4).
MAX_PIN_BYTES: Final = 32


def check_pin(pin: str) -> bytes:
    """Return the bytes of a PIN.

    Raises:
        InvalidInput: not 1 to 32 bytes of UTF-8, or with characters that cannot be typed.
    """
    if not pin or not pin.isprintable() or len(pin.encode()) > MAX_PIN_BYTES:  # lone surrogates are not printable
        raise InvalidInput(f"A PIN must have 1 to {MAX_PIN_BYTES} bytes: letters, digits, punctuation, spaces.")
    return pin.encode()


def read_pin_file(path: Path) -> str:
    """Return the PIN in a file, without a line break at the end.

    Raises:
        PinRequired: the file cannot be read, or is empty.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PinRequired(
            f"The PIN file {path} cannot be read ({why}).", hint="Check its owner and permissions."
        ) from None
    pin = text.removesuffix("\n").removesuffix("\r")
    if not pin:
        raise PinRequired(f"The PIN file {path} is empty.", hint="Write the PIN of the TPM key into it.")
    return pin


def cannot_ask() -> str:
    """Raise an error, because no person can be asked for the PIN.

    Raises:
        PinRequired: always.
    """
    raise PinRequired(
        "The key of this device needs its PIN.",
        hint=f"Write the PIN into a file that only this user can read, and set {VARIABLE} to its path.",
    )


def find_pin(environ: Mapping[str, str], ask: Callable[[], str]) -> str:
    """Return the PIN from the file that ``AMESH_TPM_PIN_FILE`` names, or from *ask* if it is not set.

    Raises:
        PinRequired: neither has the PIN.
    """
    named = environ.get(VARIABLE)
    return read_pin_file(expanded(named)) if named else ask()


def pin_file_problems(environ: Mapping[str, str]) -> list[PermissionProblem]:
    """Return the problem if other users can read the PIN file, or an empty list."""
    named = environ.get(VARIABLE)
    if not named:
        return []
    try:
        problem = permission_problem(expanded(named), 0o400)
    except StorageError:  # raised again when the PIN is needed
        return []
    return [problem] if problem is not None else []

"""The optional PIN of a key in the TPM: what it may be, where it is found."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from authmesh.files.storage import expanded
from authmesh.protocol.errors import InvalidInput, PinRequired, StorageError

#: Names the file with the PIN.
VARIABLE: Final = "AMESH_TPM_PIN_FILE"
#: Longest PIN: an authorisation value has at most the length of the object's digest (TPM 2.0 Library, Part 1, 16.4).
MAX_PIN_BYTES: Final = 32


def check_pin(pin: str) -> bytes:
    """The bytes of a PIN.

    Raises:
        InvalidInput: not 1 to 32 bytes of UTF-8 that can be typed.
    """
    if not pin or not pin.isprintable() or len(pin.encode()) > MAX_PIN_BYTES:  # lone surrogates are not printable
        raise InvalidInput(f"A PIN has 1 to {MAX_PIN_BYTES} bytes: letters, digits, signs, spaces.")
    return pin.encode()


def read_pin_file(path: Path) -> str:
    """The PIN in a file; a line break at its end is not part of it.

    Raises:
        PinRequired: it can't be read, or is empty.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise PinRequired(f"The PIN file {path} can't be read ({why}). Check its owner and permissions.") from None
    pin = text.removesuffix("\n").removesuffix("\r")
    if not pin:
        raise PinRequired(f"The PIN file {path} is empty. Put the PIN of the TPM key into it.")
    return pin


def nobody_to_ask() -> str:
    """Where no person is there to be asked.

    Raises:
        PinRequired: always.
    """
    raise PinRequired(
        f"This device's key asks for its PIN. Put the PIN into a file that only this user can read, and name it in {VARIABLE}."
    )


def find_pin(environ: Mapping[str, str], ask: Callable[[], str]) -> str:
    """The PIN of this device's key: from the file that ``AMESH_TPM_PIN_FILE`` names, else by *ask*.

    Raises:
        PinRequired: neither has it.
    """
    named = environ.get(VARIABLE)
    return read_pin_file(expanded(named)) if named else ask()


def open_pin_file(environ: Mapping[str, str]) -> list[str]:
    """A sentence with the fix if others can read the PIN file; else nothing."""
    named = environ.get(VARIABLE)
    if not named:
        return []
    try:
        path = expanded(named)
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, StorageError):  # said where the PIN is needed
        return []
    return [f"{path} is open to others (mode {mode:03o}). Close it: chmod 400 {path}"] if mode & 0o077 else []

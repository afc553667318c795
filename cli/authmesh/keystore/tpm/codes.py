"""The response codes of a TPM and of the library that this store handles (TPM 2.0 Library, Part 2, 6.6; TSS 2.0 Overview, 3.3)."""

from __future__ import annotations

from typing import Any, Final

# Codes of format one include the number of the handle, session or parameter with the error.
_FORMAT_ONE: Final = 0x080
_AUTH_FAIL: Final = (0x08E, 0x0A2)  # AUTH_FAIL, BAD_AUTH
NO_HIERARCHY: Final = 0x085
BUSY: Final = (0x908, 0x90A, 0x920, 0x922)  # YIELDED, TESTING, NV_RATE, RETRY
FULL: Final = (0x902, 0x903, 0x904, 0x905, 0x906)  # memory for objects, sessions; handles
_HANDLE: Final = 0x08B
GONE: Final = (_HANDLE, *range(0x910, 0x917), *range(0x918, 0x91F))  # with REFERENCE_H0…, REFERENCE_S0…
NOT_STARTED: Final = 0x100
# Layers above a code (TSS 2.0 Overview, 3.3): the TPM itself, and a resource manager that responds in its place.
_TPM_LAYERS: Final = (0, 0xB)
#: The layers of the library in this process: ESAPI, SAPI, marshalling.
_LIBRARY_LAYERS: Final = (7, 8, 9)


def tpm_code(error: Any) -> int | None:
    """Return the response code of the TPM without the number of the parameter, or None if the TPM did not respond."""
    rc = int(error.rc)
    if rc >> 16 not in _TPM_LAYERS:
        return None
    return rc & 0x0BF if rc & _FORMAT_ONE else rc & 0xFFFF


def is_auth_failure(error: Any) -> bool:
    """Return True if a password was wrong or missing."""
    return tpm_code(error) in _AUTH_FAIL


def is_bad_input(error: Any) -> bool:
    """Return True if the TPM or the library rejected the arguments of a command."""
    code = tpm_code(error)
    if code is None:
        return int(error.rc) >> 16 in _LIBRARY_LAYERS
    return bool(code & _FORMAT_ONE) and code < 0x100 and code != _HANDLE

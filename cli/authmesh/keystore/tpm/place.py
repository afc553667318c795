"""Where the TPM is, the library that speaks to it, and what is missing where it can't be used (TSS 2.0 TCTI specification)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pwd
import re
from collections.abc import Mapping
from typing import Any, Final

from authmesh.protocol.errors import BackendUnavailable

#: Names another TPM, in the form of the TSS: ``device:/dev/tpmrm0``, ``tabrmd:``, ``swtpm:port=2321``; ``none`` is no TPM.
VARIABLE: Final = "AMESH_TPM_TCTI"
DEVICE: Final = "/dev/tpmrm0"
NONE: Final = "none"
#: What a module of the TSS may be called; a path of a device is none.
_is_module: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*").fullmatch


def tcti_name(environ: Mapping[str, str] = os.environ) -> str:
    """Where the TPM is: ``AMESH_TPM_TCTI``, else the kernel's resource manager."""
    name = environ.get(VARIABLE, "").strip() or "device"
    # Bytes that are no text lead to no TPM, and to a sentence that says so.
    name = name.encode("utf-8", "replace").decode()
    return f"device:{DEVICE}" if name in ("device", "device:") else name


def device_path(tcti: str) -> str | None:
    """The device file, or None where the TPM is reached otherwise."""
    name, _, path = tcti.partition(":")
    return path if name == "device" else None


def has_manager(tcti: str) -> bool:
    """True if each connection has slots of its own: the kernel's resource manager, tpm2-abrmd."""
    path = device_path(tcti)
    return os.path.basename(path).startswith("tpmrm") if path else tcti.partition(":")[0] == "tabrmd"


def takes_many(tcti: str) -> bool:
    """True if several processes may have a connection at the same time: with a manager; swtpm is connected to for each command."""
    return has_manager(tcti) or tcti.partition(":")[0] == "swtpm"


@functools.cache
def load_library() -> Any:
    """The Python binding of the TSS. The C library's own complaints on stderr are turned off: every error is raised.

    Raises:
        BackendUnavailable: it, or the C library below it, is not installed.
    """
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except ModuleNotFoundError as error:
        if (error.name or "tpm2_pytss").partition(".")[0] != "tpm2_pytss":
            raise
        raise BackendUnavailable(
            "the Python package tpm2-pytss is missing; install it: pip install 'amesh-django[tpm]' (its build needs gcc, "
            "pkg-config and libtss2-dev)"
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the library libtss2 is missing or does not fit ({str(error).partition(chr(10))[0]}); install it: apt-get install "
            "libtss2-dev, then build tpm2-pytss anew: pip install --force-reinstall --no-binary :all: --no-deps tpm2-pytss"
        ) from None
    return tpm2_pytss


def check_place(tcti: str) -> None:
    """What can be said without asking the TPM.

    Raises:
        BackendUnavailable: no TPM is wanted; the device is missing or closed to this user. A reason without a capital letter.
    """
    if tcti == NONE:
        raise BackendUnavailable(f"{VARIABLE} says {NONE}; unset it to use this machine's TPM")
    path = device_path(tcti)
    if path is None:
        return
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise BackendUnavailable(
                f"no permission for {path}: add this user to its group (usermod -aG tss {_user()}), then log in again; in a "
                "container, hand in the device and its group"
            ) from None
        if error.errno == errno.EISDIR:
            raise BackendUnavailable(f"{path} is a folder and no TPM; correct {VARIABLE}") from None
        if error.errno != errno.EBUSY:  # a TPM without resource manager has one user at a time
            raise BackendUnavailable(
                f"needs a TPM 2.0, and {path} is missing: turn it on in the firmware's settings, hand the device into the "
                f"container, or name another by {VARIABLE}"
            ) from None


def open_connection(library: Any, tcti: str) -> tuple[Any, Any]:
    """The ESAPI context and the TCTI below it, which must be kept alive beside it.

    Raises:
        BackendUnavailable: the device, or the TCTI, is missing.
        library.TSS2_Exception: the TPM does not answer.
    """
    check_place(tcti)
    name, _, configuration = tcti.partition(":")
    try:
        found = library.TCTILdr(name, configuration or None)
    except library.TSS2_Exception:
        if not _is_module(name):
            raise BackendUnavailable(
                f"{VARIABLE} says {tcti!r}, which is no way to a TPM; write device:{DEVICE}, tabrmd: or swtpm:port=2321"
            ) from None
        if not library.TCTILdr.is_available(name):
            raise BackendUnavailable(
                f"there is no module for {name!r}; install it (apt-get install libtss2-tcti-{name}0), or correct {VARIABLE}"
            ) from None
        raise
    try:
        return library.ESAPI(found), found
    except BaseException:
        with contextlib.suppress(Exception):
            found.close()
        raise


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "USER"

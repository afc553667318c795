"""The place of the TPM, the library that talks to it, and what is missing if it cannot be used (TSS 2.0 TCTI specification)."""

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

#: Variable that names another TPM in the form of the TSS: ``device:/dev/tpmrm0``, ``tabrmd:``, ``swtpm:port=2321``; or ``none``.
VARIABLE: Final = "AMESH_TPM_TCTI"
DEVICE: Final = "/dev/tpmrm0"
NONE: Final = "none"
#: Matches names of TSS modules, and no paths of devices.
_is_module: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*").fullmatch


def tcti_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return ``AMESH_TPM_TCTI``, or the kernel's resource manager if it is not set."""
    name = environ.get(VARIABLE, "").strip() or "device"
    # Bytes that are not text name no TPM; replacing them leads to an error message that can be printed.
    name = name.encode("utf-8", "replace").decode()
    return f"device:{DEVICE}" if name in ("device", "device:") else name


def device_path(tcti: str) -> str | None:
    """Return the path of the device file, or None if the TPM is not a device file."""
    name, _, path = tcti.partition(":")
    return path if name == "device" else None


def has_manager(tcti: str) -> bool:
    """Return True if every connection has its own slots: with the kernel's resource manager, or tpm2-abrmd."""
    path = device_path(tcti)
    return os.path.basename(path).startswith("tpmrm") if path else tcti.partition(":")[0] == "tabrmd"


def takes_many(tcti: str) -> bool:
    """Return True if several processes can be connected at the same time.

    That is the case with a resource manager, and with swtpm, to which the library connects for each command.
    """
    return has_manager(tcti) or tcti.partition(":")[0] == "swtpm"


@functools.cache
def load_library() -> Any:
    """Return the Python binding of the TSS. The C library does not log to stderr, because every error is raised.

    Raises:
        BackendUnavailable: the binding, or the C library, is not installed.
    """
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except ModuleNotFoundError as error:
        if (error.name or "tpm2_pytss").partition(".")[0] != "tpm2_pytss":
            raise
        raise BackendUnavailable(
            "The Python package tpm2-pytss is missing.",
            hint="Install it: pip install 'amesh-django[tpm]' (its build needs gcc, pkg-config and libtss2-dev).",
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"The library libtss2 is missing or has the wrong version ({' '.join(str(error).split())}).",
            hint="Install it: apt-get install libtss2-dev. Then rebuild tpm2-pytss: pip install --force-reinstall "
            "--no-binary :all: --no-deps tpm2-pytss",
        ) from None
    return tpm2_pytss


def check_place(tcti: str) -> None:
    """Check the place of the TPM without a command to the TPM.

    Raises:
        BackendUnavailable: no TPM is wanted, or its device is missing or not accessible to this user.
    """
    if tcti == NONE:
        raise BackendUnavailable(
            f"{VARIABLE} is set to {NONE}, so no TPM is used.", hint=f"Unset {VARIABLE} to use the TPM of this machine."
        )
    path = device_path(tcti)
    if path is None:
        return
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise BackendUnavailable(
                f"This user has no permission for {path}.",
                hint=f"Add the user to the group of the device (usermod -aG tss {_user()}), then log in again. In a container, "
                "pass in the device and its group.",
            ) from None
        if error.errno == errno.EISDIR:
            raise BackendUnavailable(f"{path} is a folder, not a TPM.", hint=f"Correct {VARIABLE}.") from None
        if error.errno != errno.EBUSY:  # a TPM without a resource manager has one user at a time
            raise BackendUnavailable(
                f"No TPM 2.0 was found: {path} is missing.",
                hint="Turn the TPM on in the settings of the firmware, pass the device into the container, or name another one in "
                f"{VARIABLE}.",
            ) from None


def open_connection(library: Any, tcti: str) -> tuple[Any, Any]:
    """Return an ESAPI context and the TCTI below it, which must live as long as the context.

    Raises:
        BackendUnavailable: the device or the TCTI is missing.
        library.TSS2_Exception: the TPM does not respond.
    """
    check_place(tcti)
    name, _, configuration = tcti.partition(":")
    try:
        found = library.TCTILdr(name, configuration or None)
    except library.TSS2_Exception:
        if not _is_module(name):
            raise BackendUnavailable(
                f"{VARIABLE} is set to {tcti!r}, which does not name a TPM.",
                hint=f"Use device:{DEVICE}, tabrmd: or swtpm:port=2321.",
            ) from None
        if not library.TCTILdr.is_available(name):
            raise BackendUnavailable(
                f"There is no TSS module for {name!r}.",
                hint=f"Install it (apt-get install libtss2-tcti-{name}0), or correct {VARIABLE}.",
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

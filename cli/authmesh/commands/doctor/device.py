"""The checks of this machine: versions, the device directory, the key and its store, the allow list, bootstrap tokens."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator

from authmesh import keystore
from authmesh.device import LocalDevice, permission_problems, read_identity
from authmesh.device.identity import FILE_VERSION
from authmesh.device.passphrase import passphrase_file, passphrase_source
from authmesh.device.replacing import read_replacement
from authmesh.device.servers import ServerStore
from authmesh.device.tokens import TOKEN_VARIABLE, TokenStore
from authmesh.keystore.tpm.pin import VARIABLE as PIN_VARIABLE
from authmesh.keystore.tpm.pin import pin_file_problems
from authmesh.keystore.tpm.place import VARIABLE as TCTI_VARIABLE
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.display import clean
from authmesh.protocol.errors import DirectoryError, Hint, IdentityMissing, PinRequired, Run
from authmesh.protocol.keys import verify_signature

from ..context import Context
from ..identity import key_mismatch
from ..words import counted, joined, named
from .findings import Finding

#: Packages that are reported with their versions.
_PACKAGES = ("django", "djangorestframework", "cryptography", "httpx", "websockets", "tpm2-pytss")
#: A bootstrap token that expires before this many seconds needs attention.
_SOON_SECONDS = 600


def versions() -> Iterator[Finding]:
    """Examine the versions of the installed packages."""
    from importlib.metadata import PackageNotFoundError, version  # quick start: only doctor needs it

    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    try:
        own = version("amesh-django")
    except PackageNotFoundError:
        yield Finding(
            "versions",
            "warning",
            f"amesh-django is not installed as a package; {', '.join(found)}",
            "Install it into this environment with pip install amesh-django.",
        )
        return
    yield Finding("versions", "ok", f"amesh-django {own}, {', '.join(found)}")


class DeviceChecks:
    """The checks of one device directory.

    Args:
        context: the surroundings of the command.

    Attributes:
        device: the device, once its identity was read.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._path = context.home.directory
        self.device: LocalDevice | None = None

    def directory(self) -> Iterator[Finding]:
        """Examine whether there is a device directory that this user can use."""
        path, other = self._path, f"choose another directory with {self._context.home.directory_setting}."
        owner = "Check its owner and permissions"
        if not path.exists():
            hint: Hint = ("To create an identity, run ", Run("init", "--name NAME"), f", or {other}")
            yield Finding("directory", "problem", f"There is no folder {path}.", hint)
        elif not path.is_dir():
            yield Finding("directory", "problem", f"{path} is not a folder.", f"Remove it, or {other}")
        elif not os.access(path, os.R_OK | os.X_OK):
            yield Finding("directory", "problem", f"This user cannot read {path}.", f"{owner}.")
        elif not os.access(path, os.W_OK):
            message = f"This user cannot write to {path}, so nothing can be changed there."
            yield Finding("directory", "warning", message, f"{owner}, unless this is intended.")
        else:
            yield Finding("directory", "ok", str(path))

    def permissions(self) -> Iterator[Finding]:
        """Examine whether all files are private."""
        problems = permission_problems(self._path, passphrase_file(self._path)) + pin_file_problems(os.environ)
        for problem in problems:
            yield Finding("permissions", "warning", problem.message, problem.hint)
        if not problems:
            yield Finding("permissions", "ok", "The directory, the keys and the passphrase are private.")

    def identity(self) -> Iterator[Finding]:
        """Examine the identity of this device."""
        file = self._path / "identity.json"
        has_token = bool(os.environ.get(TOKEN_VARIABLE))
        try:
            identity = read_identity(self._path)
        except DirectoryError as error:
            finding = Finding.of_error("identity", error)
            if has_token and not file.exists():
                hint = joined(finding.hint, f" To use the token in {TOKEN_VARIABLE}, run ", Run("bootstrap"), ".")
                finding = Finding("identity", "problem", finding.message, hint)
            yield finding
            return
        yield Finding("identity", "ok", f"{named(identity)}, key in {clean(identity.storage_backend)}")
        written = json.loads(file.read_text("utf-8")).get("version")
        if written != FILE_VERSION:
            yield Finding(
                "identity",
                "warning",
                f"identity.json has the version {clean(str(written))}; this program writes {FILE_VERSION}.",
                "The file could be read. If another program wrote it, keep both programs up to date.",
            )
        if has_token:
            message = f"{TOKEN_VARIABLE} is set, and is ignored because there is an identity."
            yield Finding("identity", "warning", message, "Remove it from the environment.")
        self.device = self._context.home.device()

    def backends(self) -> Iterator[Finding]:
        """Examine where init would store a key on this machine."""
        why_not = {backend: keystore.unavailable(backend) for backend in keystore.BACKENDS}
        best = next(backend for backend, why in why_not.items() if why is None)
        reasons: dict[str, list[str]] = {}
        for backend, why in why_not.items():
            if why is not None:
                reasons.setdefault(why.text(self._context.console.spell), []).append(backend)
        others = [
            f"{' and '.join(backends)} {'are' if len(backends) > 1 else 'is'} not available: {why}"
            for why, backends in reasons.items()
        ]
        yield Finding("backends", "ok", f"A new key would be stored in {best}.", " ".join(others))

    def asks_pin(self) -> bool:
        """Return True if the key has a PIN and no file provides it, so that a person must be asked."""
        device = self.device
        if device is None or device.identity.storage_backend != "tpm2" or os.environ.get(PIN_VARIABLE):
            return False
        from authmesh.keystore.tpm.blob import parse_key_file  # only with a key in a TPM

        try:
            text = (device.path / "keys" / f"{device.identity.key_alias}.tpm").read_text("utf-8")
            return parse_key_file(text).has_pin
        except Exception:  # the check of the key store reports it
            return False

    def key_store(self) -> Iterator[Finding]:
        """Examine whether the key store returns the key."""
        device = self._device()
        backend = device.identity.storage_backend
        device.seal_secret()  # opens the key, and compares it with identity.json
        if backend == "tpm2":
            default = "" if os.environ.get(TCTI_VARIABLE) else f"; {TCTI_VARIABLE} selects another"
            found = f"the TPM answers ({clean(tcti_name())}{default}), and its key loads"
        elif backend == "encrypted-file":
            found = f"the key opens with the passphrase from {passphrase_source(self._path)}"
        else:
            found = "the key is there"
        yield Finding("key-store", "ok", f"{clean(backend)}: {found}")

    def key(self) -> Iterator[Finding]:
        """Examine whether the key signs."""
        device = self._device()
        message = b"amesh doctor " + os.urandom(16)
        try:
            device.sign(message)
        except PinRequired as error:
            yield Finding("key", "warning", f"Not examined. {error.message}", error.hint)
            return
        started = time.perf_counter()
        signature = device.sign(message)
        milliseconds = (time.perf_counter() - started) * 1000
        if verify_signature(device.identity.public_key, message, signature):
            yield Finding("key", "ok", f"It signs ({milliseconds:.1f} ms), and the signature verifies.")
        else:
            yield Finding.of_error("key", key_mismatch())

    def allow_list(self) -> Iterator[Finding]:
        """Examine whether the allow list matches its seal, and how full it is."""
        allow_list = self._context.home.allow_list()
        controllers, targets = allow_list.count(CONTROLLER), allow_list.count(TARGET)
        limit = allow_list.controller_limit
        found = f"The list matches its seal: {controllers} of {limit} controllers, {counted(targets, 'target')}."
        if controllers > limit:
            hint = f"Revoke a controller, or raise the limit: {self._context.home.limit_setting}."
            yield Finding("allow-list", "warning", f"{found} There are more controllers than the limit.", hint)
        else:
            yield Finding("allow-list", "ok", found)

    def tokens(self) -> Iterator[Finding]:
        """Examine the open bootstrap tokens of this device. Without any, there is no finding."""
        now = self._context.now().timestamp()
        waiting = [token for token in TokenStore(self._path).read() if token.state(now) == "open"]
        if not waiting:
            return
        soonest = min(token.expires_at for token in waiting) - now
        open_tokens = f"{counted(len(waiting), 'bootstrap token')} open, the first for {_minutes(soonest)} more."
        resume = Run("provision", "--resume")
        if soonest < _SOON_SECONDS:
            hint: Hint = ("Serve it now with ", resume, ", or make another token.")
            yield Finding("tokens", "warning", open_tokens, hint)
        else:
            hint = ("A token works only while this device waits for it: ", resume)
            yield Finding("tokens", "ok", open_tokens, hint)

    def rotation(self) -> Iterator[Finding]:
        """Examine whether a replacement of the key is under way. If none is, there is no finding."""
        found = read_replacement(self._path)
        if found is None:
            return
        waiting = [server for server in ServerStore(self._path).read() if server.device_id not in found.accepted]
        if not found.accepted:
            message = (
                f"A replacement of the key by {found.new.device_id} has begun, and no server has accepted the new key."
            )
        else:
            of = ", ".join(clean(server.url) for server in waiting) or "none"
            message = (
                f"The key {found.old.device_id} was replaced by {found.new.device_id}, and is kept for the servers that have not "
                f"accepted the new one: {of}."
            )
        yield Finding("rotation", "warning", message, ("To go on, run ", Run("rotate", "--finish"), "."))

    def _device(self) -> LocalDevice:
        if self.device is None:
            raise IdentityMissing()
        return self.device


def _minutes(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"

"""What doctor looks at on this machine: versions, the device directory, the key and where it lives, the list, tokens."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator

from authmesh import keystore
from authmesh.device import LocalDevice, permission_problems
from authmesh.device.directory import read_identity
from authmesh.device.identity import FILE_VERSION
from authmesh.device.passphrase import passphrase_file, passphrase_source
from authmesh.device.tokens import TOKEN_VARIABLE, TokenStore
from authmesh.keystore.tpm.pin import VARIABLE as PIN_VARIABLE
from authmesh.keystore.tpm.pin import pin_file_problems
from authmesh.keystore.tpm.place import VARIABLE as TCTI_VARIABLE
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.display import clean
from authmesh.protocol.errors import DirectoryError, IdentityMissing, PinRequired
from authmesh.protocol.keys import verify_signature

from ..spec import Context
from .findings import Finding, of_sentence

#: What is named with its version, where it is installed.
_PACKAGES = ("django", "djangorestframework", "cryptography", "httpx", "websockets", "tpm2-pytss")
_SOON_SECONDS = 600


def versions() -> Iterator[Finding]:
    """What is installed."""
    # Here, for it takes long, and other commands do without.
    from importlib.metadata import PackageNotFoundError, version

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
            "Install it into this environment: pip install amesh-django",
        )
        return
    yield Finding("versions", "ok", f"amesh-django {own}, {', '.join(found)}")


class DeviceChecks:
    """The checks of one device directory.

    Args:
        context: of the command.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.device: LocalDevice | None = None

    def directory(self) -> Iterator[Finding]:
        """Is there one, and can it be used?"""
        path = self._context.directory
        init = f"Make an identity: {self._context.command('init --name NAME')}"
        if not path.exists():
            yield Finding(
                "directory",
                "problem",
                f"There is no folder {path}.",
                f"{init}; or name another: {_how(self._context)}.",
            )
        elif not path.is_dir():
            yield Finding("directory", "problem", f"{path} is no folder.", f"Name another: {_how(self._context)}.")
        elif not os.access(path, os.R_OK | os.X_OK):
            yield Finding(
                "directory", "problem", f"{path} can't be read by this user.", "Check its owner and permissions."
            )
        elif not os.access(path, os.W_OK):
            yield Finding(
                "directory",
                "warning",
                f"{path} can't be written by this user: nothing can be changed there.",
                "Check its owner and permissions, unless that is meant.",
            )
        else:
            yield Finding("directory", "ok", str(path))

    def permissions(self) -> Iterator[Finding]:
        """Is everything in it private?"""
        path = self._context.directory
        problems = permission_problems(path, passphrase_file(path)) + pin_file_problems(os.environ)
        for problem in problems:
            yield Finding("permissions", "warning", problem.message, problem.hint)
        if not problems:
            yield Finding("permissions", "ok", "Directory, keys and passphrase are closed to others.")

    def identity(self) -> Iterator[Finding]:
        """Who is this device?"""
        path = self._context.directory
        try:
            identity = read_identity(path)
        except DirectoryError as error:
            found = of_sentence("identity", str(error))
            if os.environ.get(TOKEN_VARIABLE) and not (path / "identity.json").exists():
                token = f"Or use the token in {TOKEN_VARIABLE}: {self._context.command('bootstrap')}"
                found = Finding(found.id, found.status, found.message, f"{found.advice} {token}")
            yield found
            return
        yield Finding(
            "identity",
            "ok",
            f"{identity.device_id} ({clean(identity.friendly_name)}), key in {clean(identity.storage_backend)}",
        )
        written = json.loads((path / "identity.json").read_text("utf-8")).get("version")
        if written != FILE_VERSION:
            yield Finding(
                "identity",
                "warning",
                f"identity.json has the version {clean(str(written))}; this program writes {FILE_VERSION}.",
                "It could be read. If another program wrote it, keep both up to date.",
            )
        if os.environ.get(TOKEN_VARIABLE):
            yield Finding(
                "identity",
                "warning",
                f"{TOKEN_VARIABLE} is set, and ignored: there is an identity already.",
                "Take it out of the environment.",
            )
        self.device = self._context.device()

    def backends(self) -> Iterator[Finding]:
        """Where would init put a key here?"""
        why_not = {backend: keystore.unavailable(backend) for backend in keystore.BACKENDS}
        best = next(backend for backend, why in why_not.items() if why is None)
        reasons: dict[str, list[str]] = {}
        for backend, why in why_not.items():
            if why is not None:
                reasons.setdefault(str(why), []).append(backend)
        others = "; ".join(f"{' and '.join(backends)}: {why}" for why, backends in reasons.items())
        yield Finding("backends", "ok", f"A new key would go to {best}.", f"Not to be had: {others}" if others else "")

    def asks_pin(self) -> bool:
        """True if the key has a PIN and no file has it, so that a person is to be asked."""
        device = self.device
        if device is None or device.identity.storage_backend != "tpm2" or os.environ.get(PIN_VARIABLE):
            return False
        from authmesh.keystore.tpm.blob import parse_key_file

        try:
            text = (device.path / "keys" / f"{device.identity.key_alias}.tpm").read_text("utf-8")
            return parse_key_file(text).has_pin
        except Exception:  # the check of the key store says what is wrong with it
            return False

    def key_store(self) -> Iterator[Finding]:
        """Does the key store give the key?"""
        device = self._device()
        backend, path = device.identity.storage_backend, self._context.directory
        device.seal_secret()  # opens the key, and compares it with identity.json
        if backend == "tpm2":
            default = "" if os.environ.get(TCTI_VARIABLE) else f"; {TCTI_VARIABLE} names another"
            yield Finding(
                "key-store", "ok", f"tpm2: the TPM answers ({clean(tcti_name())}{default}), and its key loads"
            )
        elif backend == "encrypted-file":
            yield Finding(
                "key-store", "ok", f"encrypted-file: the key opens with the passphrase from {passphrase_source(path)}"
            )
        else:
            yield Finding("key-store", "ok", f"{clean(backend)}: the key is there")

    def key(self) -> Iterator[Finding]:
        """Does it sign?"""
        device = self._device()
        message = b"amesh doctor " + os.urandom(16)
        try:
            device.sign(message)
        except PinRequired as error:
            yield of_sentence("key", f"Not tried: {str(error)[:1].lower()}{str(error)[1:]}", "warning")
            return
        started = time.perf_counter()
        signature = device.sign(message)
        milliseconds = (time.perf_counter() - started) * 1000
        if verify_signature(device.identity.public_key, message, signature):
            yield Finding("key", "ok", f"It signs ({milliseconds:.1f} ms), and the signature verifies.")
        else:
            yield Finding(
                "key",
                "problem",
                "It signs, but the signature does not verify with the public key of identity.json.",
                "Restore both from one backup, or make a new identity: init --force.",
            )

    def allow_list(self) -> Iterator[Finding]:
        """Does the list match its seal, and how full is it?"""
        allow_list = self._context.allow_list()
        controllers, targets = allow_list.count(CONTROLLER), allow_list.count(TARGET)
        limit = allow_list.controller_limit
        found = f"The list matches its seal: {controllers} of {limit} controllers, {_counted(targets, 'target')}"
        if controllers > limit:
            advice = (
                "Revoke some, or raise the limit: maxControllers in identity.json, AMESH['MAX_CONTROLLERS'] in Django."
            )
            yield Finding("allow-list", "warning", f"{found}. That is more than the limit.", advice)
        else:
            yield Finding("allow-list", "ok", found)

    def tokens(self) -> Iterator[Finding]:
        """Which bootstrap tokens of this device are open? Nothing is said where there are none."""
        now = self._context.now().timestamp()
        waiting = [token for token in TokenStore(self._context.directory).read() if token.state(now) == "open"]
        if not waiting:
            return
        soonest = min(token.expires_at for token in waiting) - now
        what = f"{_counted(len(waiting), 'bootstrap token')} open, the first for {_minutes(soonest)} more"
        resume = self._context.command("provision --resume")
        if soonest < _SOON_SECONDS:
            yield Finding("tokens", "warning", f"{what}.", f"Serve it now: {resume}; or make another with provision.")
        else:
            yield Finding("tokens", "ok", f"{what}. A token is of use while somebody waits for it: {resume}")

    def _device(self) -> LocalDevice:
        if self.device is None:
            raise IdentityMissing("There is no identity.")
        return self.device


def _how(context: Context) -> str:
    return "AMESH['DIR']" if context.command("init").startswith("manage.py") else "--dir, or AUTH_MESH_DIR"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _minutes(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"

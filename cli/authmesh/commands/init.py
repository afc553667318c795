"""init: create the identity and the key of this device."""

from __future__ import annotations

from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

from authmesh import keystore
from authmesh.device import Identity, init_device, read_identity
from authmesh.keystore import KeyStore
from authmesh.keystore.tpm.pin import read_pin_file
from authmesh.protocol.display import clean
from authmesh.protocol.errors import DirectoryError, InvalidInput, KeyStoreError, Run
from authmesh.protocol.keys import encode_public_key

from .context import Context
from .replacing import Replaced, replaced
from .spec import Command, add_yes
from .terminal.console import Console
from .terminal.errors import UsageProblem
from .terminal.lines import Shown, Styled, facts
from .words import identity_json, named

#: Where each back end keeps a key, in a sentence.
_PLACES = {
    "secure-enclave": "the Secure Enclave of this Mac",
    "keychain": "the keychain of this user",
    "tpm2": "the TPM 2.0 of this machine",
    "encrypted-file": "an encrypted file in the device directory",
}


def init(
    context: Context,
    *,
    name: str,
    backend: str | None,
    force: bool,
    max_controllers: int | None,
    tpm_pin: bool,
    tpm_pin_file: str | None,
    explain: bool,
    yes: bool,
) -> None:
    """Create the identity and the key of this device."""
    directory, console = context.home.directory, context.console
    exists = (directory / "identity.json").exists()
    before, lost = _previous(directory), None
    if force and exists:
        lost = replaced(context, before)
        console.confirm("Replace this identity?", about=lost.lines(context.home), yes=yes)
    pin = None
    if (tpm_pin or tpm_pin_file is not None) and (force or not exists):
        backend, pin = "tpm2", _new_pin(console, backend, tpm_pin_file)
    search = _Search(console, explain=explain, chosen=backend is not None)
    identity = init_device(
        directory,
        name,
        now=context.now(),
        backend=backend,
        force=force,
        max_controllers=max_controllers,
        pin=pin,
        report=search.report,
    )
    context.warn_of_open_files()  # the directory may be older than the identity
    store = keystore.open_key_store(identity.storage_backend, folder=directory / "keys", passphrase=lambda: "")
    _show_identity(console, directory, identity, store, has_pin=pin is not None)
    if before is not None:
        _show_replaced(console, directory, before)
    _show_next_steps(context)
    console.result(
        {
            **identity_json(identity),
            "directory": str(directory),
            "protection": store.protection,
            "pin": pin is not None,
            "tried": search.tried,
            **_replaced_json(before, lost),
        }
    )


def _previous(directory: Path) -> Identity | None:
    with suppress(DirectoryError):
        return read_identity(directory)
    return None


def _new_pin(console: Console, backend: str | None, file: str | None) -> str:
    """Return the PIN for a new key in the TPM, from a file or typed twice. A machine without a TPM is refused before that."""
    if backend not in (None, "tpm2"):
        raise UsageProblem(
            "Only a key in the TPM can have a PIN. Nothing was changed.",
            hint=f"Omit --backend {backend}, or the option for the PIN.",
        )
    keystore.choose("tpm2")
    if file is not None:
        return read_pin_file(Path(file))
    pin, again = (
        console.ask_secret(f"{what} for the new key", instead="--tpm-pin-file FILE") for what in ("PIN", "The same PIN")
    )
    if pin != again:
        raise InvalidInput("The two PINs differ. Nothing was changed.", hint="Try again.")
    return pin


class _Search:
    """The search for the best back end, shown while it runs.

    Args:
        console: the place for the words.
        explain: True shows each back end that is tried.
        chosen: True if a person chose the back end.

    Attributes:
        tried: the back ends so far, for ``--json``.
    """

    def __init__(self, console: Console, *, explain: bool, chosen: bool) -> None:
        self._console = console
        self._explain = explain
        self._chosen = chosen
        self.tried: list[dict[str, str | bool | None]] = []

    def report(self, backend: str, problem: KeyStoreError | None) -> None:
        """Show one back end, and why this machine cannot use it; or that it is the place of the key."""
        if self._explain and not self.tried:
            self._console.say("Looking for the best place for the key", tone="title")
        why_not = problem.text(self._console.spell) if problem else ""
        self.tried.append({"backend": backend, "usable": problem is None, "reason": why_not or None})
        if self._explain:
            width = max(map(len, keystore.BACKENDS))
            self._console.say(Styled(f"no: {why_not}" if why_not else "yes", label=backend.ljust(width)))
        if problem is None:
            self._console.say(f"The key goes into {_PLACES[backend]} ({backend}){self._reason()}")

    def _reason(self) -> str:
        if self._chosen:
            return ", as --backend or the option for a PIN says."
        return "." if self._explain else ", the best place on this machine. --explain shows what was tried."


def _show_identity(console: Console, directory: Path, identity: Identity, store: KeyStore, *, has_pin: bool) -> None:
    backend = f"{identity.storage_backend}, with a PIN for each signature" if has_pin else identity.storage_backend
    protection = store.protection if store.in_hardware else f"Warning: {store.protection}"
    console.say(
        "",
        Styled("This device", "title"),
        *facts(
            ("Name", clean(identity.friendly_name)),
            ("Device ID", identity.device_id),
            ("Public key", encode_public_key(identity.public_key)),
            ("Backend", backend),
            ("Directory", str(directory)),
            ("Controllers", f"{identity.controller_limit} at a time (maxControllers in identity.json)"),
        ),
        "",
        Styled(protection, "plain" if store.in_hardware else "warning"),
    )


def _show_replaced(console: Console, directory: Path, before: Identity) -> None:
    console.say("", f"This identity replaces {named(before)}. Devices that trust the old one need the new key.")
    saved = f"allow_list.{before.device_id}.json"
    if (directory / saved).exists():
        console.say(f"The previous allow list was saved as {saved}. Its devices are no longer trusted.")


def _show_next_steps(context: Context) -> None:
    line = "LINE --role controller"
    steps: tuple[Shown, ...] = (
        "  To call a server from this device, print its key as one line, and trust that line on the server:",
        *facts(("  on this device", (Run("export-key"),)), ("  on the server", f"manage.py amesh_trust {line}")),
    )
    if context.home.is_server:
        steps = (
            "  To let a device call this server, print the key of the device as one line, and trust that line on this server:",
            *facts(("  on the device", "amesh export-key"), ("  on this server", (Run("trust", line),))),
        )
    context.console.say(
        "",
        Styled("Next steps", "title"),
        *steps,
        "  Without copying a line, pair two devices over a relay. CODE is the one-time code that listen shows:",
        *facts(("  to be called", (Run("listen"),)), ("  to call", (Run("invite", "CODE"),))),
    )


def _replaced_json(before: Identity | None, lost: Replaced | None) -> dict[str, Any]:
    return {
        "replaced": before.device_id if before else None,
        "forgottenBy": [entry.to_json() for entry in lost.targets] if lost else [],
        "lost": [entry.to_json() for entry in lost.controllers] if lost else [],
    }


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", required=True, help="Name that people give this device.")
    parser.add_argument(
        "--backend",
        choices=tuple(keystore.BACKENDS),
        help="Where the key is stored. Defaults to the best back end of this machine.",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="Replace an existing identity, after a question that names the devices affected. Its key is deleted.",
    )
    parser.add_argument(
        "--max-controllers",
        type=int,
        metavar="N",
        help="How many controllers may be trusted at a time. Defaults to 1.",
    )
    parser.add_argument(
        "--tpm-pin", action="store_true", help="Protect the key with a PIN for each signature, typed now. Needs a TPM."
    )
    parser.add_argument("--tpm-pin-file", metavar="FILE", help="The same, with the PIN in FILE.")
    parser.add_argument(
        "--explain", action="store_true", help="Show each place for the key that was tried, and why it cannot be used."
    )
    add_yes(parser)


INIT = Command("init", "Create the identity and the key of this device.", init, _arguments, asks=True)

"""init, export-key, sign-test: this device itself."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from authmesh import keystore
from authmesh.device import Identity, LocalDevice, init_device, read_identity
from authmesh.keystore.tpm.pin import read_pin_file
from authmesh.protocol.display import clean
from authmesh.protocol.errors import DirectoryError, InvalidInput, KeyStoreError
from authmesh.protocol.key_line import build_key_line
from authmesh.protocol.keys import encode_public_key, verify_signature

from .replacing import Replaced, replaced
from .spec import YES, Command, Context, Option
from .terminal.console import Line, UsageProblem, facts
from .words import identity_json


def _new_pin(context: Context, backend: str | None, file: str | None) -> str:
    """The PIN for a new key in the TPM, asked for twice or read from *file*; nobody is asked where there is no TPM."""
    if backend not in (None, "tpm2"):
        raise UsageProblem(f"A PIN needs a key in the TPM. Leave out --backend {backend}, or the PIN.")
    keystore.choose("tpm2")
    if file is not None:
        return read_pin_file(Path(file))
    pin, again = (
        context.console.ask_secret(f"{text} for the new key: ", instead="--tpm-pin-file FILE")
        for text in ("PIN", "The same PIN")
    )
    if pin != again:
        raise InvalidInput("The two PINs differ. Nothing was changed; try again.")
    return pin


def _ask_to_replace(context: Context, before: Identity | None, yes: bool) -> Replaced:
    """Say who is affected, and ask.

    Raises:
        Declined, Refused, Interrupted: as :meth:`Context.confirm`.
    """
    found = replaced(context, before)
    context.confirm("Replace this identity?", about=found.lines(context), yes=yes)
    return found


def init(
    context: Context,
    *,
    name: str,
    backend: str | None,
    force: bool,
    max_controllers: int | None,
    tpm_pin: bool,
    tpm_pin_file: str | None,
    yes: bool,
) -> None:
    """Make this device's identity and key."""
    say = context.console.say
    tried: list[dict[str, str | bool | None]] = []
    width = max(map(len, keystore.BACKENDS))

    def report(candidate: str, problem: KeyStoreError | None) -> None:
        if not tried:
            say("Looking for the best place for the key", tone="title")
        tried.append({"backend": candidate, "usable": problem is None, "reason": str(problem) if problem else None})
        say(Line(f"no: {problem}" if problem else "yes", label=candidate.ljust(width)))

    before = None
    with suppress(DirectoryError):
        before = read_identity(context.directory)
    there = (context.directory / "identity.json").exists()
    lost = _ask_to_replace(context, before, yes) if force and there else None
    pin = None
    if (tpm_pin or tpm_pin_file is not None) and (force or not there):
        backend, pin = "tpm2", _new_pin(context, backend, tpm_pin_file)
    identity = init_device(
        context.directory,
        name,
        now=context.now(),
        backend=backend,
        force=force,
        max_controllers=max_controllers,
        pin=pin,
        report=report,
    )
    replace(
        context, device=lambda: LocalDevice(context.directory)
    ).own_device()  # a directory from before may be open to others
    store = keystore.open_key_store(identity.storage_backend, folder=context.directory / "keys", passphrase=lambda: "")
    say(
        "",
        Line("This device", "title"),
        *facts(
            ("Name", clean(identity.friendly_name)),
            ("Device id", identity.device_id),
            ("Public key", encode_public_key(identity.public_key)),
            ("Back end", identity.storage_backend + (", with a PIN for each signature" if pin else "")),
            ("Directory", str(context.directory)),
            ("Controllers", f"{identity.controller_limit} at a time (maxControllers in identity.json)"),
        ),
        "",
        Line(
            store.protection if store.in_hardware else f"Warning: {store.protection}",
            "plain" if store.in_hardware else "warning",
        ),
    )
    if before is not None:
        say(
            "",
            f"It replaces {before.device_id}: whoever trusted that device must be given the new key.",
        )
        if (context.directory / f"allow_list.{before.device_id}.json").exists():
            say(f"Whom that device trusted is kept in allow_list.{before.device_id}.json, and is not trusted any more.")
    say(
        "",
        Line("Next steps", "title"),
        "  To let another device call this one (this device is the target, such as a server):",
        *facts(("  here", context.command("listen")), ("  there", "amesh invite CODE")),
        "  To call another device (this device is the controller, such as a laptop):",
        *facts(("  there", "amesh listen"), ("  here", context.command("invite CODE"))),
        Line(
            "  CODE is what listen shows. On a Django server: manage.py amesh_listen, amesh_invite. Without a relay, export-key and trust "
            "carry a line of text.",
            "quiet",
        ),
    )
    context.console.result(
        {
            **identity_json(identity),
            "directory": str(context.directory),
            "protection": store.protection,
            "pin": pin is not None,
            "tried": tried,
            "replaced": before.device_id if before else None,
            "forgottenBy": [entry.to_json() for entry in lost.targets] if lost else [],
            "lost": [entry.to_json() for entry in lost.controllers] if lost else [],
        }
    )


INIT = Command(
    "init",
    "Make this device's identity and key.",
    init,
    (
        Option(("--name",), "What people call this device.", metavar="NAME", required=True),
        Option(
            ("--backend",),
            "Where the key is to live; else the best that this machine has.",
            choices=tuple(keystore.BACKENDS),
        ),
        Option(
            ("--force",),
            "Replace an identity that is there, after a question that says who is affected. Its key is deleted.",
            "flag",
        ),
        Option(
            ("--max-controllers",),
            "How many controllers may be trusted at a time; 1 if left out.",
            "number",
            metavar="N",
        ),
        Option(("--tpm-pin",), "Each signature asks for a PIN, which is asked for now. Needs a TPM.", "flag"),
        Option(("--tpm-pin-file",), "The same, with the PIN that stands in FILE.", metavar="FILE"),
        YES,
    ),
    asks=True,
)


def export_key(context: Context) -> None:
    """Print this device's public key and name as one line."""
    identity = context.own_device().identity
    line = build_key_line(identity.public_key, clean(identity.friendly_name))
    if context.console.is_terminal():
        context.console.hint(f"Device id {identity.device_id}: compare it where this line is trusted.")
    context.console.data(line)
    context.console.result({**identity_json(identity), "line": line})


EXPORT_KEY = Command(
    "export-key",
    "Print this device's public key and name as one line, for trust on another device.",
    export_key,
    details=("The line holds nothing secret.",),
)


def sign_test(context: Context) -> None:
    """Sign with the real key and verify, without a server."""
    device = context.own_device()
    message = b"amesh sign-test " + os.urandom(16)
    started = time.perf_counter()
    device.sign(message)
    unlocked = time.perf_counter()
    signature = device.sign(message)
    ended = time.perf_counter()
    if not verify_signature(device.identity.public_key, message, signature):
        raise KeyStoreError(
            "The key signs, but its signature does not verify with the public key of identity.json. Restore both from one "
            "backup, or make a new identity: init --force."
        )
    milliseconds = {"firstMilliseconds": (unlocked - started) * 1000, "milliseconds": (ended - unlocked) * 1000}
    context.console.say(
        Line("The key signs, and the signature verifies.", "good"),
        *facts(
            ("Device id", device.identity.device_id),
            ("Name", clean(device.identity.friendly_name)),
            ("Back end", device.identity.storage_backend),
            (
                "Signing",
                f"{milliseconds['milliseconds']:.2f} ms, the first time {milliseconds['firstMilliseconds']:.0f} ms",
            ),
        ),
    )
    rounded = {key: round(value, 3) for key, value in milliseconds.items()}
    context.console.result({**identity_json(device.identity), "verified": True, **rounded})


SIGN_TEST = Command("sign-test", "Sign with this device's key and verify, without a server.", sign_test)

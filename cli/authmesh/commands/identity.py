"""export-key and sign-test: the identity of this device."""

from __future__ import annotations

import os
import time

from authmesh.protocol.display import clean
from authmesh.protocol.errors import KeyStoreError, Run
from authmesh.protocol.key_line import build_key_line
from authmesh.protocol.keys import verify_signature

from .context import Context
from .spec import Command
from .terminal.lines import Styled, facts
from .words import identity_json


def export_key(context: Context) -> None:
    """Print the public key and the name of this device as one line."""
    identity = context.own_device().identity
    line = build_key_line(identity.public_key, clean(identity.friendly_name))
    if context.console.is_terminal():
        context.console.hint(
            f"The device ID is {identity.device_id}. Compare it on the device where this line is trusted."
        )
    context.console.data(line)
    context.console.result({**identity_json(identity), "line": line})


EXPORT_KEY = Command(
    "export-key",
    "Print the public key and the name of this device as one line, for trust on another device.",
    export_key,
    details=("The line contains no secret.",),
)


def key_mismatch() -> KeyStoreError:
    """Return the error for a key that signs, but not for the public key of the identity."""
    return KeyStoreError(
        "The key signs, but its signature does not verify with the public key in identity.json.",
        hint=("Restore both from one backup, or create a new identity with ", Run("init", "--force --name NAME"), "."),
    )


def sign_test(context: Context) -> None:
    """Sign with the key of this device and verify, without a server."""
    device = context.own_device()
    message = b"amesh sign-test " + os.urandom(16)
    started = time.perf_counter()
    device.sign(message)
    unlocked = time.perf_counter()
    signature = device.sign(message)
    ended = time.perf_counter()
    if not verify_signature(device.identity.public_key, message, signature):
        raise key_mismatch()
    first, later = (unlocked - started) * 1000, (ended - unlocked) * 1000
    context.console.say(
        Styled("The key signs, and the signature verifies.", "good"),
        *facts(
            ("Device ID", device.identity.device_id),
            ("Name", clean(device.identity.friendly_name)),
            ("Backend", device.identity.storage_backend),
            ("Signing", f"{later:.2f} ms, the first time {first:.0f} ms"),
        ),
    )
    context.console.result(
        {
            **identity_json(device.identity),
            "verified": True,
            "firstMilliseconds": round(first, 3),
            "milliseconds": round(later, 3),
        }
    )


SIGN_TEST = Command("sign-test", "Sign with the key of this device and verify, without a server.", sign_test)

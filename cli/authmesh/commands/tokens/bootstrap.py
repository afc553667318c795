"""bootstrap: enrol this device with the token that provision made elsewhere; for a deployment, with nobody there."""

from __future__ import annotations

import math
import os
from functools import partial

from authmesh.device import read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.storage import expanded
from authmesh.pairing.bootstrap.enrolment import Enrolled, Enrolment, allowed_relays
from authmesh.protocol.display import clean
from authmesh.protocol.errors import IdentityExists
from authmesh.protocol.pairing.errors import PairingError

from ..relays import V1
from ..spec import Command, Context, Option
from ..terminal.console import Line, UsageProblem, facts
from ..words import MEANING, identity_json, named
from .awaiting import V1_WARNING


def _read_token(context: Context, token_file: str | None) -> str:
    if token_file == "-":  # noqa: S105 -- stdin
        text = context.console.read_stdin().decode("utf-8", "replace")
    elif token_file is not None:
        text = expanded(token_file).read_bytes()[:65536].decode("utf-8", "replace")
    else:
        text = os.environ.get(TOKEN_VARIABLE, "")
    # The whole line that provision prints is as good as what stands behind its sign.
    return text.strip().removeprefix(f"{TOKEN_VARIABLE}=")


def bootstrap(context: Context, *, token_file: str | None, timeout: float | None, no_wait: bool, v1: bool) -> None:
    """Enrol this device."""
    console = context.console
    if no_wait and timeout is not None:
        raise UsageProblem("--no-wait and --timeout do not go together.")
    if timeout is not None and not 0 <= timeout < math.inf:
        raise UsageProblem("--timeout is a number of seconds from 0.")
    make = context.enrolment or partial(Enrolment, directory=context.directory, relays=allowed_relays())
    enrolment = make(v1=v1, now=context.now, timeouts=context.timeouts)
    enrolled = enrolment.finish()
    if enrolled is None and (enrolment.directory / "identity.json").exists():
        _already(context, enrolment)
        return
    if enrolled is None:
        text = _read_token(context, token_file)
        if not text:
            raise UsageProblem(
                f"There is no token. Set {TOKEN_VARIABLE} to what provision printed, or name a file: --token-file FILE, - for stdin."
            )
        if v1:
            console.warn(V1_WARNING)

        def report(error: PairingError, pause: float) -> None:
            again = max(1, round(pause))
            if console.as_json:
                console.warn(f"{error} Trying again in {again} s.")
            else:
                console.hint(f"{error} Trying again in {again} s.")

        try:
            enrolled = enrolment.run(text, seconds=0 if no_wait else timeout, report=report)
        except IdentityExists:
            _already(context, enrolment)
            return
        if os.environ.get(TOKEN_VARIABLE, "").strip() == text:
            del os.environ[TOKEN_VARIABLE]  # it is of no use any more
    _tell(context, enrolled)


def _already(context: Context, enrolment: Enrolment) -> None:
    identity = read_identity(enrolment.directory)
    context.console.warn(
        f"This device has an identity already: {identity.device_id} ({clean(identity.friendly_name)}) in {enrolment.directory}. The "
        "bootstrap token was ignored; take it out of the environment."
    )
    context.console.result({**identity_json(identity), "enrolled": False})


def _tell(context: Context, enrolled: Enrolled) -> None:
    identity, controller = enrolled.identity, enrolled.controller
    context.console.say(
        Line("Enrolled", "good"),
        *facts(
            ("This device", f"{identity.device_id} ({clean(identity.friendly_name)})"),
            ("Controller", f"{named(controller)}: {MEANING[controller.role]}"),
        ),
        f"The token is used up: take {TOKEN_VARIABLE} out of the environment. If the controller is not yours, revoke it: "
        f"{context.command('revoke')} {controller.device_id}",
    )
    context.console.result({**identity_json(identity), "enrolled": True, "controller": controller.to_json()})


BOOTSTRAP = Command(
    "bootstrap",
    "Enrol this device with the token that provision made elsewhere: make its identity, and trust the one that made the token.",
    bootstrap,
    (
        Option(
            ("--token-file",),
            f"File with the token; - reads it from stdin; else {TOKEN_VARIABLE}.",
            metavar="FILE",
        ),
        Option(
            ("--timeout",),
            "How long to try, if nobody waits for this device yet; until the token expires if left out.",
            "seconds",
            metavar="SECONDS",
        ),
        Option(("--no-wait",), "Try once.", "flag"),
        V1,
    ),
    details=(
        "A device that has an identity ignores the token: so this may run at each start.",
        "The token is never an argument: arguments can be seen by every user of the machine.",
    ),
)

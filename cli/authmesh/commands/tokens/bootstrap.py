"""bootstrap: enroll this device with the token that provision made on another device; for a deployment without a person."""

from __future__ import annotations

import math
import os
from argparse import ArgumentParser

from authmesh.device import read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.storage import expanded
from authmesh.pairing.bootstrap.enrolment import Enrolled, Enrolment
from authmesh.protocol.errors import IdentityExists, Run
from authmesh.protocol.pairing.errors import PairingError

from ..context import Context
from ..relays import add_v1
from ..spec import Command
from ..terminal.errors import UsageProblem
from ..terminal.lines import Styled, facts
from ..words import MEANING, identity_json, named
from .awaiting import V1_WARNING

_MAX_FILE_BYTES = 65536
_UNCHANGED = "Nothing was changed."


def _read_token(context: Context, token_file: str | None) -> str:
    if token_file == "-":  # noqa: S105 -- stdin
        text = context.console.read_stdin().decode("utf-8", "replace")
    elif token_file is not None:
        text = expanded(token_file).read_bytes()[:_MAX_FILE_BYTES].decode("utf-8", "replace")
    else:
        text = os.environ.get(TOKEN_VARIABLE, "")
    # The whole line that provision prints is accepted, too.
    return text.strip().removeprefix(f"{TOKEN_VARIABLE}=")


def bootstrap(context: Context, *, token_file: str | None, timeout: float | None, no_wait: bool, v1: bool) -> None:
    """Enroll this device."""
    console = context.console
    if no_wait and timeout is not None:
        raise UsageProblem(f"--no-wait and --timeout exclude each other. {_UNCHANGED}", hint="Omit one of them.")
    if timeout is not None and not 0 <= timeout < math.inf:
        raise UsageProblem(f"--timeout must be a number of seconds greater than or equal to 0. {_UNCHANGED}")
    enrolment = context.home.enrolment(v1=v1, now=context.now, timeouts=context.timeouts)
    enrolled = enrolment.finish()
    if enrolled is None and (enrolment.directory / "identity.json").exists():
        _report_ignored(context, enrolment)
        return
    if enrolled is None:
        text = _read_token(context, token_file)
        if not text:
            raise UsageProblem(
                f"There is no bootstrap token. {_UNCHANGED}",
                hint=f"Set {TOKEN_VARIABLE} to the token that provision printed, or name a file with --token-file FILE (- for stdin).",
            )
        if v1:
            console.warn(V1_WARNING)

        def report(error: PairingError, pause: float) -> None:
            message = f"{error.text(console.spell)} Trying again in {max(1, round(pause))} s."
            if console.as_json:
                console.warn(message)
            else:
                console.hint(message)

        try:
            enrolled = enrolment.run(text, seconds=0 if no_wait else timeout, report=report)
        except IdentityExists:
            _report_ignored(context, enrolment)
            return
        if os.environ.get(TOKEN_VARIABLE, "").strip() == text:
            del os.environ[TOKEN_VARIABLE]  # used up
    _report(context, enrolled)


def _report_ignored(context: Context, enrolment: Enrolment) -> None:
    identity = read_identity(enrolment.directory)
    context.console.warn(
        f"This device already has an identity: {named(identity)} in {enrolment.directory}. The bootstrap token was ignored. Remove it from "
        "the environment."
    )
    context.console.result({**identity_json(identity), "enrolled": False})


def _report(context: Context, enrolled: Enrolled) -> None:
    identity, controller = enrolled.identity, enrolled.controller
    context.console.say(
        Styled("Enrolled", "good"),
        *facts(
            ("This device", named(identity)),
            ("Controller", f"{named(controller)}: {MEANING[controller.role]}"),
        ),
        f"The token is used up. Remove {TOKEN_VARIABLE} from the environment.",
        ("If the controller is not yours, revoke it: ", Run("revoke", controller.device_id)),
    )
    if (waits := context.home.after_trusting(controller)) is not None:
        context.console.warn(waits)
    context.console.result({**identity_json(identity), "enrolled": True, "controller": controller.to_json()})


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"File with the token; - reads it from stdin. Defaults to the token in {TOKEN_VARIABLE}.",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="How long to try if no controller waits for this device yet. Defaults to the time until the token expires.",
    )
    parser.add_argument("--no-wait", action="store_true", help="Try once.")
    add_v1(parser)


BOOTSTRAP = Command(
    "bootstrap",
    "Enroll this device with the token that provision made on another device: create its identity, and trust that device.",
    bootstrap,
    _arguments,
    details=(
        "A device that has an identity ignores the token, so you can run this command at each start.",
        "The token is never an argument, because every user of the machine can see arguments.",
    ),
)

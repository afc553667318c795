"""enroll: become a controller of a server, with an enrollment token that it made."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from authmesh.protocol.enrollment import ACTIVE, parse_token
from authmesh.protocol.errors import Run

from ..context import Context
from ..spec import Command
from ..terminal.errors import UsageProblem
from ..terminal.lines import Styled, facts
from ..words import MEANING, identity_json, named

if TYPE_CHECKING:
    from authmesh.client.enrolling import EnrolledDevice


def enroll(context: Context, *, token: str | None, name: str | None) -> None:
    """Enroll this device at the server that made a token."""
    context.console.result(enrolled_json(enroll_device(context, token=token, name=name)))


def enroll_device(context: Context, *, token: str | None, name: str | None) -> EnrolledDevice:
    """Do what :func:`enroll` does, and return the result, which is not printed as JSON."""
    from authmesh.client import enrolling  # quick start: it imports httpx

    console, variable = context.console, enrolling.ENROLL_VARIABLE
    if token == "-":  # noqa: S105 -- stdin
        text = console.read_stdin().decode("utf-8", "replace")
    elif token is not None:
        text = token
        console.warn(
            "Other users of this machine can see a token on the command line. Use - to read it from stdin, or set "
            f"{variable}."
        )
    else:
        text = os.environ.get(variable, "")
    text = text.strip().removeprefix(f"{variable}=")  # the whole line that the server prints is accepted, too
    if not text:
        raise UsageProblem(
            "There is no enrollment token. Nothing was changed.",
            hint=f"Set {variable} to the token that the server printed, or use - to read it from stdin.",
        )
    found = parse_token(text)
    done = enrolling.enroll(
        found,
        directory=context.home.directory,
        name=name,
        open_device=context.own_device,
        open_list=lambda device: context.home.allow_list(),
        now=context.now,
    )
    console.say(
        Styled("Enrolled" if done.state == ACTIVE else "Enrolled, and waits for approval", "good"),
        *facts(
            ("This device", named(done.identity)),
            ("Server", f"{named(done.server)}: {MEANING[done.server.role]}"),
            ("Address", done.url),
        ),
    )
    if done.state != ACTIVE:
        console.say(
            (
                "Until a person at the server approves this device, its requests are rejected. To ask again, run ",
                Run("enroll"),
                " again, or ",
                Run("doctor", f"{done.url}check"),
                ".",
            )
        )
    else:
        console.say(("To check that, run ", Run("doctor", f"{done.url}check"), "."))
    return done


def enrolled_json(done: EnrolledDevice) -> dict[str, Any]:
    """Return the result for ``--json``."""
    return {**identity_json(done.identity), "state": done.state, "server": done.server.to_json(), "url": done.url}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "token",
        metavar="TOKEN",
        nargs="?",
        help="The token; - reads it from stdin. Defaults to the token in AMESH_ENROLL_TOKEN.",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="Name of this device, if it has no identity yet. Defaults to the host name."
    )


ENROLL = Command(
    "enroll",
    "Enroll this device at a server, as its controller, with a token that the server made.",
    enroll,
    _arguments,
    details=(
        "A device without an identity gets one first. It keeps its key: if something fails, run the command again.",
        "The server is stored as a target, with its address.",
    ),
)

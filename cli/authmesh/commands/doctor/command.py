"""doctor: looks at all that must be in order for this device to be known and to sign, and says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from authmesh.device import LocalDevice
from authmesh.protocol.errors import AmeshError

from ..relays import DEFAULT_RELAY, relay_address
from ..spec import Command, Context, Option
from ..terminal.console import Line, Refused, UsageProblem
from .device import DeviceChecks, versions
from .findings import Examination, Found
from .relay import relay as relay_check

DEFAULT_SECONDS = 5.0
#: What a check of the network may take besides its time-outs: to find out that a name does not exist, and to say good-bye.
_GRACE_SECONDS = 5.0


class ProblemsFound(AmeshError):
    """Doctor has found something that does not work."""

    code = "problems_found"


class Further(NamedTuple):
    """A check of a front end: its id, what it asks (``database``), itself."""

    id: str
    of: str
    check: Callable[[], Found]


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """What a front end adds.

    Attributes:
        further: its own checks.
        database: what the allow list asks, where that may hang: a name for people.
        translate: what it knows better of an error; None where it knows nothing.
        prepare: called in the thread of each check before it.
    """

    further: Sequence[Further] = ()
    database: str = ""
    translate: Callable[[Exception], AmeshError | None] = lambda error: None
    prepare: Callable[[], None] = lambda: None


def doctor(context: Context, *, url: str | None, relay: str | None, no_relay: bool, timeout: float) -> None:
    """Run all checks."""
    examine(context, FrontEnd(), url=url, relay=relay, no_relay=no_relay, timeout=timeout)


def examine(
    context: Context, front_end: FrontEnd, *, url: str | None, relay: str | None, no_relay: bool, timeout: float
) -> None:
    """As :func:`doctor`, with what a front end adds.

    Raises:
        ProblemsFound: there is a problem.
        UsageProblem: the options contradict each other, or there is no such address.
    """
    # Here, for it takes httpx, and other commands are to start quickly.
    from .server import ServerChecks, check_url

    address = check_url(url) if url is not None else None
    if not 0 < timeout < math.inf:
        raise UsageProblem("--timeout is a number of seconds above 0.")
    if no_relay and relay is not None:
        raise UsageProblem("--relay and --no-relay do not go together.")
    if relay is not None:
        try:
            relay_address(relay)
        except AmeshError as error:
            raise UsageProblem(str(error)) from None
    console = context.console
    examination = Examination(console, front_end.translate, front_end.prepare)
    look = examination.look
    with console.holding_warnings() as warnings:
        look("versions", versions)
        checks = DeviceChecks(context)
        signer = _look_at_device(context, examination, checks, front_end.database)
        for one in front_end.further:
            look(one.id, one.check, of=one.of)
        patience = timeout + _GRACE_SECONDS
        if not no_relay:
            look("relay", partial(relay_check, relay, timeout), seconds=patience)
        if address is not None:
            server = ServerChecks(address, signer, timeout)
            if look("server", server.reachable, seconds=patience):
                look("clock", server.clock)
                look("known", partial(server.known, context.command("invite")))
            else:
                examination.skip("clock", "Not compared: the server did not answer.")
                examination.skip("known", "Not asked: the server did not answer.")
    told = " ".join(f"{finding.message} {finding.advice}" for finding in examination.findings)
    for text in dict.fromkeys(warnings):
        if text not in told:
            console.warn(text)
    _conclude(context, examination)


def _look_at_device(
    context: Context, examination: Examination, checks: DeviceChecks, database: str
) -> LocalDevice | None:
    """The device, if it can sign."""
    look = examination.look
    if look("directory", checks.directory):
        look("permissions", checks.permissions)
    look("identity", checks.identity)
    look("backends", checks.backends)
    device, signs = checks.device, False
    if device is None:
        for id in ("key-store", "key", "allow-list"):
            examination.skip(id, "Not looked at: there is no identity that could be used.")
        return None
    if checks.asks_pin():
        # Here, for Ctrl-C comes to this thread.
        try:
            pin = context.console.ask_secret("PIN of this device's key: ", instead="AMESH_TPM_PIN_FILE")
        except Refused:
            pin = ""
        if pin:
            device.ask_pin_by(lambda: pin)
    if look("key-store", checks.key_store):
        signs = look("key", checks.key) and examination.findings[-1].status == "ok"
        look("allow-list", checks.allow_list, of=database)
    else:
        examination.skip("key", "Not tried: the key store does not give the key.")
        examination.skip("allow-list", "Not looked at: its seal needs the key.")
    look("tokens", checks.tokens)
    return device if signs else None


def _conclude(context: Context, examination: Examination) -> None:
    problems, warnings = examination.count("problem"), examination.count("warning")
    context.console.result(
        {
            "ok": problems == 0,
            "problems": problems,
            "warnings": warnings,
            "checks": [finding.to_json() for finding in examination.findings],
        }
    )
    found = f"{_counted(problems, 'problem')}, {_counted(warnings, 'warning')}"
    if problems:
        raise ProblemsFound(f"{found}. What to do stands beside each.")
    more = f", {_counted(warnings, 'warning')}" if warnings else ""
    context.console.say("", Line(f"No problem found{more}.", "warning" if warnings else "good"))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


DOCTOR = Command(
    "doctor",
    "Look at all that must be in order here, and at a server or a relay, and say what to do.",
    doctor,
    (
        Option(
            ("url",),
            "A server to be asked whether it knows this device: its root, or its check address.",
            metavar="URL",
        ),
        Option(("--relay",), f"Address of the relay; else AMESH_RELAY_URL, else {DEFAULT_RELAY}.", metavar="URL"),
        Option(("--no-relay",), "Ask no relay.", "flag"),
        Option(
            ("--timeout",),
            "Seconds to wait for the server, and for the relay.",
            "seconds",
            metavar="SECONDS",
            default=DEFAULT_SECONDS,
        ),
    ),
    details=(
        "Each line begins with ok, warning, problem or skipped. The exit code is 1 if there is a problem. Nothing is changed (but "
        "that a server notes the newest list seen, as at each request), and no secret is shown.",
    ),
)

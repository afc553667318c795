"""The doctor command: run all checks, and say what to do."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from authmesh.device import LocalDevice
from authmesh.protocol.errors import AmeshError

from ..context import Context
from ..relays import DEFAULT_RELAY, RELAY_VARIABLE, relay_address
from ..spec import Command
from ..terminal.errors import Unanswered, UsageProblem
from ..terminal.lines import Styled
from ..words import counted
from .device import DeviceChecks, versions
from .findings import Examination, Found
from .relay import relay as relay_check

DEFAULT_SECONDS = 5.0
#: Additional seconds for a check of the network: to find that a name does not exist, and to close the connection.
_GRACE_SECONDS = 5.0


class ProblemsFound(AmeshError):
    """Doctor has found something that does not work."""

    code = "problems_found"
    default_message = "Doctor has found a problem."


class Further(NamedTuple):
    """A further check, of a front end.

    Attributes:
        id: id of the check.
        of: the component that it queries, such as ``database``; empty for none.
        check: returns its findings.
    """

    id: str
    of: str
    check: Callable[[], Found]


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """The part of a front end in doctor.

    Attributes:
        further: its own checks.
        database: the component that the allow list queries and that may hang; a name for people.
        translate: returns a better error for one that only the front end knows, or None.
        prepare: called in the thread of each check first.
    """

    further: Sequence[Further] = ()
    database: str = ""
    translate: Callable[[Exception], AmeshError | None] = lambda error: None
    prepare: Callable[[], None] = lambda: None


def doctor(
    context: Context, *, url: str | None, relay: str | None, public_relay: bool, no_relay: bool, timeout: float
) -> None:
    """Run all checks."""
    examine(context, FrontEnd(), url=url, relay=relay, public_relay=public_relay, no_relay=no_relay, timeout=timeout)


def examine(
    context: Context,
    front_end: FrontEnd,
    *,
    url: str | None,
    relay: str | None,
    public_relay: bool,
    no_relay: bool,
    timeout: float,
) -> None:
    """Run all checks, and those of a front end.

    Raises:
        ProblemsFound: there is a problem.
        UsageProblem: the options contradict each other, or an address is not valid.
    """
    from .server import ServerChecks, check_url  # quick start: imports httpx, which most commands do not need

    address = check_url(url) if url is not None else None
    if not 0 < timeout < math.inf:
        raise UsageProblem("--timeout must be a number of seconds greater than 0. Nothing was examined.")
    given = (("--relay", relay is not None), ("--public-relay", public_relay), ("--no-relay", no_relay))
    chosen = [option for option, is_given in given if is_given]
    if len(chosen) > 1:
        raise UsageProblem(
            f"{chosen[0]} and {chosen[1]} exclude each other. Nothing was examined.", hint="Omit one of them."
        )
    if relay is not None:
        try:
            relay_address(relay)
        except AmeshError as error:
            raise UsageProblem(error.message, hint=error.hint) from None
    console = context.console
    examination = Examination(console, front_end.translate, front_end.prepare)
    look = examination.look
    with console.holding_warnings() as warnings:
        look("versions", versions)
        signer = _look_at_device(context, examination, DeviceChecks(context), front_end.database)
        for one in front_end.further:
            look(one.id, one.check, of=one.of)
        patience = timeout + _GRACE_SECONDS
        if not no_relay:
            look("relay", partial(relay_check, relay, timeout, public=public_relay), seconds=patience)
        if address is not None:
            server = ServerChecks(address, signer, timeout)
            if look("server", server.reachable, seconds=patience):
                look("clock", server.clock)
                look("known", server.known)
            else:
                examination.skip("clock", "Not compared: the server did not answer.")
                examination.skip("known", "Not examined: the server did not answer.")
    shown = examination.text()
    for text in dict.fromkeys(warnings):
        if text not in shown:
            console.warn(text)
    _conclude(context, examination)


def _look_at_device(
    context: Context, examination: Examination, checks: DeviceChecks, database: str
) -> LocalDevice | None:
    """Run the checks of this machine, and return the device if it can sign."""
    look = examination.look
    if look("directory", checks.directory):
        look("permissions", checks.permissions)
    look("identity", checks.identity)
    look("backends", checks.backends)
    device, signs = checks.device, False
    if device is None:
        for id in ("key-store", "key", "allow-list"):
            examination.skip(id, "Not examined: there is no usable identity.")
        return None
    if checks.asks_pin():
        # In this thread, which receives Ctrl-C.
        try:
            pin = context.ask_pin()
        except Unanswered:
            pin = ""
        if pin:
            device.ask_pin_by(lambda: pin)
    if look("key-store", checks.key_store):
        signs = look("key", checks.key) and examination.findings[-1].status == "ok"
        look("allow-list", checks.allow_list, of=database)
    else:
        examination.skip("key", "Not examined: the key store does not return the key.")
        examination.skip("allow-list", "Not examined: verifying its seal needs the key.")
    look("tokens", checks.tokens)
    look("rotation", checks.rotation)
    return device if signs else None


def _conclude(context: Context, examination: Examination) -> None:
    problems, warnings = examination.count("problem"), examination.count("warning")
    context.console.result(
        {
            "ok": problems == 0,
            "problems": problems,
            "warnings": warnings,
            "checks": examination.to_json(),
        }
    )
    if problems:
        raise ProblemsFound(
            f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}.",
            hint="Each finding says what to do.",
        )
    more = f", {counted(warnings, 'warning')}" if warnings else ""
    context.console.say("", Styled(f"No problem found{more}.", "warning" if warnings else "good"))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help="A server to ask whether it knows this device: the root of the site, or its check address.",
    )
    parser.add_argument(
        "--relay",
        metavar="URL",
        help=f"Address of a relay to examine. Defaults to {RELAY_VARIABLE}. If that is not set, no relay is contacted.",
    )
    parser.add_argument(
        "--public-relay",
        action="store_true",
        help=f"Examine the public relay, {DEFAULT_RELAY}. It learns your address.",
    )
    parser.add_argument("--no-relay", action="store_true", help="Do not examine a relay.")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=DEFAULT_SECONDS,
        help="How many seconds to wait for the server, and for the relay. Defaults to %(default)g.",
    )


DOCTOR = Command(
    "doctor",
    "Examine this device, and a server or a relay, and say what to do.",
    doctor,
    _arguments,
    details=(
        "Each line begins with ok, warning, problem or skipped. The exit code is 1 if there is a problem. The command shows no secret, and "
        "changes nothing, except that a server records the newest list that it has seen, as it does for each request, and that an "
        "interrupted move to a new key is completed.",
    ),
)

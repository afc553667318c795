"""What the commands share with which a person decides about devices of this server."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Sequence

from amesh_django.decisions import Decided
from authmesh.commands.context import Context
from authmesh.commands.devices import device_lines
from authmesh.commands.home import Listed
from authmesh.commands.selecting import select
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Shown, Styled
from authmesh.commands.words import named
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import InvalidInput

from .home import listed

_SPAN = re.compile(r"([0-9]{1,6})([smhd])").fullmatch
#: Longest span that is counted back.
_MAX_AGO = dt.timedelta(days=36500)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def choose(context: Context, words: Sequence[str], states: Collection[str], of: str) -> list[Listed]:
    """Return the devices that a person named, among those in one of the states.

    Args:
        context: the surroundings of the command.
        words: device IDs, beginnings of device IDs, or names.
        states: states that the command is for.
        of: what such devices are, for a sentence.

    Raises:
        DeviceNotFound: no such device has one of the names.
        AmbiguousDevice: several have one of the names.
    """
    known = {device.entry.device_id: device for device in context.home.devices() if device.state in states}
    return [known[entry.device_id] for entry in select([device.entry for device in known.values()], words, of=of)]


def confirm(context: Context, verb: str, chosen: Sequence[Listed], *, yes: bool, about: Sequence[Shown] = ()) -> None:
    """Show devices, and ask whether to do something with them.

    Raises:
        Declined, Unanswered, Interrupted: as :meth:`Console.confirm`.
    """
    what = named(chosen[0].entry) if len(chosen) == 1 else f"these {len(chosen)} devices"
    lines = [line for device in chosen for line in device_lines(device)]
    context.console.confirm(f"{verb} {what}?", about=[*lines, *about], yes=yes)


def report(context: Context, decided: Decided, sentence: Callable[[Listed], str]) -> None:
    """Print what was decided about each device, and the devices as JSON.

    Args:
        context: the surroundings of the command.
        decided: the result.
        sentence: returns what a device is now, such as “is suspended”.
    """
    devices = [listed(row) for row in decided.devices]
    for device in devices:
        as_before = "" if device.entry.device_id in decided.changed else ", as before"
        context.console.say(Styled(f"{named(device.entry)} {sentence(device)}{as_before}.", "good"))
    context.console.result(
        {"devices": [{**device.to_json(), "changed": device.entry.device_id in decided.changed} for device in devices]}
    )


def time_ago(option: str, text: str, now: dt.datetime) -> dt.datetime:
    """Return the time that is a span such as ``90d`` before *now*.

    Raises:
        UsageProblem: it is not a span, or it is too long.
    """
    span = _SPAN(text.strip())
    length = dt.timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else dt.timedelta()
    if not dt.timedelta() < length <= _MAX_AGO:
        raise UsageProblem(
            f"{option} must be a number with s, m, h or d, and at most {_MAX_AGO.days}d. Nothing was changed.",
            hint="Use a span such as 12h or 90d.",
        )
    return now - length


def moment(option: str, text: str, now: dt.datetime) -> dt.datetime:
    """Return the time that a person means: a span such as ``90d``, or a time such as ``2026-12-24T18:00:00Z``.

    Args:
        option: the option, for a sentence.
        text: its value.
        now: the time to count a span from.

    Raises:
        UsageProblem: it is neither, or not in the future.
    """
    span = _SPAN(text.strip())
    try:
        found = now + dt.timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else parse_time(text)
    except (InvalidInput, OverflowError):
        found = now
    if found <= now:
        raise UsageProblem(
            f"{option} must be a time in the future. Nothing was changed.",
            hint="Use a span such as 12h or 90d, or a time such as 2027-01-31T18:00:00Z.",
        )
    return found

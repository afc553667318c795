"""trust: trust a device by hand, from the line that export-key printed there."""

from __future__ import annotations

import sys

from authmesh.device import AllowList
from authmesh.protocol.allow_list import CONTROLLER, ROLES, TARGET, DeviceEntry, Role
from authmesh.protocol.display import clean
from authmesh.protocol.errors import ControllerLimitReached, InvalidInput
from authmesh.protocol.key_line import KeyLine, parse_key_line
from authmesh.protocol.keys import encode_public_key

from .spec import YES, Command, Context, Option
from .terminal.console import Declined, Line, UsageProblem, facts
from .words import MEANING, changes, named, permissions, when


def trust(context: Context, *, line: str, role: Role, shell: bool, replace: str | None, yes: bool) -> None:
    """Trust the device whose line this is."""
    if shell and role == TARGET:
        raise UsageProblem("--shell is for a controller: a target does not authenticate to this device.")
    own_key = context.own_device().identity.public_key
    found = _read_line(context, line)
    if found.public_key == own_key:
        raise InvalidInput(
            "This is the key of this device itself. Run export-key on the other device and take its line."
        )
    allow_list = context.allow_list()
    entry = DeviceEntry.new(
        found.public_key,
        clean(found.name),  # stored as it is shown
        role,
        added_at=context.now(),
        permissions={"shell": True} if shell else {},
    )
    known = allow_list.find(entry.public_key)
    about = _about(entry, known, context.past(entry.public_key))
    replaced: DeviceEntry | None
    if replace is not None:
        replaced = _named_replacement(allow_list, entry, replace)
        context.confirm(_replacement_question(replaced), about=about, yes=yes)
    else:
        replaced = _offered_replacement(context, allow_list, entry, known, about)
        if replaced is None:
            context.confirm("Trust this device?", about=about, yes=yes)
    allow_list.add(entry, replacing=replaced.device_id if replaced else None)
    context.console.say(
        Line(f"{'Refreshed' if known else 'Trusted'}: {named(entry)} as {role}: {MEANING[role]}.", "good")
    )
    if replaced is not None:
        context.console.say(f"Revoked in its place: {named(replaced)}.")
    context.console.result(
        {
            "device": entry.to_json(),
            "refreshed": known is not None,
            "replaced": replaced.device_id if replaced else None,
        }
    )


def _read_line(context: Context, line: str) -> KeyLine:
    if line != "-":
        return parse_key_line(line)
    if sys.stdin.isatty():
        context.console.hint("Paste the line of export-key, then press Enter and Ctrl-D.")
    return parse_key_line(context.console.read_stdin().decode("utf-8", "replace"))


def _about(entry: DeviceEntry, known: DeviceEntry | None, past: str | None) -> list[Line | str]:
    """What one must know before one trusts: who it is, what it may do then, and what was before."""
    lines: list[Line | str] = [
        Line("The device to be trusted", "title"),
        *facts(
            ("Device id", entry.device_id),
            ("Name", entry.friendly_name),
            ("Public key", encode_public_key(entry.public_key)),
            ("Role", f"{entry.role}: {MEANING[entry.role]}"),
            ("Permissions", permissions(entry) or "none"),
        ),
    ]
    if known is not None:
        lines += [
            "",
            f"It is known already, added {when(known.added_at)}, and will be refreshed:",
            *changes(entry, known),
        ]
    elif past is not None:
        lines += ["", Line(past, "warning")]
    return [*lines, "", "Compare the device id with the one on its own screen: export-key and list show it there."]


def _replacement_question(replaced: DeviceEntry) -> str:
    return f"Revoke {named(replaced)} and trust this device in its place?"


def _named_replacement(allow_list: AllowList, entry: DeviceEntry, replace: str) -> DeviceEntry:
    replaced = allow_list.get(replace)
    if replaced.public_key == entry.public_key:
        raise UsageProblem(
            "--replace names the very device that is to be trusted. Leave it out: a known device is refreshed."
        )
    return replaced


def _offered_replacement(
    context: Context, allow_list: AllowList, entry: DeviceEntry, known: DeviceEntry | None, about: list[Line | str]
) -> DeviceEntry | None:
    """Ask which controller is to go where one more would be too many; None where there is room.

    Raises:
        ControllerLimitReached: nobody is there to be asked, or one less would not be enough.
        Declined: the answer is no.
    """
    limit = allow_list.controller_limit
    is_counted = known is not None and known.role == CONTROLLER
    if entry.role != CONTROLLER or is_counted or allow_list.count(CONTROLLER) < limit:
        return None
    controllers = [other for other in allow_list.read() if other.role == CONTROLLER]
    full = f"This device takes {limit} controller{'s' if limit != 1 else ''} (maxControllers) and trusts as many"
    if len(controllers) > limit:
        raise ControllerLimitReached(
            f"This device takes {limit} controller{'s' if limit != 1 else ''} (maxControllers) and trusts {len(controllers)}. "
            f"Revoke {len(controllers) - limit + 1} of them first: {context.command('revoke')} ID"
        )
    if context.console.no_input:
        names = ", ".join(named(other) for other in controllers[:5]) + (", …" if len(controllers) > 5 else "")
        raise ControllerLimitReached(
            f"{full}: {names}. Name the one that is to go: --replace {controllers[0].device_id}. Nothing was changed."
        )
    instead = f"--replace {controllers[0].device_id if len(controllers) == 1 else 'ID'} with --yes"
    about = [*about, "", Line(f"{full}. To trust one more, one must go.", "warning")]
    if len(controllers) == 1:
        replaced = controllers[0]
        context.confirm(_replacement_question(replaced), about=about, yes=False, instead=instead)
        return replaced
    choices = [named(other) for other in controllers]
    chosen = context.console.choose("Which one is to be revoked?", choices, about=about, instead=instead)
    if chosen is None:
        raise Declined()
    context.confirm(_replacement_question(controllers[chosen]), about=[], yes=False, instead=instead)
    return controllers[chosen]


TRUST = Command(
    "trust",
    "Trust a device by hand, from the line that export-key printed there.",
    trust,
    (
        Option(
            ("line",),
            "The line that export-key printed on the other device; - reads it from stdin.",
            metavar="LINE",
            required=True,
        ),
        Option(
            ("--role",),
            "controller: it may authenticate to this device. target: this device may authenticate to it.",
            choices=ROLES,
            required=True,
        ),
        Option(("--shell",), "Grant a controller a shell as well.", "flag"),
        Option(("--replace",), "Device id of the one that is revoked in the same step.", metavar="ID"),
        YES,
    ),
    details=("Shows the device id in full and asks. A device that is known already is refreshed.",),
    asks=True,
)

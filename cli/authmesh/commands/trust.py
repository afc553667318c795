"""trust: trust a device by hand, with the line that export-key prints on it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from authmesh.device import AllowList
from authmesh.protocol.allow_list import CONTROLLER, ROLES, TARGET, DeviceEntry, Role
from authmesh.protocol.display import clean
from authmesh.protocol.errors import ControllerLimitReached, InvalidInput, Run
from authmesh.protocol.key_line import KeyLine, parse_key_line
from authmesh.protocol.keys import encode_public_key

from .context import Context
from .spec import Command, add_yes
from .terminal.console import Console
from .terminal.errors import Declined, UsageProblem
from .terminal.lines import Shown, Styled, facts
from .words import MEANING, changes, counted, named, permissions, when

_UNCHANGED = "Nothing was changed."


def trust(context: Context, *, line: str, role: Role, shell: bool, replace: str | None, yes: bool) -> None:
    """Trust the device that a line of export-key belongs to."""
    if shell and role == TARGET:
        raise UsageProblem(
            f"--shell is for a controller: a target does not authenticate to this device. {_UNCHANGED}",
            hint="Omit --shell, or use --role controller.",
        )
    console = context.console
    own_key = context.own_device().identity.public_key
    found = _read_line(console, line)
    if found.public_key == own_key:
        raise InvalidInput(
            f"This is the key of this device itself. {_UNCHANGED}",
            hint="Run export-key on the other device, and use the line that it prints.",
        )
    allow_list = context.home.allow_list()
    entry = DeviceEntry.new(
        found.public_key,
        clean(found.name),  # stored as it is shown
        role,
        added_at=context.now(),
        permissions={"shell": True} if shell else {},
    )
    known = allow_list.find(entry.public_key)
    about = _about(entry, known, context.home.remarks(entry.public_key))
    replaced: DeviceEntry | None
    if replace is not None:
        replaced = _named_replacement(allow_list, entry, replace)
        console.confirm(_replacement_question(replaced), about=about, yes=yes)
    else:
        replaced = _offered_replacement(console, allow_list, entry, known, about)
        if replaced is None:
            console.confirm("Trust this device?", about=about, yes=yes)
    allow_list.add(entry, replacing=replaced.device_id if replaced else None)
    console.say(Styled(f"{'Refreshed' if known else 'Trusted'}: {named(entry)} as {role}: {MEANING[role]}.", "good"))
    if replaced is not None:
        console.say(f"Revoked in its place: {named(replaced)}.")
    console.result(
        {
            "device": entry.to_json(),
            "refreshed": known is not None,
            "replaced": replaced.device_id if replaced else None,
        }
    )


def _read_line(console: Console, line: str) -> KeyLine:
    if line != "-":
        return parse_key_line(line)
    if sys.stdin.isatty():
        console.hint("Paste the line of export-key, then press Enter and Ctrl-D.")
    return parse_key_line(console.read_stdin().decode("utf-8", "replace"))


def _about(entry: DeviceEntry, known: DeviceEntry | None, remarks: str | None) -> list[Shown]:
    """Return what a person must know before trusting a device: its identity, its permissions, its history."""
    lines: list[Shown] = [
        Styled("The device to trust", "title"),
        *facts(
            ("Device ID", entry.device_id),
            ("Name", entry.friendly_name),
            ("Public key", encode_public_key(entry.public_key)),
            ("Role", f"{entry.role}: {MEANING[entry.role]}"),
            ("Permissions", permissions(entry) or "none"),
        ),
    ]
    if known is not None:
        lines += [
            "",
            f"It is already trusted, added {when(known.added_at)}, and will be refreshed:",
            *changes(entry, known),
        ]
    if remarks is not None:
        lines += ["", Styled(remarks, "warning")]
    return [*lines, "", "Compare the device ID with the one that export-key or list shows on that device."]


def _replacement_question(replaced: DeviceEntry) -> str:
    return f"Revoke {named(replaced)} and trust this device in its place?"


def _named_replacement(allow_list: AllowList, entry: DeviceEntry, replace: str) -> DeviceEntry:
    replaced = allow_list.get(replace)
    if replaced.public_key == entry.public_key:
        raise UsageProblem(
            f"--replace names the device that you want to trust. {_UNCHANGED}",
            hint="Omit --replace: a known device is refreshed.",
        )
    return replaced


def _offered_replacement(
    console: Console, allow_list: AllowList, entry: DeviceEntry, known: DeviceEntry | None, about: list[Shown]
) -> DeviceEntry | None:
    """Ask which controller to revoke if one more would exceed the limit. Return None if it would not.

    Raises:
        ControllerLimitReached: nobody can be asked, or revoking one controller would not be enough.
        Declined: the answer is no.
    """
    limit = allow_list.controller_limit
    is_counted = known is not None and known.role == CONTROLLER
    if entry.role != CONTROLLER or is_counted or allow_list.count(CONTROLLER) < limit:
        return None
    controllers = [other for other in allow_list.read() if other.role == CONTROLLER]
    full = (
        f"The limit of this device is {counted(limit, 'controller')} (maxControllers), and it trusts {len(controllers)}"
    )
    if len(controllers) > limit:
        excess = len(controllers) - limit + 1
        raise ControllerLimitReached(
            f"{full}. {_UNCHANGED}",
            hint=(f"Revoke {excess} of them first, each with ", Run("revoke", "ID"), "."),
        )
    if console.no_input:
        names = ", ".join(named(other) for other in controllers[:5]) + (", …" if len(controllers) > 5 else "")
        raise ControllerLimitReached(
            f"{full}: {names}. {_UNCHANGED}",
            hint=f"Name the controller to revoke with --replace {controllers[0].device_id}.",
        )
    instead = f"--replace {controllers[0].device_id if len(controllers) == 1 else 'ID'} with --yes"
    about = [*about, "", Styled(f"{full}. To trust this device, you must revoke a controller.", "warning")]
    if len(controllers) == 1:
        console.confirm(_replacement_question(controllers[0]), about=about, instead=instead)
        return controllers[0]
    choices = [named(other) for other in controllers]
    chosen = console.choose("Which controller do you want to revoke?", choices, about=about, instead=instead)
    if chosen is None:
        raise Declined()
    console.confirm(_replacement_question(controllers[chosen]), instead=instead)
    return controllers[chosen]


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "line", metavar="LINE", help="The line that export-key prints on the other device; - reads it from stdin."
    )
    parser.add_argument(
        "--role",
        choices=ROLES,
        required=True,
        help="controller: it may authenticate to this device. target: this device may authenticate to it.",
    )
    parser.add_argument("--shell", action="store_true", help="Grant a shell to a controller.")
    parser.add_argument("--replace", metavar="ID", help="Device ID of a trusted device to revoke in the same step.")
    add_yes(parser)


TRUST = Command(
    "trust",
    "Trust a device by hand, with the line that export-key prints on it.",
    trust,
    _arguments,
    details=(
        "The command shows the whole device ID and asks for confirmation. A device that is already trusted is refreshed.",
    ),
    asks=True,
)

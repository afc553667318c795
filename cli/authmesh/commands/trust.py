"""trust: trust devices by hand, with the lines that export-key prints on them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from authmesh.device import AllowList
from authmesh.protocol.allow_list import CONTROLLER, ROLES, TARGET, DeviceEntry, Role
from authmesh.protocol.display import clean
from authmesh.protocol.errors import ControllerLimitReached, InvalidInput, Run
from authmesh.protocol.key_line import KeyLine, parse_key_line
from authmesh.protocol.keys import encode_public_key

from .context import Context
from .home import Listed
from .spec import Command, add_yes
from .terminal.console import Console
from .terminal.errors import Declined, UsageProblem
from .terminal.lines import Shown, Styled, facts
from .words import MEANING, counted, named, permissions, refreshed

_UNCHANGED = "Nothing was changed."


def trust(context: Context, *, line: str, role: Role, shell: bool, replace: str | None, yes: bool) -> None:
    """Trust the devices that lines of export-key belong to."""
    if shell and role == TARGET:
        raise UsageProblem(
            f"--shell is for a controller: a target does not authenticate to this device. {_UNCHANGED}",
            hint="Omit --shell, or use --role controller.",
        )
    own_key = context.own_device().identity.public_key
    found = _read_lines(context.console, line)
    if any(one.public_key == own_key for one in found):
        raise InvalidInput(
            f"This is the key of this device itself. {_UNCHANGED}",
            hint="Run export-key on the other device, and use the line that it prints.",
        )
    entries = [
        DeviceEntry.new(
            one.public_key,
            clean(one.name),  # stored as it is shown
            role,
            added_at=context.now(),
            permissions={"shell": True} if shell else {},
        )
        for one in found
    ]
    if len(entries) == 1:
        _trust_one(context, entries[0], replace, yes)
    else:
        _trust_several(context, entries, replace, yes)


def _trust_one(context: Context, entry: DeviceEntry, replace: str | None, yes: bool) -> None:
    console, allow_list = context.console, context.home.allow_list()
    known = context.home.known().get(entry.public_key)
    about = _about(entry, known, context.home.remarks(entry.public_key))
    replaced: DeviceEntry | None
    if replace is not None:
        replaced = _named_replacement(allow_list, entry, replace)
        console.confirm(_replacement_question(replaced), about=about, yes=yes)
    else:
        replaced = _offered_replacement(console, allow_list, entry, known, about)
        if replaced is None:
            console.confirm("Trust this device?", about=about, yes=yes)
    words = {entry.device_id: context.home.hub_words(entry.public_key)}
    allow_list.add(entry, replacing=replaced.device_id if replaced else None)
    _conclude(context, [entry], {entry.device_id} if known else set(), replaced, words)


def _trust_several(context: Context, entries: list[DeviceEntry], replace: str | None, yes: bool) -> None:
    """Trust several devices in one step, after one question.

    Raises:
        UsageProblem: ``--replace`` was given.
        ControllerLimitReached: the list would have too many controllers.
    """
    if replace is not None:
        raise UsageProblem(
            f"--replace needs exactly one line, and there are {len(entries)}. {_UNCHANGED}",
            hint=("Omit --replace, and first revoke what must go with ", Run("revoke", "DEVICE"), "."),
        )
    console, allow_list = context.console, context.home.allow_list()
    listed = context.home.known()
    known = {entry.public_key: listed[entry.public_key] for entry in entries if entry.public_key in listed}
    _check_room(allow_list, entries, known)
    about: list[Shown] = [
        Styled(f"The devices to trust as {entries[0].role}: {MEANING[entries[0].role]}", "title"),
        Styled(f"  Permissions of each: {permissions(entries[0]) or 'none'}"),
    ]
    for entry in entries:
        about.append(Styled(f"  {entry.device_id}  {entry.friendly_name}", whole=True))
        if entry.public_key in known:
            about += refreshed(entry, known[entry.public_key])
        if (remarks := context.home.remarks(entry.public_key)) is not None:
            about.append(Styled(f"    {remarks}", "warning"))
    about += ["", "Compare each device ID with the one that export-key or list shows on that device."]
    console.confirm(f"Trust these {len(entries)} devices?", about=about, yes=yes)
    words = {entry.device_id: context.home.hub_words(entry.public_key) for entry in entries}
    allow_list.add_all(entries, even_revoked=True)
    _conclude(context, entries, {found.entry.device_id for found in known.values()}, None, words)


def _check_room(allow_list: AllowList, entries: list[DeviceEntry], known: dict[bytes, Listed]) -> None:
    """Find out before the question whether the list has room for all devices."""
    more = sum(
        entry.role == CONTROLLER and (entry.public_key not in known or known[entry.public_key].entry.role != CONTROLLER)
        for entry in entries
    )
    limit, present = allow_list.controller_limit, allow_list.count(CONTROLLER)
    if more and present + more > limit:
        raise ControllerLimitReached(
            f"The limit of this device is {counted(limit, 'controller')} (maxControllers). It trusts {present}, and these would be "
            f"{more} more. {_UNCHANGED}",
            hint=("Trust fewer, raise the limit, or revoke others first with ", Run("revoke", "DEVICE"), "."),
        )


def _conclude(
    context: Context,
    entries: list[DeviceEntry],
    known: set[str],
    replaced: DeviceEntry | None,
    words: Mapping[str, list[dict[str, Any]]],
) -> None:
    console = context.console
    for entry in entries:
        done, waits = "Refreshed" if entry.device_id in known else "Trusted", context.home.after_trusting(entry)
        if waits is None:
            console.say(Styled(f"{done}: {named(entry)} as {entry.role}: {MEANING[entry.role]}.", "good"))
        else:
            console.say(Styled(f"{done}: {named(entry)} as {entry.role}.", "good"))
            console.warn(waits)
    if replaced is not None:
        console.say(f"Revoked in its place: {named(replaced)}.")
    console.result(
        {
            "devices": [
                {
                    **entry.to_json(),
                    "refreshed": entry.device_id in known,
                    **({"hubs": words[entry.device_id]} if words[entry.device_id] else {}),
                }
                for entry in entries
            ],
            "replaced": replaced.device_id if replaced else None,
        }
    )


def _read_lines(console: Console, line: str) -> list[KeyLine]:
    """Return the content of all lines in the argument or on stdin, each key once.

    Raises:
        InvalidInput: a line is not valid, or two lines give one key two names.
    """
    if line == "-":
        if console.reads_terminal():
            console.hint("Paste one or more lines of export-key, then press Enter and Ctrl-D.")
        line = console.read_stdin().decode("utf-8", "replace")
    lines = _split(line)
    found: dict[bytes, KeyLine] = {}
    for number, text in enumerate(lines, 1):
        try:
            one = parse_key_line(text)
        except InvalidInput as error:
            where = f"Line {number} of {len(lines)} is not valid. " if len(lines) > 1 else ""
            raise InvalidInput(f"{where}{error.message} {_UNCHANGED}", hint=error.hint) from None
        if found.setdefault(one.public_key, one) != one:
            raise InvalidInput(
                f"Line {number} of {len(lines)} has the key of an earlier line, and another name. {_UNCHANGED}",
                hint="Remove one of the two lines.",
            )
    return list(found.values())


def _split(text: str) -> list[str]:
    """Return the lines of export-key in a text. A line may be broken into several, as a terminal or a mail program does."""
    lines: list[str] = []
    for part in text.split():
        if lines and not part.lstrip("\"'`").startswith("amesh-key-"):
            lines[-1] += part
        else:
            lines.append(part)
    return lines or [""]


def _about(entry: DeviceEntry, known: Listed | None, remarks: str | None) -> list[Shown]:
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
        lines += ["", *refreshed(entry, known)]
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
    console: Console, allow_list: AllowList, entry: DeviceEntry, known: Listed | None, about: list[Shown]
) -> DeviceEntry | None:
    """Ask which controller to revoke if one more would exceed the limit. Return None if it would not.

    Raises:
        ControllerLimitReached: nobody can be asked, or revoking one controller would not be enough.
        Declined: the answer is no.
    """
    limit = allow_list.controller_limit
    is_counted = known is not None and known.entry.role == CONTROLLER
    if entry.role != CONTROLLER or is_counted or allow_list.count(CONTROLLER) < limit:
        return None
    controllers = [other for other in allow_list.revocable() if other.role == CONTROLLER]
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
        "line",
        metavar="LINE",
        help="The line that export-key prints on the other device, or several such lines in quotes; - reads them from stdin.",
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
        "The command shows the whole device ID and asks for confirmation. A device that is already trusted is refreshed. Several lines are "
        "shown in one table, and one question is asked: either all devices are trusted, or none.",
    ),
    asks=True,
)

"""group, map, purge, prune: what only a list in a database has."""

from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser
from collections.abc import Sequence

from django.contrib.auth import get_user_model

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.conf import amesh_settings
from amesh_django.decisions import MAX_ROWS
from amesh_django.states import ACTIVE, EXPIRED, PENDING, REVOKED, STATES, SUSPENDED
from authmesh.commands.context import Context
from authmesh.commands.home import Listed
from authmesh.commands.selecting import add_devices
from authmesh.commands.spec import Command, add_yes
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled, facts
from authmesh.commands.words import counted, named
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import Run

from .deciding import choose, confirm, time_ago

_UNCHANGED = "Nothing was changed."


def _list(context: Context) -> DatabaseAllowList:
    return DatabaseAllowList(by=context.home.actor)


def group(context: Context, *, action: str, name: str | None, scope: list[str], yes: bool) -> None:
    """Make, remove, or list groups of devices."""
    if (action == "list") != (name is None):
        raise UsageProblem(
            f"group {action} {'takes no name' if name else 'needs the name of a group'}. {_UNCHANGED}",
            hint=("Use ", Run("group", "list" if name else f"{action} NAME"), "."),
        )
    if scope and action != "add":
        raise UsageProblem(f"--scope is only used with group add. {_UNCHANGED}", hint="Omit --scope.")
    devices, console = _list(context), context.console
    if name is not None and action == "add":
        if not scope and devices.groups().get(name):
            raise UsageProblem(
                f"The group {name} exists, and would lose all its scopes. {_UNCHANGED}",
                hint=("Name the scopes that it must have with --scope, or run ", Run("group", f"remove {name}"), "."),
            )
        devices.put_group(name, scope)
        console.say(Styled(f"The group {name} has {', '.join(sorted(scope)) or 'no scopes'}.", "good"))
    elif name is not None:
        members = [one for one in context.home.devices() if name in one.groups]
        console.confirm(f"Remove the group {name}? It has {counted(len(members), 'member')}.", yes=yes)
        devices.remove_group(name)
        console.say(Styled(f"The group {name} was removed, and its members no longer have its scopes.", "good"))
    groups, known = devices.groups(), context.home.devices()
    if action == "list":
        console.say(*(facts(*((each, ", ".join(sorted(groups[each])) or "no scopes") for each in sorted(groups)))))
        if not groups:
            console.say(("There are no groups. To make one, run ", Run("group", "add NAME --scope SCOPE"), "."))
    console.result(
        {
            "groups": [
                {
                    "name": each,
                    "scopes": sorted(groups[each]),
                    "devices": [one.entry.device_id for one in known if each in one.groups],
                }
                for each in sorted(groups)
            ]
        }
    )


def map_device(context: Context, *, device: str, user: str | None, remove: bool) -> None:
    """Let a device act as a Django user, or as none."""
    if (user is None) != remove:
        raise UsageProblem(f"Name a user, or use --remove. {_UNCHANGED}")
    (found,) = choose(context, [device], STATES, "device")
    row, users = None, get_user_model()
    if user is not None:
        row = users._default_manager.filter(**{users.USERNAME_FIELD: user}).first()
        if row is None:
            raise UsageProblem(f"There is no user {user!r}. {_UNCHANGED}", hint="Use the name of an existing user.")
    _list(context).map_user(found.entry.device_id, row)
    as_whom = f"acts as the user {user}" if user is not None else "acts as no user"
    context.console.say(Styled(f"{named(found.entry)} {as_whom} in REST framework views.", "good"))
    context.console.result({"device": found.entry.device_id, "user": user})


def purge(context: Context, *, devices: Sequence[str], yes: bool) -> None:
    """Remove the rows of revoked devices permanently."""
    revoked = choose(context, devices, (REVOKED,), "revoked device")
    confirm(
        context,
        "Remove permanently",
        revoked,
        yes=yes,
        about=["The key of a purged device is as unknown as any other."],
    )
    for start in range(0, len(revoked), MAX_ROWS):
        part = revoked[start : start + MAX_ROWS]
        _list(context).purge_all([device.entry.device_id for device in part])
        context.console.say(*(Styled(f"Purged: {named(device.entry)}.", "good") for device in part))
    context.console.result({"devices": [device.entry.device_id for device in revoked]})


def prune(context: Context, *, unseen: str, revoke: bool, yes: bool) -> None:
    """Suspend or revoke controllers that have not been seen for long."""
    if not amesh_settings().LAST_SEEN_SECONDS:
        raise UsageProblem(
            f"AMESH['LAST_SEEN_SECONDS'] is 0, so it is not known when a device was last seen. {_UNCHANGED}"
        )
    since = time_ago("--unseen", unseen, context.now())
    states = (ACTIVE, PENDING, EXPIRED, SUSPENDED) if revoke else (ACTIVE, PENDING, EXPIRED)
    found = [device for device in context.home.devices() if device.state in states and _is_unseen(device, since)]
    console, ids = context.console, [device.entry.device_id for device in found]
    if not found:
        console.say(f"Every controller was seen, or added, in the last {unseen}. {_UNCHANGED}")
    else:
        confirm(context, "Revoke" if revoke else "Suspend", found, yes=yes)
        reason = f"not seen for {unseen}"
        if revoke:
            _list(context).revoke_all(ids, reason=reason)
        else:
            _list(context).suspend(ids, reason=reason)
        console.say(Styled(f"{counted(len(found), 'device')} {'revoked' if revoke else 'suspended'}.", "good"))
    console.result({"devices": ids, "action": "revoke" if revoke else "suspend"})


def _is_unseen(device: Listed, since: dt.datetime) -> bool:
    last = max(device.last_seen or "", device.entry.added_at)
    return device.entry.role == CONTROLLER and not device.revoked_at and parse_time(last) < since


def _group_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("add", "remove", "list"), help="add also replaces the scopes of a group.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="Name of the group.")
    parser.add_argument(
        "--scope", metavar="S", action="append", default=[], help="Scope of the group. May be given several times."
    )
    add_yes(parser)


def _map_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "device", metavar="DEVICE", help="Device ID or name of a device, or the beginning of a device ID."
    )
    parser.add_argument("user", metavar="USER", nargs="?", help="Name of the Django user.")
    parser.add_argument("--remove", action="store_true", help="Let it act as no user.")


def _purge_arguments(parser: ArgumentParser) -> None:
    add_devices(parser)
    add_yes(parser)


def _prune_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--unseen", metavar="TIME", required=True, help="How long: a number with s, m, h or d, such as 90d."
    )
    parser.add_argument("--revoke", action="store_true", help="Revoke them. By default, they are suspended.")
    add_yes(parser)


GROUP = Command(
    "group", "Make, remove, or list groups of devices, which have scopes.", group, _group_arguments, asks=True
)
MAP = Command("map", "Let a device act as a Django user in REST framework views.", map_device, _map_arguments)
PURGE = Command("purge", "Remove the rows of revoked devices permanently.", purge, _purge_arguments, asks=True)
PRUNE = Command(
    "prune",
    "Suspend controllers that have not been seen for long, after they were shown.",
    prune,
    _prune_arguments,
    details=(
        "When a device was last seen is not under the seal. A device that was never seen counts from when it was added.",
    ),
    asks=True,
)

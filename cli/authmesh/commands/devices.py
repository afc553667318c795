"""list, revoke: the devices on the allow list."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from authmesh.files.clock import utc_now
from authmesh.protocol.allow_list import CONTROLLER, ROLES
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError, Run
from authmesh.protocol.keys import encode_public_key

from .context import Context
from .home import ACTIVE, Listed
from .selecting import add_devices, select
from .spec import Command, add_yes
from .terminal.lines import Shown, Styled, Tone, facts
from .words import MEANING, identity_json, named, permissions, when

_ROLE_WIDTH = len("[controller]")
#: States in the order of the help of ``list``, and how a device in that state is shown.
STATES = ("active", "pending", "expired", "suspended", "denied", "revoked")
_HIDDEN = ("denied", "revoked")
_TONES: dict[str, Tone] = {
    "pending": "warning",
    "expired": "warning",
    "suspended": "warning",
    "denied": "bad",
    "revoked": "bad",
}


def device_lines(device: Listed) -> list[Styled]:
    """Return a device as lines. The device IDs of several devices are below each other."""
    entry = device.entry
    what = "revoked" if device.revoked_at else clean(entry.role) if device.state == ACTIVE else device.state
    return [
        Styled(
            f"{clean(entry.device_id)}  {clean(entry.friendly_name)}",
            _TONES.get(what, "plain"),
            label=f"[{what}]".ljust(_ROLE_WIDTH),
        ),
        *[Styled(f"  {'':{_ROLE_WIDTH}}  {text}", "quiet") for text in _facts(device)],
    ]


def _facts(device: Listed) -> list[str]:
    entry = device.entry
    added = f"added {when(entry.added_at)} ({clean(entry.added_by)})"
    if device.revoked_at:
        by = f" by {clean(device.revoked_by)}" if device.revoked_by else ""
        why = f": {clean(device.revoke_reason)}" if device.revoke_reason else ""
        return [f"{added}, was a {clean(entry.role)}", f"revoked {when(device.revoked_at)}{by}{why}"]
    if device.state == "denied":
        return [f"{added}, wanted to be a {clean(entry.role)}", f"denied {device.decided}"]
    seen = f"last seen {when(device.last_seen)}, " if device.last_seen else ""
    lines = [f"{added}, {seen}{permissions(entry) or 'no shell'}"]
    if device.state != ACTIVE:
        lines.append(f"{device.state} {device.decided}")
    elif device.expires_at:
        lines.append(f"expires {when(device.expires_at)}")
    if device.scopes:
        lines.append(f"scopes {', '.join(clean(scope) for scope in device.scopes)}")
    if device.groups:
        lines.append(f"in {', '.join(clean(group) for group in device.groups)}")
    if device.rotation_requested_at:
        lines.append(f"asked to replace its key {when(device.rotation_requested_at)}")
    return [*lines, f"acts as the user {clean(device.user)}"] if device.user else lines


def list_devices(context: Context, *, devices: Sequence[str], all: bool, state: list[str]) -> None:
    """Show this device and the devices that it trusts."""
    identity = context.own_device().identity
    limit = context.home.allow_list().controller_limit
    known = context.home.devices()
    hides = () if all or state else _HIDDEN
    shown = [device for device in known if device.state not in hides and not (hides and device.revoked_at)]
    if state:
        shown = [device for device in shown if device.state in state]
    if devices:
        chosen = select([device.entry for device in shown], devices, of="device" if all or state else "trusted device")
        by_id = {device.entry.device_id: device for device in shown}
        shown = [by_id[entry.device_id] for entry in chosen]
    say = context.console.say
    say(
        Styled("This device", "title"),
        *facts(
            ("Name", clean(identity.friendly_name)),
            ("Device ID", identity.device_id),
            ("Public key", encode_public_key(identity.public_key)),
            ("Backend", clean(identity.storage_backend)),
            ("Created", when(identity.created_at)),
        ),
        "",
    )
    trusted = [device.entry for device in known if not device.revoked_at and device.state not in _HIDDEN]
    counts = {name: sum(device.state == name for device in known) for name in STATES[1:]}
    counts["revoked"] = sum(bool(device.revoked_at) for device in known)
    hidden = "".join(
        f", {number} {name}{' (shown by --all)' if name in hides else ''}" for name, number in counts.items() if number
    )
    if trusted:
        controllers = sum(entry.role == CONTROLLER for entry in trusted)
        say(Styled(f"Trusted devices: {len(trusted)} ({controllers} of {limit} controllers){hidden}", "title"))
    else:
        say(Styled(f"No device is trusted yet{hidden}", "title"), *_first_steps())
    say(*[line for device in shown for line in device_lines(device)])
    if trusted:
        say("", *[Styled(f"  {f'[{role}]'.ljust(_ROLE_WIDTH)}  {MEANING[role]}", "quiet") for role in ROLES])
    own = {**identity_json(identity), "maxControllers": limit}
    context.console.result({"device": own, "devices": [device.to_json() for device in shown]})


def _first_steps() -> list[Shown]:
    return [
        "  To pair this device with another one over a relay, run listen on the device that is called, such as a server:",
        *facts(
            ("  to be called", (Run("listen"),)),
            ("  to call", (Run("invite", "CODE"),)),
        ),
        "  Without a relay, use the line that export-key prints on the other device:",
        *facts(
            ("  on the other device", "amesh export-key"),
            ("  on this device", (Run("trust", "LINE --role controller"),)),
        ),
        Styled(f"  Role controller: {MEANING['controller']}. Role target: {MEANING['target']}.", "quiet"),
    ]


def _list_arguments(parser: ArgumentParser) -> None:
    add_devices(parser, optional=True)
    parser.add_argument(
        "--all",
        "-a",
        action="store_true",
        help="Show denied and revoked devices, too. A list in a file does not keep them.",
    )
    parser.add_argument(
        "--state",
        choices=STATES,
        action="append",
        default=[],
        help="Show only devices in this state. May be given several times. In a file, all devices are active.",
    )


LIST = Command(
    "list",
    "Show this device and the devices that it trusts.",
    list_devices,
    _list_arguments,
    details=(
        "State, last seen, the mapped user, groups, and devices that were denied or revoked are known if the list is in a database. If devices are named, only those are shown.",
    ),
)


def revoke(context: Context, *, devices: Sequence[str], reason: str, yes: bool) -> None:
    """Stop trusting devices."""
    own = context.own_device().identity
    allow_list, console = context.home.allow_list(), context.console
    chosen = _revocable(context, devices)
    question = f"Revoke {named(chosen[0].entry)}?" if len(chosen) == 1 else f"Revoke these {len(chosen)} devices?"
    console.confirm(question, about=[line for device in chosen for line in device_lines(device)], yes=yes)
    ids = [device.entry.device_id for device in chosen]
    revoked = allow_list.revoke_all(ids, reason=reason, by=context.home.actor)
    for entry in revoked:
        effect = "Its next request is rejected." if entry.role == CONTROLLER else "This device no longer trusts it."
        console.say(Styled(f"Revoked: {named(entry)}. {effect}", "good"))
    trouble = allow_list.trouble
    if trouble is not None:
        what = "The device was revoked" if len(revoked) == 1 else "The devices were revoked"
        console.warn((f"{what}, but that is not all. ", *_parts(trouble)))
    there = "the other device" if len(revoked) == 1 else "each of the other devices"
    console.say(
        f"If {there} also trusts this one, revoke this device there:",
        *facts((f"  on {there}", f"amesh revoke {own.device_id}")),
    )
    problem = {"problem": trouble.message} if trouble is not None else {}
    console.result({"devices": [entry.to_json() for entry in revoked], "reason": reason, **problem})


def _revocable(context: Context, words: Sequence[str]) -> list[Listed]:
    """Return the devices that the words of the command mean. This also works if the list does not match its seal."""
    try:
        now = format_time(utc_now())
        # A key that was replaced a moment ago has the name of the new one, so it must be named by its ID.
        trusted = [
            device
            for device in context.home.devices()
            if not device.revoked_at or (device.revoked_at > now and device.entry.device_id in words)
        ]
    except AllowListIntegrityFailure:
        return [Listed(entry) for entry in select(context.home.allow_list().revocable(), words)]
    by_id = {device.entry.device_id: device for device in trusted}
    return [by_id[entry.device_id] for entry in select([device.entry for device in trusted], words)]


def _parts(error: AmeshError) -> tuple[str | Run, ...]:
    hint = (error.hint,) if isinstance(error.hint, str) else error.hint
    return (error.message, " ", *hint)


def _revoke_arguments(parser: ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument(
        "--reason", metavar="TEXT", default="", help="Why the device is revoked. Recorded if the list is in a database."
    )
    add_yes(parser)


REVOKE = Command(
    "revoke",
    "Stop trusting devices, from their next request on.",
    revoke,
    _revoke_arguments,
    details=("Several devices are revoked in one step: either all of them, or none.",),
    asks=True,
)

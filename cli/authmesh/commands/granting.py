"""grant, rename, show: what trusted devices may do, and how they are called."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence

from authmesh.device.directory import check_name
from authmesh.device.grants import Grant
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AllowListError
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.scopes import is_grantable

from .context import Context
from .home import Listed
from .selecting import add_devices, select
from .spec import Command
from .terminal.errors import UsageProblem
from .terminal.lines import Styled, facts
from .words import MEANING, named, permissions, when

_UNCHANGED = "Nothing was changed."


def chosen(context: Context, words: Sequence[str]) -> list[Listed]:
    """Return the devices that a person named, among those that are neither denied nor revoked.

    Raises:
        DeviceNotFound: no such device has one of the names.
        AmbiguousDevice: several have one of the names.
    """
    known = {
        device.entry.device_id: device
        for device in context.home.devices()
        if not device.revoked_at and device.state not in ("denied", "revoked")
    }
    return [known[entry.device_id] for entry in select([device.entry for device in known.values()], words)]


def wanted(
    *, shell: bool | None, permission: Sequence[str], scope: Sequence[str], remove: bool, more: Sequence[str] = ()
) -> tuple[Grant, Grant]:
    """Return what the options give, and what they take.

    Args:
        shell: ``--shell`` or ``--no-shell``.
        permission: names of permissions.
        scope: scopes.
        remove: True takes them.
        more: groups.

    Raises:
        UsageProblem: there is nothing to do, or a scope has the wrong form.
    """
    for name in scope:
        if not remove and not is_grantable(name):
            raise UsageProblem(
                f"{clean(name)} is not a scope. {_UNCHANGED}",
                hint="Write it as orders:read, or orders:* for every scope below orders.",
            )
    if "scopes" in permission or "rate" in permission:
        raise UsageProblem(f"scopes and rate are not granted by name. {_UNCHANGED}", hint="Use --scope for scopes.")
    named_ones, shells = Grant(tuple(permission), tuple(scope), tuple(more)), ("shell",)
    given = Grant() if remove else named_ones
    taken = named_ones if remove else Grant()
    if shell:
        given = given._replace(permissions=(*given.permissions, *shells))
    elif shell is not None:
        taken = taken._replace(permissions=(*taken.permissions, *shells))
    return given, taken


def grant(
    context: Context,
    *,
    devices: Sequence[str],
    shell: bool | None,
    permission: list[str],
    scope: list[str],
    remove: bool,
) -> None:
    """Grant permissions and scopes to devices, or take them from them."""
    given, taken = wanted(shell=shell, permission=permission, scope=scope, remove=remove)
    if not any((*given, *taken)):
        raise UsageProblem(
            f"No permission was named. {_UNCHANGED}",
            hint="Use --shell to grant a shell, --no-shell to withdraw it, or --scope or --permission.",
        )
    context.own_device()
    entries = [device.entry for device in chosen(context, devices)]
    if any(given):
        for entry in entries:
            check_controller(entry, given)
    found, changed = context.home.grant([entry.device_id for entry in entries], given, taken)
    for entry in found:
        as_before = "" if entry.device_id in changed else ", as before"
        context.console.say(Styled(f"{named(entry)} {effect(given, taken)}{as_before}.", "good"))
    context.console.result({"devices": [{**entry.to_json(), "changed": entry.device_id in changed} for entry in found]})


def check_controller(entry: DeviceEntry, given: Grant) -> None:
    """Raise AllowListError if a device is a target, which could not use what it is given."""
    if entry.role != CONTROLLER:
        what = "a shell" if given == Grant(("shell",)) else "what it would be granted"
        raise AllowListError(
            f"{named(entry)} is a target: it may not authenticate to this device, so it cannot use {what}. {_UNCHANGED}",
            hint="Trust it as a controller first, or grant that on that device.",
        )


def effect(given: Grant, taken: Grant) -> str:
    """Return what a grant did to each device, as the rest of a sentence."""
    if (given, taken) == (Grant(("shell",)), Grant()):
        return "may open a shell on this device"
    if (given, taken) == (Grant(), Grant(("shell",))):
        return "may not open a shell on this device"
    parts = []
    for word, one in (("has now", given), ("no longer has", taken)):
        names = [clean(name) for kind in one for name in kind]
        if names:
            parts.append(f"{word} {', '.join(names)}")
    return " and ".join(parts)


def add_grant_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``grant`` that both front ends have."""
    add_devices(parser)
    parser.add_argument("--shell", action=BooleanOptionalAction, help="Grant a shell, or withdraw it.")
    parser.add_argument(
        "--permission",
        metavar="NAME",
        action="append",
        default=[],
        help="Grant a permission. May be given several times.",
    )
    parser.add_argument(
        "--scope",
        metavar="S",
        action="append",
        default=[],
        help="Grant a scope, such as orders:read or orders:*. May be given several times.",
    )
    parser.add_argument("--remove", action="store_true", help="Take away what --permission, --scope, and such name.")


GRANT = Command(
    "grant",
    "Grant trusted devices a shell, permissions, or scopes on this device, or withdraw them.",
    grant,
    add_grant_arguments,
    details=("Several devices are changed in one step: either all of them, or none.",),
)


def rename(context: Context, *, device: str, name: str) -> None:
    """Give a device another friendly name in the allow list."""
    context.own_device()
    (found,) = chosen(context, [device])
    entry = context.home.rename(found.entry.device_id, check_name(name))
    context.console.say(Styled(f"{entry.device_id} is called {clean(entry.friendly_name)} now.", "good"))
    context.console.result({"devices": [entry.to_json()]})


def _rename_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "device", metavar="DEVICE", help="Device ID or name of a device, or the beginning of a device ID."
    )
    parser.add_argument("name", metavar="NAME", help="Its new name.")


RENAME = Command(
    "rename",
    "Give a trusted device another name in the allow list of this device.",
    rename,
    _rename_arguments,
    details=("The device itself keeps its name. If it pairs again, the name that it gives itself is stored.",),
)


def show(context: Context, *, devices: Sequence[str]) -> None:
    """Show all about devices of the allow list."""
    known = {device.entry.device_id: device for device in context.home.devices()}
    found = [known[entry.device_id] for entry in select([one.entry for one in known.values()], devices, of="device")]
    for device in found:
        entry = device.entry
        role = f"{clean(entry.role)}: {MEANING[entry.role]}" if entry.role in MEANING else clean(entry.role)
        context.console.say(
            Styled(clean(entry.friendly_name), "title"),
            *facts(
                ("Device ID", clean(entry.device_id)),
                ("Public key", encode_public_key(entry.public_key)),
                ("State", f"{device.state} {device.decided}".rstrip()),
                ("Role", role),
                ("Added", f"{when(entry.added_at)} ({clean(entry.added_by)})"),
                ("Permissions", permissions(entry) or "none"),
                ("Scopes", ", ".join(clean(scope) for scope in device.scopes) or "none"),
                ("Groups", ", ".join(clean(group) for group in device.groups) or "none"),
                ("Expires", when(device.expires_at) if device.expires_at else "never"),
                ("User", clean(device.user) if device.user else "none"),
                ("Last seen", when(device.last_seen) if device.last_seen else "not known"),
                *(
                    [("Asked to replace its key", when(device.rotation_requested_at))]
                    if device.rotation_requested_at
                    else []
                ),
                *([("Note", clean_line(device.note))] if device.note else []),
            ),
        )
    context.console.result({"devices": [device.to_json() for device in found]})


SHOW = Command("show", "Show all about devices of the allow list, whatever their state.", show, add_devices)

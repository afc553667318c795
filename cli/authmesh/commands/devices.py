"""list, revoke, grant: the devices on the allow list."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction

from authmesh.protocol.allow_list import CONTROLLER, ROLES, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AllowListError, AmeshError, Run
from authmesh.protocol.keys import encode_public_key

from .context import Context
from .spec import Command, add_yes
from .terminal.errors import UsageProblem
from .terminal.lines import Styled, facts
from .words import MEANING, has_shell, identity_json, named, permissions, when

_ROLE_WIDTH = len("[controller]")


def _add_device_id(parser: ArgumentParser) -> None:
    parser.add_argument("device_id", metavar="ID", help="Device ID of a trusted device: am_ and 16 characters.")


def device_lines(entry: DeviceEntry) -> list[Styled]:
    """Return a trusted device as two lines. The device IDs of several devices are below each other."""
    role = f"[{clean(entry.role)}]".ljust(_ROLE_WIDTH)
    added = f"added {when(entry.added_at)} ({clean(entry.added_by)}), {permissions(entry) or 'no shell'}"
    return [
        Styled(f"{clean(entry.device_id)}  {clean(entry.friendly_name)}", label=role),
        Styled(f"  {'':{_ROLE_WIDTH}}  {added}", "quiet"),
    ]


def list_devices(context: Context) -> None:
    """Show this device and the devices that it trusts."""
    identity = context.own_device().identity
    allow_list = context.home.allow_list()
    entries = allow_list.read()
    say = context.console.say
    say(
        Styled("This device", "title"),
        *facts(
            ("Name", clean(identity.friendly_name)),
            ("Device ID", identity.device_id),
            ("Public key", encode_public_key(identity.public_key)),
            ("Back end", clean(identity.storage_backend)),
            ("Created", when(identity.created_at)),
        ),
        "",
    )
    if entries:
        controllers = sum(entry.role == CONTROLLER for entry in entries)
        limit = allow_list.controller_limit
        say(Styled(f"Trusted devices: {len(entries)} ({controllers} of {limit} controllers)", "title"))
        say(*[line for entry in entries for line in device_lines(entry)])
        say("", *[Styled(f"  {f'[{role}]'.ljust(_ROLE_WIDTH)}  {MEANING[role]}", "quiet") for role in ROLES])
    else:
        say(
            Styled("No device is trusted yet", "title"),
            "  To trust a device, use the line that export-key prints on it:",
            *facts(
                ("  on the other device", "amesh export-key"),
                ("  on this device", (Run("trust", "LINE --role controller"),)),
            ),
            Styled(f"  Role controller: {MEANING['controller']}. Role target: {MEANING['target']}.", "quiet"),
        )
    own = {**identity_json(identity), "maxControllers": allow_list.controller_limit}
    context.console.result({"device": own, "devices": [entry.to_json() for entry in entries]})


LIST = Command("list", "Show this device and the devices that it trusts.", list_devices)


def revoke(context: Context, *, device_id: str, reason: str, yes: bool) -> None:
    """Stop trusting a device."""
    context.own_device()
    allow_list = context.home.allow_list()
    entry = allow_list.revocable(device_id)
    context.console.confirm(f"Revoke {named(entry)}?", about=device_lines(entry), yes=yes)
    entry = allow_list.revoke(device_id, reason=reason, by=context.home.actor)
    effect = "Its next request is rejected." if entry.role == CONTROLLER else "This device no longer trusts it."
    context.console.say(Styled(f"Revoked: {named(entry)}. {effect}", "good"))
    trouble = allow_list.trouble
    if trouble is not None:
        context.console.warn(("The device was revoked, but that is not all. ", *_parts(trouble)))
    problem = {"problem": trouble.message} if trouble is not None else {}
    context.console.result({"revoked": entry.to_json(), "reason": reason, **problem})


def _parts(error: AmeshError) -> tuple[str | Run, ...]:
    hint = (error.hint,) if isinstance(error.hint, str) else error.hint
    return (error.message, " ", *hint)


def _revoke_arguments(parser: ArgumentParser) -> None:
    _add_device_id(parser)
    parser.add_argument(
        "--reason", metavar="TEXT", default="", help="Why the device is revoked. Recorded if the list is in a database."
    )
    add_yes(parser)


REVOKE = Command("revoke", "Stop trusting a device, from its next request on.", revoke, _revoke_arguments, asks=True)


def grant(context: Context, *, device_id: str, shell: bool | None) -> None:
    """Grant a permission to a device, or withdraw it."""
    if shell is None:
        raise UsageProblem(
            "No permission was named. Nothing was changed.",
            hint="Use --shell to grant a shell, or --no-shell to withdraw it.",
        )
    context.own_device()
    allow_list = context.home.allow_list()
    entry = allow_list.get(device_id)
    if shell and entry.role != CONTROLLER:
        raise AllowListError(
            f"{named(entry)} is a target: it may not authenticate to this device, so it cannot use a shell. Nothing was changed.",
            hint="Trust it as a controller first, or grant the shell on that device.",
        )
    changed = has_shell(entry) != shell
    if changed:
        granted = {"shell": True} if shell else {}
        entry = allow_list.update_permissions(
            device_id, lambda before: {**{name: before[name] for name in before if name != "shell"}, **granted}
        )
    what = "may open a shell on this device" if shell else "may not open a shell on this device"
    context.console.say(Styled(f"{named(entry)} {what}{'' if changed else ', as before'}.", "good"))
    context.console.result({"device": entry.to_json(), "changed": changed})


def _grant_arguments(parser: ArgumentParser) -> None:
    _add_device_id(parser)
    parser.add_argument("--shell", action=BooleanOptionalAction, help="Grant a shell, or withdraw it.")


GRANT = Command("grant", "Grant a trusted device a shell on this device, or withdraw it.", grant, _grant_arguments)

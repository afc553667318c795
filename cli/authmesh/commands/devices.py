"""list, revoke, grant: the devices that this one trusts."""

from __future__ import annotations

from authmesh.protocol.allow_list import CONTROLLER, ROLES, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AllowListError
from authmesh.protocol.keys import encode_public_key

from .spec import YES, Command, Context, Option
from .terminal.console import Line, UsageProblem, facts
from .words import MEANING, has_shell, identity_json, named, permissions, when

_ROLE_WIDTH = len("[controller]")

DEVICE_ID = Option(("device_id",), "Device id of a trusted device, am_ and 16 characters.", metavar="ID", required=True)


def device_lines(entry: DeviceEntry) -> list[Line]:
    """A trusted device on two lines. Id first after the role, so that ids stand below each other."""
    role = f"[{clean(entry.role)}]".ljust(_ROLE_WIDTH)
    added = f"added {when(entry.added_at)} ({clean(entry.added_by)}), {permissions(entry) or 'no shell'}"
    return [
        Line(f"{clean(entry.device_id)}  {clean(entry.friendly_name)}", label=role),
        Line(f"  {'':{_ROLE_WIDTH}}  {added}", "quiet"),
    ]


def list_devices(context: Context) -> None:
    """Show this device and those that it trusts."""
    identity = context.own_device().identity
    allow_list = context.allow_list()
    entries = allow_list.read()
    say = context.console.say
    say(
        Line("This device", "title"),
        *facts(
            ("Name", clean(identity.friendly_name)),
            ("Device id", identity.device_id),
            ("Public key", encode_public_key(identity.public_key)),
            ("Back end", clean(identity.storage_backend)),
            ("Created", when(identity.created_at)),
        ),
        "",
    )
    if entries:
        controllers = sum(entry.role == CONTROLLER for entry in entries)
        say(
            Line(
                f"Trusted devices: {len(entries)} ({controllers} of {allow_list.controller_limit} controllers)", "title"
            )
        )
        say(*[line for entry in entries for line in device_lines(entry)])
        say("", *[Line(f"  {f'[{role}]'.ljust(_ROLE_WIDTH)}  {MEANING[role]}", "quiet") for role in ROLES])
    else:
        say(
            Line("No device is trusted yet", "title"),
            "  To trust one by hand, take the line that export-key prints there:",
            *facts(
                ("  there", "amesh export-key"),
                ("  here", f"{context.command('trust')} LINE --role controller"),
            ),
            Line(f"  Role controller: {MEANING['controller']}. Role target: {MEANING['target']}.", "quiet"),
        )
    own = {**identity_json(identity), "maxControllers": allow_list.controller_limit}
    context.console.result({"device": own, "devices": [entry.to_json() for entry in entries]})


LIST = Command("list", "Show this device and the devices that it trusts.", list_devices)


def revoke(context: Context, *, device_id: str, reason: str, yes: bool) -> None:
    """Stop trusting a device."""
    context.own_device()
    allow_list = context.allow_list()
    entry = allow_list.get(device_id)
    context.confirm(f"Revoke {named(entry)}?", about=[*device_lines(entry)], yes=yes)
    entry = allow_list.revoke(device_id, reason=reason, by=context.actor)
    effect = "Its next request is refused." if entry.role == CONTROLLER else "This device does not trust it any more."
    context.console.say(Line(f"Revoked: {named(entry)}. {effect}", "good"))
    context.console.result({"revoked": entry.to_json(), "reason": reason})


REVOKE = Command(
    "revoke",
    "Stop trusting a device, from its next request on.",
    revoke,
    (
        DEVICE_ID,
        Option(("--reason",), "Why; kept where the list is in a database.", metavar="TEXT", default=""),
        YES,
    ),
    asks=True,
)


def grant(context: Context, *, device_id: str, shell: bool | None) -> None:
    """Grant a device a permission, or withdraw it."""
    if shell is None:
        raise UsageProblem("Say what is to be granted or withdrawn: --shell or --no-shell.")
    context.own_device()
    allow_list = context.allow_list()
    entry = allow_list.get(device_id)
    if shell and entry.role != CONTROLLER:
        raise AllowListError(
            f"{named(entry)} is a target and may not authenticate to this device, so a shell for it would mean nothing. Trust "
            "it as a controller first, or grant the shell on that device."
        )
    changed = has_shell(entry) != shell
    if changed:
        granted = {"shell": True} if shell else {}
        entry = allow_list.update_permissions(
            device_id, lambda before: {**{name: before[name] for name in before if name != "shell"}, **granted}
        )
    what = "may open a shell on this device" if shell else "may not open a shell on this device"
    context.console.say(Line(f"{named(entry)} {what}{'' if changed else ', as before'}.", "good"))
    context.console.result({"device": entry.to_json(), "changed": changed})


GRANT = Command(
    "grant",
    "Grant a trusted device a shell on this one, or withdraw it.",
    grant,
    (DEVICE_ID, Option(("--shell",), "Whether it may open a shell.", "switch")),
)

"""What the commands share with which a person adds and looks at the servers of this hub."""

from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser

from amesh_django.conf import amesh_settings
from amesh_django.fleet import overview, servers
from amesh_django.fleet.overview import MEANING, STATES, ServerView
from amesh_django.models import Server
from amesh_django.states import ACTIVE
from authmesh.commands.context import Context
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled, Tone, facts
from authmesh.commands.words import counted, when
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import InvalidInput, Run

_UNCHANGED = "Nothing was changed."
_WIDTH = len("[changed outside Django]")
_TONES: dict[str, Tone] = {
    "up_to_date": "good",
    "waiting": "plain",
    "silent": "warning",
    "paused": "warning",
    "failing": "bad",
    "untrusted": "bad",
    "unknown": "bad",
    "ahead": "bad",
    "changed": "bad",
}


def scope_of(*, enroll: bool, groups: list[str], all_devices: bool) -> tuple[str, list[str]]:
    """Return what a server is told of, and the groups, as the options say.

    Raises:
        UsageProblem: the options contradict each other.
    """
    if (groups or all_devices) and not enroll:
        raise UsageProblem(f"--group and --all-devices need --enroll. {_UNCHANGED}", hint="Add --enroll, or omit them.")
    if groups and all_devices:
        raise UsageProblem(f"--group and --all-devices exclude each other. {_UNCHANGED}", hint="Omit one of them.")
    if enroll and not groups and not all_devices:
        raise UsageProblem(
            f"--enroll needs the devices that the server is to trust. {_UNCHANGED}",
            hint="Use --group GROUP, several times if needed, or --all-devices.",
        )
    return ("enroll", groups or [servers.ALL]) if enroll else ("revoke", [])


def add_server(context: Context, device_id: str, url: str, *, scope_of_events: str, groups: list[str]) -> Server:
    """Add a server that this hub trusts as a target, unless it is one already, and say what to do at the server.

    Args:
        context: the surroundings of the command.
        device_id: the server.
        url: address of its ``amesh/``. A slash at the end is added.
        scope_of_events, groups: as for :func:`amesh_django.fleet.servers.add`.

    Raises:
        InvalidInput: as for :func:`amesh_django.fleet.servers.add`; or it is a server already, with another address or other groups.
    """
    url = url if url.endswith("/") else f"{url}/"
    row = next((known for known in servers.every() if known.device_id == device_id), None)
    if row is None:
        row = servers.add(device_id, url, scope_of_events=scope_of_events, groups=groups, by=context.home.actor)
    elif (row.url, row.scope_of_events, sorted(row.groups)) != (url, scope_of_events, sorted(groups)):
        raise InvalidInput(
            f"{device_id} is a server of this hub already, with another address or other groups. They were not changed.",
            hint=("Remove it first: run ", Run("servers", f"remove {device_id}"), ". Then add it again."),
        )
    store = ServerStore(context.home.directory)
    if all(
        known.device_id != row.device_id for known in store.read()
    ):  # so that a rotation of the hub's own key asks it, too
        store.put(EnrolledServer(row.device_id, row.url, "", ACTIVE, context.now()))
    own, console = context.own_device().identity, context.console
    (shown,) = overview.view([row])
    permissions = ["revoke", *(["enroll"] if scope_of_events == "enroll" else [])]
    options = " ".join(f"--permission {name}" for name in permissions)
    console.say(
        Styled(f"This hub tells {row.device_id} ({clean(shown.name)}) of {_told_of(row)} from now on.", "good"),
        "The server must allow that, once:",
        *facts(("  on the server", f"manage.py amesh_grant {own.device_id} {options}")),
    )
    if amesh_settings().URL is None:
        console.warn(
            "AMESH['URL'] is not set at this hub, so its servers cannot ask for changes by themselves after they were away. Set it to the "
            "public address of amesh_django.urls."
        )
    return row


def server_lines(one: ServerView) -> list[Styled]:
    row, label = one.server, f"[{STATES[one.state]}]"
    texts = [f"{clean_line(row.url)}, told of {_told_of(row)}"]
    if one.revisions:
        lacks = "the whole list" if one.lacks_list else f"{counted(one.revisions, 'change')}, the oldest"
        texts.append(f"lacks {lacks} for {duration(one.seconds or 0.0)}")
    texts.append(f"last answer {_when(row.last_ok_at)}")
    if row.last_error:
        tries = f" ({counted(row.attempts, 'attempt')} since the last answer)" if row.attempts else ""
        texts.append(f"last error: {clean_line(row.last_error)}{tries}")
    if MEANING[one.state]:
        texts.append(str(MEANING[one.state]))
    for event in one.refused[:5]:
        texts.append(
            f"refused: {clean_line(str(event.get('event', '')))} {clean_line(str(event.get('device', '')))} "
            f"({clean_line(str(event.get('why', '')))})"
        )
    pad = len(label.ljust(_WIDTH))
    return [
        Styled(f"{clean(row.device_id)}  {clean(one.name)}", _TONES[one.state], label=label.ljust(_WIDTH)),
        *[Styled(f"  {'':{pad}}  {text}", "quiet") for text in texts],
    ]


def _told_of(row: Server) -> str:
    if row.scope_of_events != Server.ScopeOfEvents.ENROLL:
        return "revocations and suspensions"
    if servers.ALL in row.groups:
        return "revocations, and all devices to trust"
    return f"revocations, and devices to trust in {', '.join(clean(name) for name in row.groups)}"


def duration(seconds: float) -> str:
    """Return a time span as people read it: ``12 s``, ``3 min``, ``5 h``, ``2 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _when(moment: dt.datetime | None) -> str:
    return when(format_time(moment.astimezone(dt.UTC))) if moment is not None else "never"


def add_scope_arguments(parser: ArgumentParser) -> None:
    """Add the options that say what a server is told of."""
    parser.add_argument("--enroll", action="store_true", help="Tell it also which devices to trust.")
    parser.add_argument(
        "--group",
        metavar="G",
        action="append",
        default=[],
        help="With --enroll: the devices of this group. May be given several times.",
    )
    parser.add_argument("--all-devices", action="store_true", help="With --enroll: all devices of this hub.")

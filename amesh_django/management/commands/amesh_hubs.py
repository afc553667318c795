"""``manage.py amesh_hubs``: the hubs that this server follows."""

import datetime as dt
from argparse import ArgumentParser

from amesh_django.fleet import forgetting, overview
from amesh_django.fleet.overview import HUB_STATES, HubView
from amesh_django.management.base import AmeshCommand
from amesh_django.management.servers import duration
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.spec import add_yes
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled, Tone
from authmesh.commands.words import counted, when
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import Run

_WIDTH = len("[changed outside Django]")
_TONES: dict[str, Tone] = {"heard": "good", "changed": "bad"}


def manage_hubs(context: Context, *, action: str, hub: str | None, yes: bool) -> None:
    """List the hubs, or forget what one has said that is no hub any more."""
    if (action == "list") != (hub is None):
        raise UsageProblem(
            f"hubs {action} {'takes no name' if hub else 'needs the device ID of a hub'}. Nothing was changed.",
            hint=("Use ", Run("hubs", action if hub else f"{action} HUB"), "."),
        )
    if hub is None:
        show(context)
    else:
        _forget(context, hub, yes=yes)


def _forget(context: Context, hub: str, *, yes: bool) -> None:
    chosen = next((one for one in overview.hubs(context.now()) if one.device_id == hub), None)
    context.console.confirm(
        f"Remove all that {clean_line(hub)} has said as a hub?",
        about=[
            *(_lines(chosen) if chosen is not None else ()),
            "What it has revoked or suspended stays so until a person reinstates or lifts it. Other keys that it has revoked may enter again, "
            "such as with a token.",
            "If it becomes a hub again, it says everything again, also what people here have decided against.",
        ],
        yes=yes,
    )
    words = forgetting.forget(hub, by=context.home.actor)
    context.console.say(
        Styled(f"{clean_line(hub)}: what it has said about {counted(words, 'key')} was removed.", "good")
    )
    context.console.result({"hub": hub, "forgotten": words})


def show(context: Context) -> None:
    """List the hubs of this server."""
    console, known = context.console, overview.hubs(context.now())
    console.result({"hubs": [one.to_json() for one in known]})
    if not known:
        console.say(
            (
                "This server follows no hub. If a controller must be able to revoke devices here, run ",
                Run("grant", "DEVICE --permission revoke"),
                ".",
            )
        )
    for one in known:
        console.say(*_lines(one))
    for one in known:
        if one.state == "not_allowed" and one.words:
            console.say(
                (
                    f"{clean_line(one.device_id)} is no hub any more, but what it has said still counts: keys that it has revoked enter only if a "
                    "person trusts them. To remove what it has said, run ",
                    Run("hubs", f"forget {one.device_id}"),
                    ".",
                )
            )


def _lines(one: HubView) -> list[Styled]:
    row, label = one.row, f"[{HUB_STATES[one.state]}]".ljust(_WIDTH)
    texts = [f"may {' and '.join(one.permissions)}" if one.permissions else "has no permission here any more"]
    if row is not None:
        ago = f" ({duration(one.seconds)} ago)" if one.seconds is not None else ""
        heard = row.last_contact_at
        moment = when(format_time(heard.astimezone(dt.UTC))) if heard is not None else "never"
        texts.append(f"last contact {moment}{ago}{f', at {clean_line(row.url)}' if row.url else ''}")
        texts.append(f"applied {row.applied} of {row.head}, has said something about {counted(one.words, 'key')}")
    return [
        Styled(f"{clean(one.device_id)}  {clean(one.name)}", _TONES.get(one.state, "warning"), label=label),
        *[Styled(f"  {'':{_WIDTH}}  {text}", "quiet") for text in texts],
    ]


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "forget"),
        help="list shows all hubs. forget removes what a device has said that is no hub any more.",
    )
    parser.add_argument("hub", metavar="HUB", nargs="?", help="Device ID of the hub.")
    add_yes(parser)


class Command(AmeshCommand):
    spec = Spec(
        "hubs",
        "List the hubs that this server follows: when each was heard last, and how far this server has come. Or forget one.",
        manage_hubs,
        _arguments,
        details=("A hub is a controller with the permission revoke or enroll: see amesh_grant.",),
        asks=True,
    )

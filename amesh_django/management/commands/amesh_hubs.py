"""``manage.py amesh_hubs``: the hubs that this server follows."""

import datetime as dt

from amesh_django.fleet import overview
from amesh_django.fleet.overview import HUB_STATES, HubView
from amesh_django.management.base import AmeshCommand
from amesh_django.management.servers import duration
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.terminal.lines import Styled, Tone
from authmesh.commands.words import counted, when
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import Run

_WIDTH = len("[changed outside Django]")
_TONES: dict[str, Tone] = {"heard": "good", "changed": "bad"}


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


class Command(AmeshCommand):
    spec = Spec(
        "hubs",
        "List the hubs that this server follows: when each was heard last, and how far this server has come.",
        show,
        details=("A hub is a controller with the permission revoke or enroll: see amesh_grant.",),
    )

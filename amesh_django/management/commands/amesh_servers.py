"""``manage.py amesh_servers``: the servers to which this hub carries changes of its allow list."""

from argparse import ArgumentParser

from amesh_django.fleet import overview, servers
from amesh_django.fleet.overview import ServerView
from amesh_django.management.base import AmeshCommand
from amesh_django.management.deciding import choose
from amesh_django.management.servers import add_scope_arguments, add_server, scope_of, server_lines
from amesh_django.models import Server
from amesh_django.states import ACTIVE
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.spec import add_yes
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled
from authmesh.protocol.display import clean
from authmesh.protocol.errors import Run

_UNCHANGED = "Nothing was changed."


def manage_servers(
    context: Context,
    *,
    action: str,
    server: str | None,
    url: str | None,
    enroll: bool,
    group: list[str],
    all_devices: bool,
    yes: bool,
) -> None:
    """List the servers, or add, remove, pause, resume, or retry one."""
    if (action == "list") != (server is None):
        raise UsageProblem(
            f"servers {action} {'takes no name' if server else 'needs the device ID or name of a server'}. {_UNCHANGED}",
            hint=("Use ", Run("servers", action if server else f"{action} SERVER"), "."),
        )
    if action != "add" and (url or enroll or group or all_devices):
        raise UsageProblem(
            f"--url, --enroll, --group and --all-devices are only used with servers add. {_UNCHANGED}",
            hint="To change them, remove the server, and add it again.",
        )
    context.own_device()
    if action == "list":
        show(context)
    elif action == "add":
        _add(context, str(server), url, enroll=enroll, groups=group, all_devices=all_devices)
    else:
        _change(context, action, str(server), yes=yes)


def _add(context: Context, word: str, url: str | None, *, enroll: bool, groups: list[str], all_devices: bool) -> None:
    if url is None:
        raise UsageProblem(
            f"The address of the server is missing. {_UNCHANGED}",
            hint="Use --url with the address of amesh_django.urls on the server, such as --url https://api.example/amesh/.",
        )
    scope_of_events, names = scope_of(enroll=enroll, groups=groups, all_devices=all_devices)
    (device,) = choose(context, [word], (ACTIVE,), "trusted device")
    row = add_server(context, device.entry.device_id, url, scope_of_events=scope_of_events, groups=names)
    context.console.result(_document(row))


_DONE = {
    "remove": "is told nothing any more. It stays in the allow list",
    "pause": "is told nothing until it is resumed",
    "resume": "is told of changes again, also of those that were made meanwhile",
    "retry": "is tried now",
}
_QUESTIONS = {
    "remove": "Stop telling {server} what is revoked, and forget how far it is?",
    "pause": "Stop telling {server} what is revoked, until it is resumed?",
}


def _change(context: Context, action: str, word: str, *, yes: bool) -> None:
    chosen = _choose(word)
    label = f"{clean(chosen.server.device_id)} ({clean(chosen.name)})"
    if action in _QUESTIONS:
        context.console.confirm(_QUESTIONS[action].format(server=label), about=server_lines(chosen), yes=yes)
    does = {"remove": servers.remove, "pause": servers.pause, "resume": servers.resume, "retry": servers.retry}[action]
    row = does(chosen.server.device_id, by=context.home.actor)
    context.console.say(Styled(f"{label} {_DONE[action]}.", "good"))
    if action == "remove":
        context.console.result({"server": {**chosen.to_json(), "removed": True}})
    else:
        context.console.result(_document(row))


def _choose(word: str) -> ServerView:
    """Return the server that a person named: by device ID, the beginning of one, name, or address.

    Raises:
        ServerNotFound: there is none.
        UsageProblem: there are several.
    """
    found = [
        one
        for one in overview.every()
        if (one.server.device_id.startswith(word) if word.startswith("am_") else clean(one.name) == clean(word))
        or one.server.url.rstrip("/") == word.rstrip("/")
    ]
    if not found:
        raise servers.ServerNotFound(
            f"No server of this hub is called {clean(word)}. {_UNCHANGED}", hint=servers.ServerNotFound.default_hint
        )
    if len(found) > 1:
        names = ", ".join(f"{clean(one.server.device_id)} ({clean(one.name)})" for one in found[:5])
        raise UsageProblem(
            f"Several servers are called {clean(word)}: {names}. {_UNCHANGED}", hint="Use the device ID of one."
        )
    return found[0]


def show(context: Context) -> None:
    """List the servers of this hub."""
    console, known = context.console, overview.every(context.now())
    console.result({"servers": [one.to_json() for one in known]})
    if not known:
        console.say(
            ("There are no servers. To pair this hub with one and add it, run ", Run("invite", "CODE --url URL"), ",")
        )
        console.say(("or, if this hub trusts it as a target already, ", Run("servers", "add SERVER --url URL"), "."))
    for one in known:
        console.say(*server_lines(one))


def _document(row: Server) -> dict[str, object]:
    (shown,) = overview.view([row])
    return {"server": shown.to_json()}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "add", "remove", "pause", "resume", "retry"),
        help="list shows all servers. add tells a target that this hub trusts what changes; remove ends that. pause lets everything wait; "
        "resume goes on with it. retry does not wait for the next attempt.",
    )
    parser.add_argument("server", metavar="SERVER", nargs="?", help="Device ID, name, or address of the server.")
    parser.add_argument(
        "--url", metavar="URL", help="Address of amesh_django.urls on the server, such as https://api.example/amesh/."
    )
    add_scope_arguments(parser)
    add_yes(parser)


class Command(AmeshCommand):
    spec = Spec(
        "servers",
        "List the servers to which this hub carries revocations; add, remove, pause, resume, or retry one.",
        manage_servers,
        _arguments,
        details=(
            "A server must be paired as a target first, such as with amesh_invite CODE --url URL, which adds it in the same step.",
            "Something must carry the changes: a worker and beat of Celery, or amesh_propagate --watch.",
        ),
        asks=True,
    )

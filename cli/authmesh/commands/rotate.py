"""rotate: replace the key of this device at its servers."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping

from authmesh.device.replacing import recover
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.device.tokens import TokenStore
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.enrollment import ACTIVE, is_server_url
from authmesh.protocol.errors import InvalidInput, Run
from authmesh.protocol.rotation import RotationUnfinished

from .context import Context
from .spec import Command, add_yes
from .terminal.errors import UsageProblem
from .terminal.lines import Styled, facts
from .words import counted, named


def rotate(context: Context, *, urls: list[str], finish: bool, yes: bool) -> None:
    """Replace the key of this device, or finish that."""
    from authmesh.client import rotating  # quick start: it imports httpx

    problem = context.home.rotation_problem()
    if problem is not None:
        raise problem
    directory, console = context.home.directory, context.console
    under_way = recover(directory, now=context.now())
    if finish and under_way is None:
        console.say("There is nothing to finish: no replacement of the key is under way.")
        console.result({"finished": True, "away": []})
        return
    context.own_device()
    entries = {entry.device_id: entry for entry in context.home.allow_list().read()}
    servers = [server for server in ServerStore(directory).read() if server.device_id in entries]
    asked = [_server(context, url, servers, entries) for url in urls]
    servers += [server for server in asked if server not in servers]
    if not servers:
        raise InvalidInput(
            "This device knows the address of no server. Nothing was changed.",
            hint=("Name the servers that trust it: ", Run("rotate", "https://api.example/amesh/"), "."),
        )
    if under_way is None:
        _confirm(context, servers, entries, yes)
    done = rotating.rotate(
        directory,
        servers,
        asked=asked or None,
        server_key=lambda device_id: entries[device_id].public_key,
        now=context.now,
    )
    new, old = done.replacement.new, done.replacement.old
    for server, error in done.away:
        console.warn(f"{clean_line(server.url)} ({server.device_id}): {error.text(console.spell)}")
    if done.moved:
        console.say(
            Styled("The key was replaced", "good"),
            *facts(("This device", named(new)), ("Instead of", old.device_id)),
        )
    console.result(
        {
            "deviceId": new.device_id,
            "replaced": old.device_id,
            "moved": done.moved,
            "finished": done.moved and not done.waiting,
            "accepted": sorted(done.replacement.accepted),
            "away": [
                {"url": server.url, "deviceId": server.device_id, "error": error.code} for server, error in done.away
            ],
            "waiting": [{"url": server.url, "deviceId": server.device_id} for server in done.waiting],
        }
    )
    if not done.waiting:
        return
    if not done.moved:
        raise RotationUnfinished(
            "No server has accepted the new key. This device uses its old key as before.",
            hint=("The new key is kept. To try again, run ", Run("rotate"), "."),
        )
    gone = ("If a server is gone for good, run ", Run("revoke", done.waiting[0].device_id), " first.")
    if done.away:
        raise RotationUnfinished(
            "This device uses its new key. The servers above have not accepted it yet, and the old key is kept for them.",
            hint=("When they can be reached, run ", Run("rotate", "--finish"), ". ", *gone),
        )
    console.say(
        f"This device uses its old key for {counted(len(done.waiting), 'server')} that you did not name:",
        *facts(*((clean(server.device_id), clean(server.url)) for server in done.waiting)),
        ("To go on with them, run ", Run("rotate", "--finish"), ". ", *gone),
    )


def _server(
    context: Context, url: str, known: list[EnrolledServer], entries: Mapping[str, DeviceEntry]
) -> EnrolledServer:
    """Return the server at an address. If the address is new, ask the server who it is, and store the address."""
    from authmesh.client import rotating  # quick start: it imports httpx

    address = url if url.endswith("/") else f"{url}/"
    if not is_server_url(address):
        raise UsageProblem(
            f"{clean_line(url)} is not the address of a server. Nothing was changed.",
            hint="Use the address of its amesh_django.urls, such as https://api.example/amesh/.",
        )
    for server in known:
        if server.url == address:
            return server
    device_id = rotating.identify(context.home.directory, address)
    if device_id not in entries:
        raise InvalidInput(
            f"The server at {clean_line(address)} says that it is {clean(device_id)}, which this device does not know. Nothing was changed.",
            hint=(
                "Compare the ID with the one that the server shows, and trust the line that export-key prints there: ",
                Run("trust", "LINE --role target"),
                ".",
            ),
        )
    server = EnrolledServer(device_id, address, "", ACTIVE, context.now())
    ServerStore(context.home.directory).put(server)
    return server


def _confirm(context: Context, servers: list[EnrolledServer], entries: Mapping[str, DeviceEntry], yes: bool) -> None:
    """Say what happens to the devices that are not asked, before there is a new key."""
    asked = {server.device_id for server in servers}
    unasked = [entry for entry in entries.values() if entry.role == TARGET and entry.device_id not in asked]
    if any(entry.role == CONTROLLER for entry in entries.values()):
        context.console.say("The devices that call this one need nothing: they do not check its key.")
    now = context.now().timestamp()
    tokens = context.home.open_enrollment_tokens(now)
    tokens += sum(token.state(now) == "open" for token in TokenStore(context.home.directory).read())
    if tokens:
        context.console.warn(f"{counted(tokens, 'open token')} that this device has made will no longer work.")
    if unasked:
        context.console.warn(
            (
                f"The address of {counted(len(unasked), 'server')} is not known, so that the new key will be rejected there until a person "
                f"trusts it: {', '.join(map(named, unasked))}. To ask them, too, name their addresses: ",
                Run("rotate", "https://api.example/amesh/"),
                ".",
            )
        )
        context.console.confirm("Replace the key all the same?", yes=yes)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "urls",
        metavar="URL",
        nargs="*",
        help="Addresses of servers to ask, such as https://api.example/amesh/. A new one is stored. Defaults to all that are known.",
    )
    parser.add_argument(
        "--finish", action="store_true", help="Ask the servers that were away. Do not begin with another new key."
    )
    add_yes(parser)


ROTATE = Command(
    "rotate",
    "Replace the key of this device at its servers.",
    rotate,
    _arguments,
    details=(
        "Each server accepts both keys for some minutes, so no request is rejected. If a server is away, the old key is kept for it. If the "
        "command is interrupted, run it again: it continues with the same keys.",
        "The addresses of the servers where this device has enrolled are known. Those of others are stored when you name them.",
    ),
    asks=True,
)

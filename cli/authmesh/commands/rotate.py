"""rotate: replace the key of this device at the servers where it has enrolled."""

from __future__ import annotations

from argparse import ArgumentParser

from authmesh.device.replacing import read_replacement
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import InvalidInput, Run
from authmesh.protocol.rotation import RotationUnfinished

from .context import Context
from .spec import Command
from .terminal.errors import UsageProblem
from .terminal.lines import Styled, facts
from .words import named


def rotate(context: Context, *, urls: list[str], finish: bool) -> None:
    """Replace the key of this device, or finish that."""
    from authmesh.client import rotating  # quick start: it imports httpx

    problem = context.home.rotation_problem()
    if problem is not None:
        raise problem
    directory, console = context.home.directory, context.console
    rotating.recover(directory, now=context.now)
    if finish and read_replacement(directory) is None:
        console.say("There is nothing to finish: no replacement of the key is under way.")
        console.result({"finished": True, "away": []})
        return
    context.own_device()
    allow_list = context.home.allow_list()
    servers = _chosen(ServerStore(directory).read(), urls)
    done = rotating.rotate(
        directory,
        servers,
        server_key=lambda device_id: allow_list.get(device_id).public_key,
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
            "finished": done.moved and not done.away,
            "accepted": sorted(done.replacement.accepted),
            "away": [
                {"url": server.url, "deviceId": server.device_id, "error": error.code} for server, error in done.away
            ],
        }
    )
    if not done.away:
        return
    if done.moved:
        raise RotationUnfinished(
            "This device uses its new key. The servers above have not accepted it yet, and the old key is kept for them.",
            hint=("When they can be reached, run ", Run("rotate", "--finish"), "."),
        )
    raise RotationUnfinished(
        "No server has accepted the new key. This device uses its old key as before.",
        hint=("The new key is kept. To try again, run ", Run("rotate"), "."),
    )


def _chosen(known: list[EnrolledServer], urls: list[str]) -> list[EnrolledServer]:
    if not known:
        raise InvalidInput(
            "This device has not enrolled at any server. Nothing was changed.",
            hint="A server that trusts it by hand must trust its new identity by hand.",
        )
    by_url = {server.url: server for server in known}
    chosen = []
    for url in urls:
        server = by_url.get(url if url.endswith("/") else f"{url}/")
        if server is None:
            raise UsageProblem(
                f"This device has not enrolled at {clean_line(url)}. Nothing was changed.",
                hint=f"Use one of these: {', '.join(by_url)}",
            )
        chosen.append(server)
    return chosen or known


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "urls",
        metavar="URL",
        nargs="*",
        help="Addresses of the servers to ask, as enroll showed them. Defaults to all where this device has enrolled.",
    )
    parser.add_argument(
        "--finish", action="store_true", help="Ask the servers that were away. Do not begin with another new key."
    )


ROTATE = Command(
    "rotate",
    "Replace the key of this device at the servers where it has enrolled.",
    rotate,
    _arguments,
    details=(
        "Each server accepts both keys for some minutes, so no request is rejected. If a server is away, the old key is kept for it. If the "
        "command is interrupted, run it again: it continues with the same keys.",
    ),
)

"""``manage.py amesh_revocations``: export and import the signed list of revocations."""

import time
from argparse import ArgumentParser
from pathlib import Path

from amesh_django.audit.recording import record
from amesh_django.fleet import importing, signed_list
from amesh_django.management.base import AmeshCommand
from amesh_django.models import AuditEvent
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.terminal.lines import Styled
from authmesh.commands.words import counted
from authmesh.files.storage import atomic_write
from authmesh.protocol.display import clean_line
from authmesh.protocol.fleet.errors import UnverifiedMessage


def revocations(context: Context, *, export_to: str | None, import_from: str | None) -> None:
    """Export or import the list."""
    context.own_device()
    if export_to is not None:
        _export(context, export_to)
    elif import_from is not None:
        _import(context, import_from)


def _export(context: Context, file: str) -> None:
    text = signed_list.build(time.time())
    record(AuditEvent.Kind.EXPORT, by=context.home.actor, subject="signed list of revocations")
    if file == "-":
        context.console.write_data(f"{text}\n".encode())
        return
    atomic_write(Path(file), f"{text}\n")
    context.console.say(Styled(f"Exported the signed list to {clean_line(file)}. It expires in 7 days.", "good"))
    context.console.result({"file": file})


def _import(context: Context, file: str) -> None:
    raw = context.console.read_stdin() if file == "-" else Path(file).read_bytes()
    try:
        text = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise UnverifiedMessage(f"{clean_line(file)} is not the signed list of a hub. Nothing was changed.") from None
    found = importing.import_list(text, now=time.time())
    context.console.say(
        Styled(
            f"Imported {counted(found.keys, 'key')} of the hub {found.hub}: {counted(found.revoked, 'device')} revoked here.",
            "good",
        )
    )
    context.console.result({"hub": found.hub, "serial": found.serial, "keys": found.keys, "revoked": found.revoked})


def _arguments(parser: ArgumentParser) -> None:
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--export", dest="export_to", metavar="FILE", help="At a hub: write the list to a file; - is stdout."
    )
    way.add_argument(
        "--import", dest="import_from", metavar="FILE", help="At a server: read the list from a file; - is stdin."
    )


class Command(AmeshCommand):
    spec = Spec(
        "revocations",
        "Carry the revocations of a hub to a server that cannot reach it.",
        revocations,
        _arguments,
        details=(
            "The list is signed by the hub, and expires after 7 days. Importing it only revokes: it neither trusts nor reinstates a device. Keys "
            "that this server does not know are kept, so that they are not trusted later.",
        ),
    )

"""note, ask-rotation: what people note about devices, and ask of them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Decided
from amesh_django.states import ACTIVE, EXPIRED, PENDING, STATES, SUSPENDED
from authmesh.commands.context import Context
from authmesh.commands.selecting import add_devices
from authmesh.commands.spec import Command

from .deciding import choose, report


def note(context: Context, *, device: str, text: str) -> None:
    """Replace the note about a device."""
    (found,) = choose(context, [device], STATES, "device")
    row = DatabaseAllowList(by=context.home.actor).set_note(found.entry.device_id, text)
    has_changed = frozenset([row.device_id]) if row.note != found.note else frozenset[str]()
    report(context, Decided([row], has_changed), lambda one: "has this note now" if one.note else "has no note now")


def ask_rotation(context: Context, *, devices: Sequence[str], withdraw: bool) -> None:
    """Ask devices to replace their keys, or withdraw that."""
    chosen = choose(context, devices, (ACTIVE, PENDING, EXPIRED, SUSPENDED), "device in the list")
    ids = [device.entry.device_id for device in chosen]
    decided = DatabaseAllowList(by=context.home.actor).request_rotation(ids, wanted=not withdraw)
    report(
        context,
        decided,
        lambda one: "is no longer asked to replace its key" if withdraw else "is asked to replace its key",
    )


def _note_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "device", metavar="DEVICE", help="Device ID or name of a device, or the beginning of a device ID."
    )
    parser.add_argument("text", metavar="TEXT", help="The new note. An empty text removes it.")


def _ask_arguments(parser: ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument("--withdraw", action="store_true", help="Do not ask them any more.")


NOTE = Command(
    "note",
    "Replace the note about a device, which people see and devices do not.",
    note,
    _note_arguments,
    details=("The audit log keeps each note. Hubs do not carry them to other servers.",),
)
ASK_ROTATION = Command(
    "ask-rotation",
    "Ask devices to replace their keys with rotate.",
    ask_rotation,
    _ask_arguments,
    details=(
        "A device is told with the answers to its requests, until it has a new key. Nothing is rejected because of this.",
    ),
)

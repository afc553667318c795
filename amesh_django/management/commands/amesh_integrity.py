"""``manage.py amesh_integrity``: does the list in the database match its seal, what differs, and accepting it as it stands."""

from __future__ import annotations

from typing import ClassVar

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.device import commands
from amesh_django.device.commands import YES, Context, Line, Option
from amesh_django.management.base import AmeshCommand
from amesh_django.protocol.errors import AllowListIntegrityFailure, AmeshError


def integrity(context: Context, *, reseal: bool, yes: bool) -> None:
    """Verify every row, show what differs, and seal anew if a person says so."""
    context.own_device()
    devices = DatabaseAllowList(by=context.actor)
    found = devices.verify()
    console = context.console
    answer = {"ok": found.ok, "devices": found.devices, "problems": found.problems, "resealed": False}
    rows = f"{found.devices} row{'s' if found.devices != 1 else ''}"
    if found.ok:
        differences: list[Line | str] = [
            Line(f"The list matches its seal: {rows}, revoked devices included.", "good"),
        ]
        if reseal:  # after a backup was put back: servers that saw a newer list go on once the revision is above it
            differences.append("Sealing it anew makes it newer than any list that a running server has seen.")
    else:
        differences = [
            Line(f"The list does not match its seal ({rows}). Nobody is let in.", "bad"),
            *[f"  {problem}" for problem in found.problems],
        ]
    console.say(*differences)
    if found.ok and not reseal:
        console.result(answer)
        return
    try:
        if not reseal:
            raise AllowListIntegrityFailure(
                "The list does not match its seal. Undo what was changed, or accept the rows as they stand: "
                f"{context.command('integrity')} --reseal"
            )
        question = "Trust the rows as they stand, and seal them anew?"
        context.confirm(question, about=differences if console.as_json else [], yes=yes)
    except AmeshError:
        console.result(answer)
        raise
    devices.reseal()
    console.say(Line("The list was sealed anew, as it stands.", "good"))
    console.result({**answer, "resealed": True})


class Command(AmeshCommand):
    """Verification of the sealed list."""

    spec: ClassVar[commands.Command] = commands.Command(
        "integrity",
        "Verify the sealed list of trusted devices and show what differs.",
        integrity,
        (Option(("--reseal",), "Accept the rows as they stand and seal them anew, after a question.", "flag"), YES),
        details=("The exit code is 1 if the list does not match its seal and was not sealed anew.",),
        asks=True,
    )

"""``manage.py amesh_integrity``: does the list in the database match its seal, what differs, and accepting it as it stands."""

from __future__ import annotations

from typing import ClassVar

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.management.base import AmeshCommand
from amesh_django.trust.integrity import IntegrityReport
from amesh_django.trust.rollback import Memory
from authmesh import commands
from authmesh.commands import YES, Context, Line, Option
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError


def integrity(context: Context, *, reseal: bool, yes: bool) -> None:
    """Verify every row, show what differs, and seal anew if a person says so."""
    context.own_device()
    devices = DatabaseAllowList(by=context.actor)
    found = devices.verify()
    console = context.console
    answer = {
        "ok": found.ok,
        "devices": found.devices,
        "problems": found.problems,
        "resealed": False,
        "newest": _asdict(devices),
    }
    rows = f"{found.devices} row{'s' if found.devices != 1 else ''}"
    if found.ok:
        differences: list[Line | str] = [
            Line(f"The list matches its seal: {rows}, revoked devices included.", "good"),
            _kept(devices.memory()),
        ]
        if reseal:  # after a backup was put back: servers that saw a newer list go on once the revision is above it
            differences.append("Sealing it anew makes it newer than any list that a server has seen.")
    else:
        differences = [
            Line(f"{_wrong(found)} ({rows}). Nobody is let in.", "bad"),
            *[f"  {problem}" for problem in found.problems],
        ]
        if found.is_old:
            differences.append(
                "It trusts these devices. Those that were revoked since are trusted again:"
                if found.trusted
                else "It trusts nobody."
            )
            differences += [f"  {device}" for device in found.trusted]
    console.say(*differences)
    if found.ok and not reseal:
        console.result(answer)
        return
    try:
        if not reseal:
            raise AllowListIntegrityFailure(
                f"{_wrong(found)}. Undo what was changed, or accept the rows as they stand: "
                f"{context.command('integrity')} --reseal"
            )
        question = "Trust the rows as they stand, and seal them anew?"
        context.confirm(question, about=differences if console.as_json else [], yes=yes)
    except AmeshError:
        console.result(answer)
        raise
    devices.reseal()
    console.say(Line("The list was sealed anew, as it stands.", "good"))
    if found.is_old:
        console.say("Now revoke again what was revoked since.")
    console.result({**answer, "resealed": True, "newest": _asdict(devices)})


def _wrong(found: IntegrityReport) -> str:
    if found.reason in ("rolled_back", "revision_lost"):
        return "The list is not known to be the newest that this server has seen"
    return "The list does not match its seal"


def _asdict(devices: DatabaseAllowList) -> dict[str, object]:
    memory = devices.memory()
    return {"revision": memory.revision, "kept": memory.kept}


def _kept(memory: Memory) -> str:
    if memory.revision is None:
        return "This server has not noted yet which list is the newest."
    text = f"It is the newest that this server has seen (at least revision {memory.revision}), by {memory.where}"
    if memory.kept == "tpm":
        return f"{text} and a counter in the TPM."
    return f"{text}. Without a TPM, whoever puts that file back together with the database is not noticed."


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

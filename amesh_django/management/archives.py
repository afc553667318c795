"""Archives of the audit log on the command line."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from django.utils import timezone

from amesh_django.audit import archiving, checkpoints, settings
from amesh_django.trust import current_list
from authmesh.commands.context import Context
from authmesh.commands.terminal.lines import Shown, Styled
from authmesh.commands.words import counted
from authmesh.files.storage import expanded
from authmesh.protocol.errors import StorageError


def archive(context: Context, file: str, before: dt.datetime, *, yes: bool) -> None:
    """Move the events before a time to a file, if a person says so.

    Args:
        context: the surroundings of the command.
        file: name of the file, which must not exist.
        before: the time.
        yes: True to ask nothing.
    """
    console, by = context.console, context.home.actor
    path, sealed = expanded(file), current_list()
    if path.exists() or path.is_symlink():
        raise StorageError(f"{path} exists already. Nothing was changed.", hint="Use another name.")
    settings.note(by=by)
    cut = archiving.plan(sealed, before)
    events = f"{counted(cut.count, 'event')}, {cut.start.seq + 1} to {cut.end.seq},"
    about: list[Shown] = [
        f"{events} will be written to {path} and removed from the database. The admin and this command show them no longer."
    ]
    if cut.limited_by:
        about.append(f"Later events stay, because the server {cut.limited_by} of the fleet still needs them.")
    if not yes and not console.as_json:
        console.say(*about)
    console.confirm("Archive them?", about=about if console.as_json else [], yes=yes)
    now = timezone.now()
    digest = archiving.archive(sealed, cut, path, by=by, now=now)
    settings.note(by=by)  # the event that says how they are may be in the archive
    checkpoints.make(sealed, timezone.now(), at_once=True)
    console.say(
        Styled(f"{events} are in {path} now, and no longer in the database.", "good"),
        f"SHA-256 {digest}. Keep the file, and the secret of the seal that verifies it.",
    )
    console.result(
        {"archived": cut.count, "from": cut.start.seq + 1, "to": cut.end.seq, "file": str(path), "sha256": digest}
    )


def verify(context: Context, file: str) -> None:
    """Verify an archive by itself.

    Args:
        context: the surroundings of the command.
        file: name of the file.
    """
    found = archiving.verify_file(current_list(), Path(expanded(file)))
    context.console.say(
        Styled(f"The archive is as amesh wrote it: events {found.first} to {found.last}.", "good"),
        f"SHA-256 {found.sha256}. The event of the archive in the audit log has the same.",
    )
    context.console.result({"ok": True, "from": found.first, "to": found.last, "sha256": found.sha256})

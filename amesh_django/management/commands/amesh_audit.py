"""``manage.py amesh_audit``: show the audit log, and verify it."""

import datetime as dt
import json
import re
from argparse import ArgumentParser

from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from amesh_django.audit import checkpoints, exporting, placing, reading, settings, sweeping, verifications
from amesh_django.audit.verifying import AuditLogFault
from amesh_django.kinds import EventKind
from amesh_django.management import archives
from amesh_django.management.base import AmeshCommand
from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.spec import add_yes
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled
from authmesh.commands.words import counted
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import Run

_AGE = re.compile(r"([0-9]{1,6})([smhd])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNCHANGED = "Nothing was changed."


def audit(
    context: Context,
    *,
    since: str | None,
    device: str | None,
    kind: str | None,
    verify: bool,
    after: int,
    from_checkpoint: bool,
    checkpoint_lines: bool,
    seal: bool,
    ocsf: bool,
    archive: str | None,
    before: str | None,
    file: str | None,
    yes: bool,
) -> None:
    """Show events, or seal the newest and verify the log."""
    if ocsf and context.console.as_json:
        raise UsageProblem(f"--ocsf and --json exclude each other. {_UNCHANGED}", hint="Omit one of them.")
    if (seal or verify or checkpoint_lines) and (ocsf or (since, device, kind) != (None, None, None)):
        raise UsageProblem(
            f"--seal, --verify and --checkpoints are about all events. {_UNCHANGED}",
            hint="Omit --since, --device, --kind and --ocsf.",
        )
    if checkpoint_lines and (seal or verify):
        raise UsageProblem(f"--checkpoints changes and verifies nothing. {_UNCHANGED}", hint="Use it on its own.")
    if archive or before or file:
        if since or device or kind or ocsf or seal or after or from_checkpoint or checkpoint_lines:
            raise UsageProblem(
                f"--archive and --file go with no other option but --before and --verify. {_UNCHANGED}",
                hint="Use --archive FILE --before DATE, or --verify --file FILE.",
            )
        if file and (archive or before or not verify):
            raise UsageProblem(f"--file is only used with --verify. {_UNCHANGED}")
        if not file and (verify or not archive or not before):
            raise UsageProblem(f"--archive needs --before, and --before is only used with it. {_UNCHANGED}")
        context.own_device()
        if file:
            archives.verify(context, file)
        else:
            moment = _since(before)
            if moment is not None:
                archives.archive(context, str(archive), moment, yes=yes)
        return
    if after < 0:
        raise UsageProblem(f"--after must be the number of an event. {_UNCHANGED}")
    if after and not verify:
        raise UsageProblem(f"--after is only used with --verify. {_UNCHANGED}")
    if from_checkpoint and (after or not verify):
        raise UsageProblem(f"--from-checkpoint is only used with --verify, and without --after. {_UNCHANGED}")
    if checkpoint_lines:
        _checkpoints(context)
        return
    if seal or verify:
        context.own_device()
        if seal and not verify and placing.is_end_damaged(current_list()):
            raise AuditLogFault(
                f"The row that says where the audit log ends was changed or removed outside Django. No event got a place. {_UNCHANGED}",
                hint=("To see what is wrong, run ", Run("audit", "--verify"), "."),
            )
        if verify:
            _check_after(after)
        answer = _seal(context) if seal else {}
        if verify:
            _verify(context, after, from_checkpoint, answer)
        else:
            context.console.result(answer)
        return
    if kind is not None and kind not in EventKind.values:
        raise UsageProblem(
            f"{kind!r} is not a kind of event. {_UNCHANGED}", hint=f"Use one of {', '.join(EventKind.values)}."
        )
    found = reading.events(since=_since(since), device=device, kind=kind)
    console = context.console
    if console.as_json:
        console.result({"events": [reading.as_json(event) for event in found]})
        return
    is_empty = True
    for event in found:
        is_empty = False
        console.data(exporting.ocsf_line(event) if ocsf else _line(event))
    if is_empty:
        console.say("There are no such events.")


def _check_after(after: int) -> None:
    sealed = current_list()
    sealed.unlock()
    end = sealed.read_end()
    if end is not None and end[1] and after > end[0].seq:
        raise UsageProblem(
            f"The audit log ends with event {end[0].seq}. {_UNCHANGED}", hint="Use --after with the number of an event."
        )


def _seal(context: Context) -> dict[str, object]:
    settings.note(by=context.home.actor)
    swept = sweeping.sweep(timezone.now())
    (placed, forged), checkpoint = swept.placed, swept.checkpoint
    if placed or not forged:
        context.console.say(
            f"{counted(placed, 'event')} got a place in the log." if placed else "No event waited for its place."
        )
    if forged:
        number = counted(forged, "event")
        inserted = "was inserted outside Django and gets" if forged == 1 else "were inserted outside Django and get"
        context.console.warn(
            (f"{number} {inserted} no place in the log. To see the first one, run ", Run("audit", "--verify"), ".")
        )
    if checkpoint is not None:
        context.console.say(f"A checkpoint was made: the log ended with event {checkpoint.seq}.")
    return {"sealed": placed, "forged": forged, "checkpoint": checkpoint.as_json() if checkpoint is not None else None}


def _checkpoints(context: Context) -> None:
    """Print what an auditor needs who does not have the secret of the seal."""
    context.own_device()
    found = [{"event": event.seq, **one.as_json()} for event, one in checkpoints.every(current_list())]
    if context.console.as_json:
        context.console.result({"checkpoints": found})
        return
    for line in found:
        context.console.data(json.dumps(line))
    if not found:
        context.console.say("There is no checkpoint yet.")


def _verify(context: Context, after: int, from_checkpoint: bool, answer: dict[str, object]) -> None:
    checkpoint = checkpoints.newest(current_list()) if from_checkpoint else None
    if checkpoint is not None:
        context.console.say(f"Verifying from the checkpoint of {checkpoint.at}, after event {checkpoint.seq}.")
    elif from_checkpoint:
        context.console.say("There is no valid checkpoint, so the whole log is verified.")
    begin = checkpoint.end if checkpoint is not None else None
    found = verifications.verify_and_record(context.home.actor, after=after, begin=begin)
    console, fault = context.console, found.fault
    console.result(
        {
            **answer,
            "ok": fault is None,
            "events": found.events,
            "unsealed": found.unsealed,
            "archived": found.start,
            "after": checkpoint.seq if checkpoint is not None else after,
            "fault": {"name": fault.name, "text": fault.text, "about": fault.about} if fault is not None else None,
        }
    )
    if found.start:
        console.say(f"The log begins after event {found.start}: older events were archived.")
    waiting = f" {counted(found.unsealed, 'event')} more without a place yet." if found.unsealed else ""
    if fault is None:
        console.say(Styled(f"The audit log is as amesh wrote it: {counted(found.events, 'event')}.{waiting}", "good"))
        return
    if fault.name == "unsealed":
        raise AuditLogFault(
            f"The audit log has a fault: {fault.text}. {fault.about} {_UNCHANGED}",
            hint=("Run ", Run("audit", "--seal"), " every minute, such as by cron or a systemd timer."),
        )
    raise AuditLogFault(
        f"The audit log has a fault: {fault.text}. {fault.about} {_UNCHANGED}",
        hint=(
            "Compare the log with a copy elsewhere, such as the records of the logger amesh_django.audit, and find out who can write to "
            "the database. To verify the allow list itself, run ",
            Run("integrity"),
            ".",
        ),
    )


def _line(event: AuditEvent) -> str:
    subject = clean(event.subject) if event.subject else ""
    device = clean_line(event.device_id)
    about = f"{subject} ({device})" if subject and device else subject or device
    parts = (
        "-" if event.seq is None else str(event.seq),
        _moment(event),
        clean_line(event.kind),
        about,
        f"by {clean_line(event.actor)}" if event.actor else "",
        clean_line(event.address),
        clean_line(event.reason_code),
        clean_line(event.text),
    )
    return "  ".join(part for part in parts if part)


def _moment(event: AuditEvent) -> str:
    if event.kind == reading.UNREADABLE_KIND:
        return "-"
    moment = event.at.astimezone(dt.UTC) if timezone.is_aware(event.at) else event.at
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _since(text: str | None) -> dt.datetime | None:
    """Return the time that ``--since`` means.

    Raises:
        UsageProblem: it is not a time.
    """
    if text is None:
        return None
    age = _AGE(text.strip())
    try:
        if age:
            return timezone.now() - dt.timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        day = parse_date(text)
        moment = dt.datetime.combine(day, dt.time()) if day is not None else parse_datetime(text)
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise UsageProblem(
            f"{text!r} is not a time. {_UNCHANGED}", hint="Use 30m, 12h, 7d, 2026-03-28, or 2026-03-28T10:05."
        )
    if timezone.is_aware(timezone.now()):
        return timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return moment if timezone.is_naive(moment) else timezone.make_naive(moment)


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--since", metavar="TIME", help="Only events from this time on: 30m, 12h or 7d ago, or 2026-03-28T10:05."
    )
    parser.add_argument("--device", metavar="ID", help="Only events about the device with this device ID.")
    parser.add_argument("--kind", metavar="KIND", help=f"Only events of this kind: {', '.join(EventKind.values)}.")
    parser.add_argument(
        "--ocsf",
        action="store_true",
        help="Print each event as one line of JSON in the Open Cybersecurity Schema (OCSF) for programs.",
    )
    parser.add_argument(
        "--seal",
        action="store_true",
        help="Give each event that waits its place in the log, and make a checkpoint each hour. Run it every minute.",
    )
    parser.add_argument("--verify", action="store_true", help="Verify the log, and name the first fault.")
    parser.add_argument(
        "--after",
        metavar="N",
        type=int,
        default=0,
        help="With --verify: begin after event N, because a fault up to it is known.",
    )
    parser.add_argument(
        "--from-checkpoint",
        action="store_true",
        help="With --verify: verify only what came after the newest valid checkpoint, which is fast.",
    )
    parser.add_argument(
        "--checkpoints",
        dest="checkpoint_lines",
        action="store_true",
        help="Print each checkpoint as one line of JSON, for an auditor without the secret of the seal.",
    )
    parser.add_argument(
        "--archive",
        metavar="FILE",
        help="With --before: write the oldest events to a new file, and remove them from the database, after a question.",
    )
    parser.add_argument(
        "--before",
        metavar="TIME",
        help="With --archive: only events before this time: 365d ago, or 2026-03-28.",
    )
    parser.add_argument("--file", metavar="FILE", help="With --verify: verify an archive instead of the log.")
    add_yes(parser)


class Command(AmeshCommand):
    spec = Spec(
        "audit",
        "Show the audit log of this server, or verify it.",
        audit,
        _arguments,
        details=(
            "One event is one line: number, time (UTC), what happened, to what, by whom. An event without a number has no place in the log "
            "yet. Shown events are not verified: use --verify.",
            "With --verify, the exit code is 1 if the log has a fault: an event was changed, removed or inserted outside Django, the end "
            "was cut off or restored, or events have waited for their place for more than an hour.",
        ),
        asks=True,
    )

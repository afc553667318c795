"""Archiving: the oldest events move to a file, and the log begins after them (docs/fleet.md, "Archives")."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from django.db.models import Min, QuerySet

from amesh_django.models import AuditEvent, Server
from amesh_django.trust import SealedList
from amesh_django.trust.chain import EVENT_COLUMNS, is_same, link_after
from amesh_django.trust.change import Change
from amesh_django.trust.damage import UNREADABLE, each_row
from amesh_django.trust.keys import SealKeys
from amesh_django.trust.places import Place, log_start, write_place
from amesh_django.trust.revoking import Sealed
from amesh_django.trust.sealing import LogEnd, row_texts
from authmesh.files.storage import sync_directory
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AmeshError, Run, StorageError
from authmesh.protocol.multiset import encode_row

from . import checkpoints, placing
from .verifying import AuditLogFault

FORMAT: Final = "amesh-audit-archive-v1"
#: Rows of devices that one event carries over.
MAX_ROWS: Final = 1000
#: A server of the fleet that lacks more changes than this takes the whole list instead of the events.
MAX_BEHIND: Final = 1000
_CHUNK = 1 << 16


class NotArchived(AmeshError):
    """Nothing can be archived, or the log was changed meanwhile. No event was removed."""

    code = "not_archived"


@dataclass(frozen=True, slots=True)
class Cut:
    """A range of events that may be archived.

    Attributes:
        start: the event before the first.
        end: the last event.
        limited_by: URL of the server of the fleet that needs the events after it; empty if the time is the limit.
    """

    start: LogEnd
    end: LogEnd
    limited_by: str = ""

    @property
    def count(self) -> int:
        """Number of events."""
        return self.end.seq - self.start.seq


def plan(sealed: SealedList, before: dt.datetime) -> Cut:
    """Return which events may be archived: all from the first one on that happened before a time, and that nothing needs.

    Args:
        sealed: the list whose keys the events have.
        before: the time.

    Raises:
        NotArchived: there is none.
        AuditLogFault: the end of the log was damaged.
        AllowListBusy, IdentityMissing, DirectoryError, KeyStoreError: as for :func:`~amesh_django.audit.placing.place_all`.
    """
    placing.place_all(sealed)
    found = sealed.read_end()
    if found is not None and not found[1]:
        raise _damaged("The row that says where the audit log ends was changed or removed outside Django.")
    start, last = log_start(sealed), found[0].seq if found is not None else 0
    newer = _events(sealed).filter(seq__gt=start.seq, at__gte=before).aggregate(found=Min("seq"))["found"]
    to = _whole(sealed, last if newer is None else min(last, newer - 1))
    needed, url = _needed(sealed)
    is_limited = needed is not None and needed <= to
    to = needed - 1 if needed is not None and is_limited else to
    if to <= start.seq:
        why = f"The server {url} of the fleet still needs the oldest events." if is_limited else "No event is that old."
        raise NotArchived(f"{why} Nothing was archived.", hint="Use a later --before.")
    link = _events(sealed).filter(seq=to).values_list("link", flat=True).first()
    return Cut(start, LogEnd(to, link or ""), url if is_limited else "")


def archive(sealed: SealedList, cut: Cut, path: Path, *, by: str, now: dt.datetime) -> str:
    """Write events to a file, remove them from the table, and return the SHA-256 of the file, in hex.

    Each event is verified as it is written. The file is on the disk before the first event is removed. It is left there if the events
    cannot be removed.

    Args:
        sealed: the list whose keys the events have.
        cut: the events.
        path: the file, which must not exist.
        by: the person who decided this, for the audit log.
        now: the time, as Django's ``timezone.now`` returns it.

    Raises:
        StorageError: the file exists or cannot be written; nothing was changed.
        AuditLogFault: an event is not as amesh wrote it; nothing was changed.
        NotArchived: the log was archived or rekeyed meanwhile; no event was removed.
        AllowListIntegrityFailure: the list is rejected; no event was removed.
        AllowListBusy, IdentityMissing, DirectoryError, KeyStoreError: as for a change; no event was removed.
    """
    sealed.unlock()
    kept = Sealed(is_complete=not cut.start.seq)
    seal = sealed.read_seal()
    header = _header(sealed.log_keys(), cut, now)
    header["checkpoint"] = checkpoints.signed(cut.end, seal.revision if seal is not None else 0, now).as_json()
    digest = _write(path, itertools.chain([header], _lines(sealed, cut, kept)))
    data = {
        "from": cut.start.seq + 1,
        "to": cut.end.seq,
        "link": cut.end.link,
        "file": path.name,
        "sha256": digest,
    }
    sealed.change(by, lambda pending: _remove(sealed, pending, cut, kept, data))
    return digest


def _remove(sealed: SealedList, pending: Change, cut: Cut, kept: Sealed, data: Mapping[str, Any]) -> None:
    """Remove the events, and add one that carries over what the list still needs of them."""
    state = Sealed(kept.is_complete, dict(kept.rows))
    carried = dict(kept.rows)
    pending.lock_log()
    archived = _events(sealed).filter(seq__gt=cut.start.seq, seq__lte=cut.end.seq)
    if log_start(sealed) != cut.start or not archived.filter(seq=cut.end.seq, link=cut.end.link).exists():
        raise _meanwhile()
    for event in sealed.events(seq__gt=cut.end.seq):
        if event is not None and sealed.is_genuine_event(event):
            before = dict.fromkeys(state.rows) if not event.device_id else {event.device_id: None}
            rows = {name: state.rows.get(name) for name in before}
            state.follow(event)
            for name, row in rows.items():
                if state.rows.get(name) is not row:
                    carried.pop(name, None)
    names = [*carried]
    for first in range(0, len(names) or 1, MAX_ROWS):
        rows_of = {name: carried[name] for name in names[first : first + MAX_ROWS]}
        about = data if not first else {}
        text = f"events {data['from']} to {data['to']}" if not first else ""
        members = {**about, "rows": rows_of, "removed": [], "complete": state.is_complete}
        pending.record(AuditEvent.Kind.ARCHIVE, members, text)
    write_place(sealed, sealed.log_keys(), Place.START, cut.end)
    if archived.delete()[0] != cut.count:
        raise _meanwhile()


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that was verified.

    Attributes:
        first: number of its first event.
        last: number of its last event.
        sha256: SHA-256 of the file, in hex.
    """

    first: int
    last: int
    sha256: str


def verify_file(sealed: SealedList, path: Path) -> Archive:
    """Verify an archive by itself, with the keys of the seal.

    Args:
        sealed: the list whose keys the events have.
        path: the file.

    Raises:
        AuditLogFault: amesh did not write the file, or it was changed.
        OSError: it cannot be read.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed.unlock()
    whole = hashlib.sha256()
    with path.open("rb") as file:
        lines = _objects(file, whole)
        header = next(lines, None)
        keys = next((keys for keys in sealed.all_keys if header is not None and _is_header(keys, header)), None)
        if header is None or keys is None:
            raise _damaged(f"The first line of {path} is not as amesh wrote it, or was written with another secret.")
        last, end = LogEnd(header["from"] - 1, header["after"]), LogEnd(header["to"], header["link"])
        for line in lines:
            event = _event(line)
            number = last.seq + 1
            is_next = event is not None and event.seq == number and sealed.is_genuine_event(event)
            if event is None or not is_next or not is_same(link_after(keys, last.link, number, event.mac), event.link):
                raise _damaged(f"Event {number} in {path} is missing, or is not as amesh wrote it.")
            last = LogEnd(number, event.link)
    if last != end:
        raise _damaged(f"{path} was cut off after event {last.seq}; it ended with event {end.seq}.")
    return Archive(header["from"], end.seq, whole.hexdigest())


def _events(sealed: SealedList) -> QuerySet[AuditEvent]:
    return AuditEvent.objects.using(sealed.using)


def _whole(sealed: SealedList, to: int) -> int:
    """Return the last event before which no revision is cut in two: the feed takes what is left of one for all of it.

    Args:
        sealed: the list.
        to: the last event that is old enough.
    """
    following = _events(sealed).filter(seq=to + 1).values_list("revision", flat=True).first()
    if following is None:
        return to
    first = _events(sealed).filter(revision=following, seq__isnull=False).aggregate(found=Min("seq"))["found"]
    return to if first is None else min(to, first - 1)


def _needed(sealed: SealedList) -> tuple[int | None, str]:
    """Return the first event that a server of the fleet has not been told yet, and its URL; None if there is none."""
    seal = sealed.read_seal()
    if seal is None:
        return None, ""
    servers = Server.objects.using(sealed.using).filter(
        enabled=True, epoch=seal.epoch, acked__gte=seal.revision - MAX_BEHIND
    )
    slowest = servers.order_by("acked").first()
    if slowest is None:
        return None, ""
    newer = _events(sealed).filter(revision__gt=slowest.acked, seq__isnull=False).aggregate(found=Min("seq"))["found"]
    return newer, slowest.url


def _lines(sealed: SealedList, cut: Cut, kept: Sealed) -> Iterator[dict[str, Any]]:
    """Yield the events as a file has them, each verified, and apply the changes to *kept*."""
    last = cut.start
    for _pk, event in each_row(_events(sealed).filter(seq__gt=last.seq, seq__lte=cut.end.seq).order_by("seq", "id")):
        number = last.seq + 1
        is_next = event is not None and event.seq == number and sealed.is_genuine_event(event)
        if event is None or not is_next or not _is_linked(sealed, last, event):
            raise _damaged(f"Event {number} is missing, or is not as amesh wrote it.")
        if event.revision is not None:
            kept.follow(event)
        last = LogEnd(number, event.link)
        texts = row_texts([getattr(event, name) for name in EVENT_COLUMNS])
        yield {"seq": number, **dict(zip(EVENT_COLUMNS, texts, strict=True)), "mac": event.mac, "link": event.link}
    if last != cut.end:
        raise _damaged(f"The audit log was cut off after event {last.seq}.")


def _is_linked(sealed: SealedList, last: LogEnd, event: AuditEvent) -> bool:
    return any(is_same(link_after(keys, last.link, last.seq + 1, event.mac), event.link) for keys in sealed.all_keys)


def _header(keys: SealKeys, cut: Cut, now: dt.datetime) -> dict[str, Any]:
    header: dict[str, Any] = {
        "format": FORMAT,
        "from": cut.start.seq + 1,
        "to": cut.end.seq,
        "after": cut.start.link,
        "link": cut.end.link,
        "made": format_time(now.astimezone(dt.UTC)),
    }
    return {**header, "mac": _mac(keys, header)}


def _mac(keys: SealKeys, header: Mapping[str, Any]) -> str:
    members = [str(header[name]) for name in ("from", "to", "after", "link", "made")]
    return hmac.digest(keys.chain, encode_row(FORMAT, keys.owner, *members), "sha256").hex()


def _is_header(keys: SealKeys, header: Mapping[str, Any]) -> bool:
    try:
        is_typed = type(header["from"]) is int and type(header["to"]) is int
        return is_typed and header["format"] == FORMAT and is_same(_mac(keys, header), header["mac"])
    except (KeyError, *UNREADABLE):
        return False


def _objects(file: IO[bytes], whole: Any) -> Iterator[dict[str, Any] | None]:
    """Yield the object of each line, None for one that is none, and hash all of them."""
    for line in file:
        whole.update(line)
        try:
            found = json.loads(line)
        except UNREADABLE:
            found = None
        yield found if isinstance(found, dict) else None


def _event(line: Mapping[str, Any] | None) -> AuditEvent | None:
    """Return the event of a line. Its columns are texts, as they were hashed."""
    names = (*EVENT_COLUMNS, "mac", "link")
    if line is None or type(line.get("seq")) is not int or not all(isinstance(line.get(name), str) for name in names):
        return None
    return AuditEvent(seq=line["seq"], **{name: line[name] for name in names})


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> str:
    """Write a file that does not exist yet, in one step, and return its SHA-256."""
    whole = hashlib.sha256()
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".amesh-tmp", dir=path.parent)
        with open(descriptor, "wb") as file:
            for one in lines:
                line = json.dumps(one, ensure_ascii=True).encode() + b"\n"
                whole.update(line)
                file.write(line)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # unlike a rename, it replaces nothing
        sync_directory(path.parent)
    except FileExistsError:
        raise StorageError(f"{path} exists already. Nothing was changed.", hint="Use another name.") from None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}). Nothing was changed.",
            hint="Free disk space, check the permissions, or use a file system with hard links.",
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return whole.hexdigest()


def _damaged(text: str) -> AuditLogFault:
    return AuditLogFault(
        f"{text} Nothing was archived or changed.",
        hint=("To see what is wrong with the log, run ", Run("audit", "--verify"), "."),
    )


def _meanwhile() -> NotArchived:
    return NotArchived(
        "The audit log was archived, rekeyed, or changed outside Django meanwhile. No event was removed.",
        hint=("The file was written: delete it. Then run ", Run("audit", "--verify"), ", and try again."),
    )

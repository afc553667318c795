"""Checkpoints: where the log ended at a time, signed by this server's key, so that somebody without the secret of the seal can check it."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from django.db.models import QuerySet

from amesh_django.models import AuditEvent
from amesh_django.trust import SealedList
from amesh_django.trust.chain import Actor, data_of, new_event
from amesh_django.trust.damage import each_row
from amesh_django.trust.owner import open_device
from amesh_django.trust.places import Place, read_place, write_place
from amesh_django.trust.sealing import LogEnd
from authmesh.protocol.encoding import b64decode_any, b64encode, format_time
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key, verify_signature

logger = logging.getLogger("amesh_django.audit")

#: Seconds between two checkpoints.
INTERVAL_SECONDS: Final = 3600
LABEL: Final = "amesh-audit-checkpoint-v1"
#: Members of a checkpoint as JSON, in the order of its attributes.
_MEMBERS: Final = {
    "seq": int,
    "link": str,
    "revision": int,
    "at": str,
    "deviceId": str,
    "publicKey": str,
    "signature": str,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The statement of a server where its log ended.

    Attributes:
        seq: number of the last event.
        link: its link.
        revision: revision of the allow list then; 0 if there was none.
        at: time, such as ``2026-03-28T10:05:00.000Z``.
        device_id: the server that signed it.
        public_key: its public key, base64.
        signature: its signature of :attr:`message`, base64.
    """

    seq: int
    link: str
    revision: int
    at: str
    device_id: str
    public_key: str
    signature: str = ""

    @property
    def message(self) -> bytes:
        """The signed bytes."""
        return "\n".join((LABEL, self.device_id, str(self.seq), self.link, str(self.revision), self.at)).encode()

    @property
    def end(self) -> LogEnd:
        """The place in the log that it is about."""
        return LogEnd(self.seq, self.link)

    @property
    def is_signed(self) -> bool:
        """True if the signature is good, and the device ID that of the key."""
        try:
            key, signature = decode_public_key(self.public_key), b64decode_any(self.signature)
        except InvalidInput:
            return False
        return device_id(key) == self.device_id and verify_signature(key, self.message, signature)

    def as_json(self) -> dict[str, Any]:
        """Return it as an event and a line of JSON have it."""
        return {name: getattr(self, attribute) for name, attribute in zip(_MEMBERS, self.__slots__, strict=True)}

    @classmethod
    def from_json(cls, found: Any) -> Checkpoint | None:
        """Return what :meth:`as_json` has made; None for anything else."""
        if not isinstance(found, dict):
            return None
        values: list[Any] = [found.get(name) for name in _MEMBERS]
        if [type(value) for value in values] != list(_MEMBERS.values()):
            return None
        return cls(*values)


def signed(end: LogEnd, revision: int, now: dt.datetime) -> Checkpoint:
    """Return a checkpoint, signed with the key of this server.

    Args:
        end: place in the log.
        revision: revision of the allow list.
        now: the time.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the key of this server cannot be used.
    """
    device = open_device()
    own = device.identity
    moment = format_time(now.astimezone(dt.UTC))
    checkpoint = Checkpoint(end.seq, end.link, revision, moment, own.device_id, encode_public_key(own.public_key))
    return replace(checkpoint, signature=b64encode(device.sign(checkpoint.message)))


def make(sealed: SealedList, now: dt.datetime, *, at_once: bool = False) -> Checkpoint | None:
    """Make a checkpoint if the newest is older than an hour and events have come since, and return it; None if it is not time.

    Processes and hosts may call it at the same moment: one of them makes the checkpoint.

    Args:
        sealed: the list whose keys the events have.
        now: the time, as Django's ``timezone.now`` returns it.
        at_once: True to make one in any case, unless the log is empty or its end was damaged.

    Raises:
        AllowListBusy: the end of the log was locked all the time.
        IdentityMissing, DirectoryError, KeyStoreError: the key of this server, or the keys of the seal, cannot be used.
    """
    sealed.unlock()
    found = sealed.read_end()
    if not _is_due(sealed, found, now, at_once):
        return None
    seal = sealed.read_seal()
    # Signed before the lock is taken: a TPM needs a moment. That the log may have grown meanwhile makes no difference.
    checkpoint = signed(found[0] if found is not None else LogEnd(), seal.revision if seal is not None else 0, now)
    return sealed.while_end_locked(lambda end: _write(sealed, end, checkpoint, now, at_once))


def newest(sealed: SealedList) -> Checkpoint | None:
    """Return the newest checkpoint, if its event is genuine and has its place, and its signature is good; None otherwise."""
    event = _newest_event(sealed)
    checkpoint = Checkpoint.from_json(data_of(event)) if event is not None else None
    return checkpoint if checkpoint is not None and checkpoint.is_signed else None


def every(sealed: SealedList) -> Iterator[tuple[AuditEvent, Checkpoint]]:
    """Yield the checkpoints of the log, the oldest first, each with its event. Those that amesh did not write are left out."""
    for _pk, event in each_row(_events(sealed).filter(seq__isnull=False).order_by("seq", "id")):
        if event is not None and sealed.is_genuine_event(event):
            checkpoint = Checkpoint.from_json(data_of(event))
            if checkpoint is not None:
                yield event, checkpoint


def _is_due(sealed: SealedList, found: tuple[LogEnd, bool] | None, now: dt.datetime, at_once: bool) -> bool:
    if found is None or not found[1] or not found[0].seq:
        return False
    event = _newest_event(sealed)
    if at_once or event is None:
        return True
    # The clock of another host may be ahead.
    return found[0].seq > (event.seq or 0) and abs((now - event.at).total_seconds()) >= INTERVAL_SECONDS


def _write(
    sealed: SealedList, found: tuple[LogEnd, bool] | None, checkpoint: Checkpoint, now: dt.datetime, at_once: bool
) -> Checkpoint | None:
    if found is None or not _is_due(sealed, found, now, at_once):  # another process was faster
        return None
    last = AuditEvent.objects.using(sealed.using).filter(seq=checkpoint.seq, link=checkpoint.link)
    if not last.exists():  # the log was rekeyed meanwhile, or the event was removed
        return None
    keys = sealed.log_keys()
    event = new_event(
        keys,
        AuditEvent.Kind.CHECKPOINT,
        by=Actor("amesh", "system"),
        device_id=checkpoint.device_id,
        data=checkpoint.as_json(),
        at=now,
    )
    end = sealed.append(keys, [event], found[0])
    sealed.write_end(keys, end)
    write_place(sealed, keys, Place.CHECKPOINT, end)
    return checkpoint


def _newest_event(sealed: SealedList) -> AuditEvent | None:
    """Return the event of the newest checkpoint. The row that names it is under a MAC, so that forged events change nothing."""
    place = read_place(sealed, Place.CHECKPOINT)
    if place is None or not place[1]:
        return None
    events = each_row(_events(sealed).filter(seq=place[0].seq, link=place[0].link))
    return next((event for _pk, event in events if event is not None and sealed.is_genuine_event(event)), None)


def _events(sealed: SealedList) -> QuerySet[AuditEvent]:
    return AuditEvent.objects.using(sealed.using).filter(kind=AuditEvent.Kind.CHECKPOINT)

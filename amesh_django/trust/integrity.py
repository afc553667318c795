"""What differs between the devices in the database and what was sealed; and sealing anew, once a person has looked."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db import connections
from django.db.models import Max

from amesh_django.models import AllowListChange, AllowListSeal
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, InvalidInput
from authmesh.protocol.keys import decode_public_key, device_id
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from . import rollback, snapshot
from .change import BATCH, first_seal, lock_seal, now, retried, write_seal
from .keys import SealKeys, seal_keys
from .sealing import (
    COLUMNS,
    SealRow,
    hash_row,
    is_active_controller,
    is_well_formed,
    iterate_rows,
    journal_line_is_genuine,
    journal_mac,
    journal_row,
    make_seal,
    seal_is_genuine,
)


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """The result of a full verification.

    Attributes:
        ok: True if the rows match their seal.
        devices: how many rows there are, revoked ones included.
        problems: sentences for people, one for each difference; empty if *ok*.
        reason: as in the log (``rows_mismatch``, …); empty if *ok*.
        is_old: True if the list is an older one that was put back, or that is not known any more.
        trusted: whom the list trusts, in words; only if *is_old*, for that is the question then.
    """

    ok: bool
    devices: int
    problems: list[str] = field(default_factory=list)
    reason: str = ""
    is_old: bool = False
    trusted: list[str] = field(default_factory=list)


#: How many trusted devices are named.
_NAMED = 100


def report(using: str) -> IntegrityReport:
    """Verify every row and compare with the journal where they do not match.

    Raises:
        AllowListBusy: the list could not be locked, for others change it all the time.
        KeyStoreError, DirectoryError: the keys of the seal can't be had.
    """
    keys = seal_keys()
    return retried(using, lambda: _report(using, keys))


def _report(using: str, keys: SealKeys) -> IntegrityReport:
    row = lock_seal(using)
    try:
        rows = list(iterate_rows(using))
        if row is None and rows:  # there was nothing to lock: the first devices may have come since
            row = lock_seal(using)
            rows = list(iterate_rows(using))
    except (TypeError, ValueError) as error:
        return IntegrityReport(False, 0, [str(_unreadable(error))], "rows_mismatch")
    reason, problems = "", []
    try:
        if row is not None or rows:
            snapshot.verify_rows(using, row)
    except AllowListIntegrityFailure as error:
        reason, problems = error.reason, list(_differences(using, keys, row, rows, error.reason))
    age = _age(using, keys, row)
    if age is not None:
        problems.insert(0, str(age).partition(" Nobody is let in. ")[0])
    trusted = _trusted(rows) if age is not None else []
    return IntegrityReport(
        not problems and not reason,
        len(rows),
        problems,
        reason or (age.reason if age is not None else ""),
        age is not None,
        trusted,
    )


def _age(using: str, keys: SealKeys, row: SealRow | None) -> AllowListIntegrityFailure | None:
    """What speaks for a list that was put back; nothing can be said of one that has a forged seal."""
    if row is not None and not seal_is_genuine(keys, row):
        return None
    try:
        rollback.check(using, keys, row)
    except AllowListIntegrityFailure as error:
        return error
    return None


def _trusted(rows: list[tuple[Any, ...]]) -> list[str]:
    found = [dict(zip(COLUMNS, values, strict=True)) for values in rows]
    names = [
        f"{row['device_id']} ({row['friendly_name']}) as {row['role']}" for row in found if row["revoked_at"] is None
    ]
    return [*names[:_NAMED], *([f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else [])]


def _sealed_rows(using: str, keys: SealKeys, revision: int | None) -> tuple[dict[str, dict[str, str]], int]:
    """The newest genuine journal line of each device up to *revision*; and how many lines were not genuine."""
    newest: dict[str, dict[str, str]] = {}
    forged = 0
    lines = AllowListChange.objects.using(using).order_by("id")
    if revision is not None:
        lines = lines.filter(revision__lte=revision)
    for line in lines.iterator(chunk_size=5000):
        if not journal_line_is_genuine(keys, line):
            forged += 1
        elif line.action == AllowListChange.Action.PURGED:
            newest.pop(line.device_id, None)
        else:
            newest[line.device_id] = json.loads(line.row)
    return newest, forged


def _differences(
    using: str, keys: SealKeys, seal: SealRow | None, rows: list[tuple[Any, ...]], reason: str
) -> Iterator[str]:
    if reason == "seal_missing":
        yield "The seal itself is missing."
    elif reason == "seal_mismatch":
        yield (
            "The seal was not made with this server's key: it was forged, or another identity (AMESH['DIR']) or another "
            "AMESH['SEAL_KEY_FILE'] was in use when the list was last changed."
        )
        if AllowListChange.objects.using(using).exists() and not _sealed_rows(using, keys, None)[0]:
            return  # nor was the journal: to name each row and line would only hide that
    genuine = seal.revision if seal is not None and reason == "rows_mismatch" else None
    sealed, forged = _sealed_rows(using, keys, genuine)
    for values in rows:
        found = json.loads(journal_row(values))
        name = found["device_id"]
        expected = sealed.pop(name, None)
        if expected is None:
            yield f"{name}: added past the app (role {found['role']!r}, name {found['friendly_name']!r})."
            continue
        for column in COLUMNS:
            if found[column] != expected.get(column):
                yield f"{name}: {column} is {found[column]!r}, sealed was {expected.get(column)!r}."
    for name, expected in sealed.items():
        yield f"{name}: removed past the app (role {expected['role']!r}, name {expected['friendly_name']!r})."
    if forged:
        yield f"The journal has {forged} line{'s' if forged > 1 else ''} that amesh did not write."


def _check_row(values: tuple[Any, ...]) -> None:
    try:
        if device_id(decode_public_key(values[2])) != values[1]:
            raise InvalidInput("the device id is not that of the public key")
        if not isinstance(values[COLUMNS.index("revision")], int):
            raise InvalidInput("the revision is no number")
    except (TypeError, ValueError) as error:
        raise AllowListError(
            f"The row of {values[1]!r} is no device ({error}) and can't be sealed. Delete it with SQL, then reseal."
        ) from None


def _unreadable(error: Exception) -> AllowListError:
    return AllowListError(
        f"A row of the devices holds what its column can't hold ({type(error).__name__}). Find it with SQL and delete it."
    )


def reseal(using: str, by: str) -> None:
    """Seal the rows as they stand.

    The revision jumps to the time in milliseconds, so that it is above any that another process, another host or a backup has
    seen: none of them has more changes in it than there were milliseconds since 1970. Where a clock was wrong it is at least above
    what this host has seen, and the command has to be run on the host that still refuses.

    Raises:
        AllowListError: a row is no device; nothing was changed.
        AllowListBusy: others change the list all the time; nothing was changed.
    """
    keys = seal_keys()
    retried(using, lambda: _reseal(using, keys, by))


def _reseal(using: str, keys: SealKeys, by: str) -> None:
    before = lock_seal(using)
    if before is not None and not is_well_formed(before):
        AllowListSeal.objects.using(using).filter(pk=1).delete()
        before = None
    before = before or first_seal(using)
    sealed, _ = _sealed_rows(using, keys, None)
    highest = AllowListChange.objects.using(using).aggregate(found=Max("revision"))["found"] or 0
    seen = max(highest, before.revision, rollback.newest_revision(using, keys))
    revision = max(seen + 1, time.time_ns() // 1_000_000)
    total = count = controllers = 0
    lines = []
    try:
        rows = list(iterate_rows(using))
    except (TypeError, ValueError) as error:
        raise _unreadable(error) from None
    for values in rows:
        _check_row(values)
        total += hash_row(keys, values)
        count += 1
        controllers += is_active_controller(values)
        row = journal_row(values)
        if json.loads(row) != sealed.pop(values[1], None):
            lines.append((values[1], AllowListChange.Action.RESEALED, row))
    for name, gone in sealed.items():
        lines.append((name, AllowListChange.Action.PURGED, json.dumps(gone)))
    moment = now()
    journal = [
        AllowListChange(revision=revision, device_id=name, action=action, at=moment, by=by[:150], row=row)
        for name, action, row in lines
    ]
    for line in journal:
        line.mac = journal_mac(keys, line)
    AllowListChange.objects.using(using).bulk_create(journal, batch_size=BATCH)
    after = make_seal(
        keys,
        revision=revision,
        total=total % MODULUS,
        count=count,
        controllers=controllers,
        r=secrets.token_bytes(MASK_BYTES),
    )
    write_seal(using, before, after)
    snapshot.mark_dirty(connections[using])
    rollback.accept_on_commit(using, keys, after)

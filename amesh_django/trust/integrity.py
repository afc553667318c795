"""Integrity: what differs between the devices in the database and what was sealed, and resealing once a person has looked."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from amesh_django.models import AllowListSeal, AuditEvent, Device
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, InvalidInput, Run
from authmesh.protocol.keys import decode_public_key, device_id
from authmesh.protocol.multiset import MASK_BYTES, MODULUS, encode_row

from .chain import new_event, texts_of
from .damage import UNREADABLE, damaged_rows, has_types
from .groups import Groups, groups_digest
from .hubs import HubRows
from .rekeying import RekeyableList
from .revoking import Sealed
from .sealing import COLUMNS, Epoch, LogEnd, SealedRows, SealRow, is_counted_controller, is_revoked, row_texts
from .verified import known_device

Row = tuple[Any, ...]

#: Rows that one event of a reseal stores. If more of them differ from the log, the reseal has several events.
MAX_RESEALED = 1000


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """The result of a full verification.

    Attributes:
        ok: True if the rows match their seal and the list is not an old one.
        devices: number of rows, including revoked devices.
        problems: sentences for people, one for each difference; empty if *ok*.
        reason: as in the log (``rows_mismatch``, …); empty if *ok*.
        is_old: True if the list is an older one that was restored, or is not known to be the newest.
        trusted: the devices that the list trusts and that resealing would trust, in words, with what comes with each.
        groups: the groups that resealing would accept, in words, with their scopes.
        digest: stands for exactly these rows; empty if they cannot be read. ``reseal`` compares it.
        hubs: what is wrong with the rows that hold what hubs have said, in words. No request is rejected for that.
    """

    ok: bool
    devices: int
    problems: list[str] = field(default_factory=list)
    reason: str = ""
    is_old: bool = False
    trusted: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    digest: str = ""
    hubs: list[str] = field(default_factory=list)


class SealedList(RekeyableList):
    """The sealed allow list in one database. It adds the report about differences, and resealing, to the layers below it.

    :func:`amesh_django.trust.current_list` returns the one of this process. See :mod:`amesh_django.trust` for how it works.
    """

    def report(self) -> IntegrityReport:
        """Verify every row and, if they do not match their seal, compare them with the audit log.

        Raises:
            AllowListBusy: the list could not be locked, because other changes were committed all the time.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
        """
        self.unlock()
        return self._retried(self._report)

    def reseal(self, by: str, digest: str | None = None) -> None:
        """Seal the rows as they are.

        The revision jumps to the time in milliseconds since 1970. That is above any revision that another process, another host
        or a backup has seen, because none of them has seen as many changes. If a clock was wrong, the revision is at least above
        the one that this host has seen, and the list must be resealed on the host that still rejects it.

        Args:
            by: the person who decided this, for the audit log.
            digest: of the report that the person has read. None seals whatever the rows are now.

        Raises:
            AllowListError: a row is not a device, or the rows are not those of *digest* any more; nothing was changed.
            AllowListBusy: other changes were committed all the time; nothing was changed.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used; nothing was changed.
        """
        self.unlock()
        self._retried(lambda: self._reseal(by, digest))

    # --- the report ---

    def _report(self) -> IntegrityReport:
        seal = self._lock_seal()
        try:
            return self._compared(seal)
        except UNREADABLE:
            damaged = list(damaged_rows(self.using))
            if not damaged:
                raise
            count = Device.objects.using(self.using).count()
            return IntegrityReport(False, count, [f"{row}. {_fix()}" for row in damaged], "rows_mismatch")

    def _compared(self, seal: SealRow | None) -> IntegrityReport:
        rows = list(self.rows())
        if seal is None and rows:  # there was nothing to lock: the first devices may have come since
            seal = self._lock_seal()
            rows = list(self.rows())
        groups = self.groups()
        reason, problems = "", []
        try:
            if seal is not None or rows or groups:
                self.verify_rows(seal)
        except AllowListIntegrityFailure as error:
            reason, problems = error.reason, list(self._differences(seal, rows, error.reason))
        age = self._age(seal)
        if age is not None:
            problems.insert(0, age.message)
            reason = reason or age.reason
        return IntegrityReport(
            ok=not problems and not reason,
            devices=len(rows),
            problems=problems,
            reason=reason,
            is_old=age is not None,
            trusted=_trusted(rows),
            groups=_groups(groups),
            digest=_digest(rows, groups),
            hubs=self.hub_problems(),
        )

    def hub_problems(self) -> list[str]:
        """Return what is wrong with the rows that hold what hubs have said, in words."""
        found = HubRows(self.using, self.all_keys, self.keys).problems()
        return [f"{name}: {text}" for name in sorted(found) for text in found[name]]

    def _age(self, seal: SealRow | None) -> AllowListIntegrityFailure | None:
        """Return why the list is not known to be the newest. A forged seal says nothing about that."""
        if seal is not None and not self.is_genuine(seal):
            return None
        try:
            self.check_age(seal)
        except AllowListIntegrityFailure as error:
            return error
        return None

    def _differences(self, seal: SealRow | None, rows: list[Row], reason: str) -> Iterator[str]:
        if reason == "seal_missing":
            yield _("The seal itself is missing.")
        elif reason == "seal_mismatch":
            yield _(
                "The seal was not made with this server's key: the list was last changed with another AMESH['SEAL_KEY_FILE'] or another "
                "identity (AMESH['DIR']), perhaps by another host, or the seal was forged."
            )
            if self.changes().exists() and not self.sealed_rows(None).rows:
                # Nor was the log written with this key. To name each row and event would only hide that.
                yield _(
                    "The audit log was not written with it, either, so it is not known which rows were changed: check each device."
                )
                return
        sealed = self.sealed_rows(seal, is_newest=reason != "rows_mismatch")
        is_named = False
        for values in rows:
            found = texts_of(values)
            expected = sealed.rows.pop(found["device_id"], None)
            if expected is None and not sealed.is_complete:
                continue
            is_named = is_named or found != expected
            if expected is None:
                yield _("%(device)s: added outside Django (role %(role)s, name %(name)s).") % _shown(found)
                continue
            for column in COLUMNS:
                if found.get(column, "") != expected.get(column, ""):
                    yield _("%(device)s (%(name)s): %(column)s is %(found)r, but was sealed as %(sealed)r.") % {
                        "device": found["device_id"],
                        "name": clean(expected["friendly_name"]),
                        "column": column,
                        "found": found.get(column, ""),
                        "sealed": expected.get(column, ""),
                    }
        if seal is not None and reason == "rows_mismatch" and groups_digest(self.groups()) != seal.groups:
            is_named = True
            yield _("The groups of devices are not those that were sealed. Check the scopes of each group.")
        if not is_named and not sealed.rows:
            yield _nothing_named(sealed)
        for expected in sealed.rows.values():
            yield _("%(device)s: removed outside Django (role %(role)s, name %(name)s).") % _shown(expected)
        if sealed.forged:
            yield ngettext(
                "The audit log has %(count)d event that amesh did not write.",
                "The audit log has %(count)d events that amesh did not write.",
                sealed.forged,
            ) % {"count": sealed.forged}

    # --- resealing ---

    def _reseal(self, by: str, digest: str | None) -> None:
        before = self._lock_seal()
        lost = self.lost_seal(before)
        if before is not None and not before.is_well_formed:
            AllowListSeal.objects.using(self.using).filter(pk=1).delete()
            before = None
        genuine = before if before is not None and self.is_genuine(before) else None
        keyed = self.under(genuine)
        before = before or self._first_seal()
        revision = self._revision_above(genuine)
        try:
            rows, groups = list(self.rows()), self.groups()
        except UNREADABLE as error:
            raise _unreadable([*damaged_rows(self.using)] or [type(error).__name__]) from None
        known_groups = _checked(groups)
        if digest is not None and not hmac.compare_digest(digest.encode(), _digest(rows, groups).encode()):
            raise AllowListError(
                _("The devices were changed after they were shown. Nothing was sealed."),
                hint=(_("To look at them as they are now, run "), Run("integrity"), "."),
            )
        HubRows(self.using, self.all_keys, keyed.keys).renew(accept=True)
        total = count = controllers = 0
        for values in rows:
            _check_row(keyed, values, known_groups)
            total += keyed.hash_row(values)
            count += 1
            controllers += is_counted_controller(values)
        first, *more = _resealed(rows, self.sealed_rows(genuine))
        text = f"the seal of the list was {lost['seal']}" if lost else ""
        about = {"devices": count, "digest": _digest(rows, groups), **lost}
        parts = [(text, {**about, **first}), *(("more of its devices", part) for part in more)]
        events = [
            new_event(keyed.keys, AuditEvent.Kind.RESEAL, revision=revision, by=by, text=text, data=data)
            for text, data in parts
        ]
        log_end = self.extend(keyed.keys, events, genuine.log_end if genuine is not None else LogEnd())
        after = keyed.make_seal(
            self._epoch_after(genuine),
            log_end,
            revision=revision,
            total=total % MODULUS,
            count=count,
            controllers=controllers,
            groups=groups_digest(groups),
            r=secrets.token_bytes(MASK_BYTES),
        )
        self.replace_seal(before, after)
        self.accept_on_commit(after)

    def _epoch_after(self, seal: SealRow | None) -> Epoch:
        """Return a new epoch. The list continues the one that this host knows, and the one that a person accepts.

        So hosts that know either of them take the new list for a later state of theirs, and need not reseal it again.
        """
        known = self.newest()
        names = [
            text
            for mark in (known, seal.mark if seal is not None else None)
            if mark
            for text in (mark.epoch, mark.continues)
        ]
        return Epoch.new(*names)

    def _revision_above(self, seal: SealRow | None) -> int:
        """Return a revision above all that were seen."""
        known = self.newest()
        seen = (
            self._highest_revision(),
            seal.revision if seal is not None else 0,
            known.revision if known is not None else 0,
        )
        return max(1 + max(seen), time.time_ns() // 1_000_000)


def _nothing_named(sealed: Sealed) -> str:
    if not sealed.is_complete:
        return _(
            "The audit log does not have all rows as they were sealed, so not every difference can be named: the list is older than the "
            "log. Check each device."
        )
    return _(
        "No difference can be named: each row is as its newest event in the audit log has it. Events may have been removed, so check "
        "each device."
    )


def _resealed(rows: list[Row], sealed: Sealed) -> list[dict[str, Any]]:
    """Return what the events of a reseal store: the rows that differ from the log, and what was removed. The log has all rows then."""
    known = dict(sealed.rows)
    found = [texts_of(values) for values in rows]
    changed = [row for row in found if row != known.pop(row["device_id"], None)]
    starts = range(0, len(changed) or 1, MAX_RESEALED)
    parts = [{row["device_id"]: row for row in changed[start : start + MAX_RESEALED]} for start in starts]
    return [
        {"rows": part, "removed": [] if number else [*known], "complete": number == len(parts) - 1}
        for number, part in enumerate(parts)
    ]


def _shown(row: dict[str, str]) -> dict[str, str]:
    return {"device": row["device_id"], "role": repr(row["role"]), "name": repr(row["friendly_name"])}


def _digest(rows: list[Row], groups: list[tuple[str, str]]) -> str:
    """Return a SHA-256, in hex, over all columns of all rows and over the groups, in whatever order they were read."""
    each = sorted(hashlib.sha256(encode_row(*row_texts(values))).digest() for values in rows)
    return hashlib.sha256(b"".join([groups_digest(groups).encode(), *each])).hexdigest()


def _trusted(rows: list[Row]) -> list[str]:
    found = [dict(zip(COLUMNS, values, strict=True)) for values in rows if not is_revoked(values)]
    trusted = [row for row in found if row["denied_at"] is None]
    trusted.sort(key=lambda row: str(row["device_id"]))
    return [_trusted_as(row) for row in trusted]


def _trusted_as(row: dict[str, Any]) -> str:
    text = _("%(device)s (%(name)s) as %(role)s") % {
        "device": row["device_id"],
        "name": row["friendly_name"],
        "role": row["role"],
    }
    if row["user_id"] is not None:
        text += _(", mapped to the user with the ID %(user)s") % {"user": row["user_id"]}
    if row["permissions_json"] != "{}":
        text += _(", with the permissions %(permissions)s") % {"permissions": row["permissions_json"]}
    if row["groups_json"]:
        text += _(", in the groups %(groups)s") % {"groups": row["groups_json"]}
    if row["suspended_at"] is not None:
        text += _(", suspended")
    if row["expires_at"] is not None:
        text += _(", until %(moment)s") % {"moment": row["expires_at"]}
    if row["pending_since"] is not None:
        text += _(", waiting for approval")
    if row["revoked_at"] is not None:  # a key that was replaced
        text += _(", until %(moment)s") % {"moment": row["revoked_at"]}
    return text


def _groups(groups: list[tuple[str, str]]) -> list[str]:
    return [
        _("%(group)s with the scopes %(scopes)s") % {"group": name, "scopes": scopes} for name, scopes in sorted(groups)
    ]


def _checked(groups: list[tuple[str, str]]) -> Groups:
    """Return the groups. Raise AllowListError if a row is not a group."""
    try:
        return Groups(groups)
    except UNREADABLE:
        raise AllowListError(
            _("The scopes of a group of devices are not a JSON list, so it cannot be sealed; nothing was changed."),
            hint=_("Delete the row with SQL, then reseal."),
        ) from None


def _check_row(keyed: SealedRows, values: Row, groups: Groups) -> None:
    """Raise AllowListError if a row is not a device."""
    try:
        if device_id(decode_public_key(values[2])) != values[1]:
            raise InvalidInput(_("the device ID does not belong to the public key"))
        if not isinstance(values[COLUMNS.index("revision")], int):
            raise InvalidInput(_("the revision is not a number"))
        if not has_types(Device, dict(zip(COLUMNS, values, strict=True))):
            raise InvalidInput(_("a value does not fit its column"))
        known_device(keyed, values, groups)  # otherwise no process could read the list that was sealed
    except UNREADABLE as error:
        raise AllowListError(
            _("The row of %(device)r is not a device (%(why)s) and cannot be sealed; nothing was changed.")
            % {"device": values[1], "why": error},
            hint=_("Delete the row with SQL, then reseal."),
        ) from None


def _fix() -> str:
    return _("Correct the value or delete the row with SQL.")


def _unreadable(damaged: list[str]) -> AllowListError:
    return AllowListError(
        _("%(rows)s. Nothing was sealed.") % {"rows": "; ".join(damaged)},
        hint=(_fix(), " ", _("Then run "), Run("integrity"), "."),
    )

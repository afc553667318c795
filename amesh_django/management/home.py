"""The home of a server: its device directory, and the allow list in the database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.conf import amesh_settings
from amesh_django.decisions.hubs import described, revokes, suspends
from amesh_django.enrollment import tokens
from amesh_django.models import Device, DeviceActivity, HubEntry
from amesh_django.server import server_enrolment
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, SUSPENDED
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.hubs import HubRows, key_name
from amesh_django.trust.owner import open_device, server_directory
from amesh_django.trust.sealing import now
from authmesh.commands.home import Home, Listed
from authmesh.commands.words import named, when
from authmesh.device import LocalDevice
from authmesh.device.grants import Grant
from authmesh.pairing.bootstrap.enrolment import Enrolment
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AllowListError, AmeshError, Hint, Run
from authmesh.protocol.keys import encode_public_key

from .errors import Misconfigured

#: States that a device keeps when it is trusted again, in words.
_STAYS: dict[str, str] = {SUSPENDED: "is suspended", PENDING: "waits for approval", EXPIRED: "has expired"}


class ServerHome(Home):
    """A home whose words are those of a Django project."""

    directory_setting = "AMESH['DIR']"
    limit_setting = "AMESH['MAX_CONTROLLERS'], or maxControllers in identity.json"
    is_server = True


class DatabaseHome(ServerHome):
    """The device directory of this server, and the allow list in its database.

    Args:
        actor: the person who makes changes.
        approved: True if that person has approved the devices that are added.

    Raises:
        ImproperlyConfigured: ``AMESH`` is not valid.
    """

    def __init__(self, actor: str, *, approved: bool = False) -> None:
        super().__init__(server_directory(), actor)
        self.approved = approved

    def device(self) -> LocalDevice:
        return open_device()

    def allow_list(self) -> DatabaseAllowList:
        return DatabaseAllowList(by=self.actor, approved=self.approved)

    def devices(self) -> list[Listed]:
        return [listed(row) for row in self.allow_list().devices()]

    def list_after_replacement(self) -> Hint:
        if None not in amesh_settings().seal_secrets:
            return "The allow list stays valid, because AMESH['SEAL_KEY_FILE'] seals it. Its devices keep their access."
        return (
            "The allow list stays in the database, but all requests are rejected until you accept the list with ",
            Run("integrity", "--reseal"),
            ". To avoid that, seal it with a file first: set AMESH['SEAL_KEY_FILES'], and run ",
            Run("integrity", "--rekey"),
            ".",
        )

    def remarks(self, public_key: bytes) -> str | None:
        words = [described(word, when(_time(word.at))) for word in self._words(public_key)]
        if words:
            words.append("Trusting it here counts in spite of that.")
        found = self._state_remark(public_key)
        return " ".join([*([found] if found is not None else []), *words]) or None

    def hub_words(self, public_key: bytes) -> list[dict[str, Any]]:
        return [
            {
                "hub": word.hub,
                "event": "revoke" if revokes(word) else "suspend",
                "at": _time(word.at),
                "reason": word.reason or None,
            }
            for word in self._words(public_key)
        ]

    def _words(self, public_key: bytes) -> list[HubEntry]:
        if not HubEntry.objects.using(database()).exists():  # not Hub: the words count without its row, too
            return []
        sealed, moment = current_list(), now()
        rows = HubRows(sealed.using, sealed.all_keys, sealed.keys)
        return [word for word in rows.about([key_name(public_key)]) if revokes(word) or suspends(word, moment)]

    def _state_remark(self, public_key: bytes) -> str | None:
        rows = Device.objects.using(database()).select_related("user")
        row = rows.filter(public_key=encode_public_key(public_key)).first()
        if row is None:
            return None
        user = _named_user(row)
        if row.denied_at is not None:
            return f"It was denied {_decided(row)}, so it cannot be trusted."
        if row.revoked_at is None:
            if row.state in _STAYS:
                return f"It {_STAYS[row.state]} ({_decided(row)}), and trusting it does not change that."
            return f"In REST framework views, it acts as {user}, as before." if user else None
        by = f" by {clean(row.revoked_by)}" if row.revoked_by else ""
        why = f": {clean(row.revoke_reason)}" if row.revoke_reason else ""
        return f"It was revoked {when(_time(row.revoked_at))}{by}{why}. Trusting it undoes the revocation.{_lost(user)}"

    def grant(self, device_ids: Sequence[str], given: Grant, taken: Grant) -> tuple[list[DeviceEntry], frozenset[str]]:
        decided = self.allow_list().grant(device_ids, given, taken=taken)
        return [row.to_entry() for row in decided.devices], decided.changed

    def rename(self, device_id: str, name: str) -> DeviceEntry:
        return self.allow_list().rename(device_id, name).to_entry()

    def open_enrollment_tokens(self, now: float) -> int:
        return tokens.open_count(now)

    def after_trusting(self, entry: DeviceEntry) -> Hint | None:
        row = Device.objects.using(database()).filter(device_id=entry.device_id).first()
        if row is None or row.state == ACTIVE:
            return None
        if row.state == PENDING:
            return (
                f"{named(entry)} waits for approval: its requests are rejected until a person approves it with ",
                Run("approve", entry.device_id),
                ".",
            )
        return f"{named(entry)} is {row.state}: its requests are rejected."

    def rotation_problem(self) -> AmeshError | None:
        if None not in amesh_settings().seal_secrets:
            return None
        return AllowListError(
            "The key of this server also seals its allow list, so it cannot be replaced alone. Nothing was changed.",
            hint=(
                "Seal the list with a file first: set AMESH['SEAL_KEY_FILES'] to the file and None, run ",
                Run("integrity", "--rekey"),
                ", and remove None from the setting.",
            ),
        )

    def enrolment(self, **options: Any) -> Enrolment:
        return server_enrolment(**options)


def listed(row: Device) -> Listed:
    """Return a device with all that this server knows about it."""
    known = current_list().snapshot().known(row.pk)
    activity: DeviceActivity | None = getattr(row, "activity", None)  # a device without a row of its own was never seen
    return Listed(
        row.to_entry(),
        last_seen=_time(activity.last_seen_at) if activity is not None else None,
        user=row.user.get_username() if row.user is not None else "",
        revoked_at=_time(row.revoked_at) if row.revoked_at is not None else None,
        revoked_by=row.revoked_by,
        revoke_reason=row.revoke_reason,
        state=row.state,
        decided=_decided(row),
        is_undecided=row.pending_since is not None or row.denied_at is not None,
        suspended_until=_time(row.suspended_until) if row.suspended_until is not None else None,
        expires_at=_time(row.expires_at) if row.expires_at is not None else None,
        scopes=tuple(sorted(known.scopes)) if known is not None else (),
        groups=tuple(row.groups),
        note=row.note,
        rotation_requested_at=_time(row.rotation_requested_at)
        if known is not None and known.rotation_requested and row.rotation_requested_at is not None
        else None,
    )


def _decided(row: Device) -> str:
    """Return when, by whom, why, and until when the state of a device was decided, in words."""
    state = row.state
    if state == PENDING and row.pending_since is not None:
        return f"since {when(_time(row.pending_since))}"
    if state == EXPIRED and row.expires_at is not None:
        return when(_time(row.expires_at))
    moment, by, why = {
        REVOKED: (row.revoked_at, row.revoked_by, row.revoke_reason),
        DENIED: (row.denied_at, row.denied_by, row.deny_reason),
        SUSPENDED: (row.suspended_at, row.suspended_by, row.suspend_reason),
    }.get(state, (None, "", ""))
    if moment is None:
        return ""
    until = f" until {when(_time(row.suspended_until))}" if state == SUSPENDED and row.suspended_until else ""
    also = ""
    if state == SUSPENDED and row.kept_until is not None:
        also = f"; also by {clean(row.kept_by)} until {when(_time(row.kept_until))}"
    whom = f" by {clean(by)}" if by else ""
    return f"{when(_time(moment))}{whom}{until}{f': {clean(why)}' if why else ''}{also}"


def as_model_time(moment: dt.datetime) -> dt.datetime:
    """Return a time as a column holds it: without a time zone if USE_TZ is off."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def _time(moment: dt.datetime) -> str:
    return format_time(moment.astimezone(dt.UTC))  # with USE_TZ off, it has no time zone


def _named_user(row: Device) -> str:
    """Return the user whom a device is mapped to, in words; empty if there is none."""
    if row.user is None:
        return ""
    rank = "the superuser" if getattr(row.user, "is_superuser", False) else "the user"
    return f"{rank} {clean(row.user.get_username())}"


def _lost(user: str) -> str:
    if not user:
        return ""
    return f" It acted as {user}, and no longer will: to map it again, use the admin."


class UnconfiguredHome(ServerHome):
    """A device directory whose project has settings that are not valid.

    Args:
        directory: the device directory.
        why: the problem of the settings.
    """

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(directory)
        self._why = why

    def device(self) -> LocalDevice:
        raise Misconfigured(self._why)

    def allow_list(self) -> DatabaseAllowList:
        raise Misconfigured(self._why)

    def rename(self, device_id: str, name: str) -> DeviceEntry:
        raise Misconfigured(self._why)

    def list_after_replacement(self) -> Hint:
        raise Misconfigured(self._why)

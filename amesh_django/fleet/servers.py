"""The servers of this hub: added, removed, paused; and how far each is behind."""

from __future__ import annotations

import datetime as dt
import hmac
import json
import logging
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.db import IntegrityError, transaction
from django.db.models import BigIntegerField, Case, F, OuterRef, Subquery, When
from django.utils import timezone
from django.utils.translation import gettext as _

from amesh_django.audit.recording import record
from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent, Server
from amesh_django.states import ACTIVE
from amesh_django.trust import current_list
from amesh_django.trust.chain import is_same
from amesh_django.trust.database import database
from amesh_django.trust.keys import SealKeys, all_seal_keys
from amesh_django.trust.sealing import actor, storable
from amesh_django.trust.verified import failure
from authmesh.protocol.allow_list import TARGET
from authmesh.protocol.enrollment import is_server_url
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError, InvalidInput, Run
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.multiset import encode_row

from . import bell

logger = logging.getLogger("amesh_django.fleet")

#: The group that stands for all devices.
ALL = "*"
#: Columns under the MAC, in the order in which they are hashed.
_COLUMNS = ("device_id", "url", "scope_of_events", "groups_json", "enabled")
_MAX_URL = 500


class ServerNotFound(AmeshError):
    """No server of this hub has this device ID."""

    code = "server_not_found"
    default_message = "This hub has no server with this device ID. Nothing was changed."
    default_hint = ("To see the servers, run ", Run("servers"), ".")


class Head(NamedTuple):
    """The newest state of the allow list.

    Attributes:
        epoch: its epoch; empty if it has none yet.
        revision: its revision, which is the serial of its newest events.
    """

    epoch: str
    revision: int


class Lag(NamedTuple):
    """How far a server is behind.

    Attributes:
        revisions: changes of the list that it has not acknowledged; those of the whole list if it knows another epoch.
        seconds: age of the oldest of them; 0 if there is none.
    """

    revisions: int
    seconds: float


def head() -> Head:
    """Return epoch and revision of the allow list.

    A list that does not match its seal has a head, too, because devices can be revoked in it. An older or forged one has none.

    Raises:
        AllowListIntegrityFailure: the seal is missing or forged, or the list is an older one or another one that was restored.
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed = current_list()
    try:
        row = sealed.snapshot().row
    except AllowListIntegrityFailure as error:
        if error.reason != "rows_mismatch":
            raise
        row = sealed.read_seal()
        if row is None or not sealed.is_genuine(row):
            raise failure("seal_mismatch") from None
        row, _is_mark = sealed.check_age(row)
    return Head(row.epoch, row.revision) if row is not None else Head("", 0)


def is_dirty(server: Server, head: tuple[str, int]) -> bool:
    """Return True if a server lacks changes.

    Args:
        server: its row.
        head: as :func:`head` returns it.
    """
    epoch, revision = head
    return bool(epoch) and (server.epoch != epoch or server.acked < revision)


def is_ahead(server: Server, head: tuple[str, int]) -> bool:
    """Return True if a server has acknowledged more than there is: an older list was restored here, and kept its epoch.

    What is changed now has serials that the server knows already, so it is told of nothing until the list is resealed.

    Args:
        server: its row.
        head: as :func:`head` returns it.
    """
    epoch, revision = head
    return bool(epoch) and server.epoch == epoch and server.acked > revision


def is_genuine(server: Server) -> bool:
    """Return True if amesh wrote the row. Takes constant time for each secret of the seal.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    return any(is_same(_mac(server, keys), server.mac) for keys in all_seal_keys())


def every() -> list[Server]:
    """Return all servers, also those whose rows were forged."""
    return list(Server.objects.using(database()))


def find(device_id: str) -> Server:
    """Return a server.

    Raises:
        ServerNotFound: there is none with this device ID.
    """
    for server in Server.objects.using(database()).filter(device_id=device_id):
        if server.device_id == device_id:  # a collation may ignore case
            return server
    raise ServerNotFound()


def public_key_of(device_id: str) -> bytes | None:
    """Return the public key of a server, 33 bytes, or None if the allow list does not have it as a target that is trusted.

    In a list that does not match its seal, this is what the audit log says.

    Raises:
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed = current_list()
    try:
        known = sealed.snapshot().by_key
    except AllowListIntegrityFailure:
        row = sealed.sealed_device(device_id)
        is_good = row is not None and row.role == TARGET and row.state == ACTIVE
        return decode_public_key(row.public_key) if row is not None and is_good else None
    now = timezone.now().timestamp()
    for key, device in [*known.items()]:
        if device.device_id == device_id:
            return key if device.role == TARGET and device.state(now) == ACTIVE else None
    return None


def trusted(device_ids: Iterable[str]) -> set[str]:
    """Return those device IDs that the allow list has as targets that are trusted, as :func:`public_key_of` says it.

    Raises:
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    wanted = set(device_ids)
    try:
        known = [*current_list().snapshot().by_key.values()]
    except AllowListIntegrityFailure:
        return {device_id for device_id in wanted if public_key_of(device_id) is not None}
    now = timezone.now().timestamp()
    return {
        device.device_id
        for device in known
        if device.device_id in wanted and device.role == TARGET and device.state(now) == ACTIVE
    }


def changed_after(revision: int, head: Head) -> dt.datetime | None:
    """Return when the first change after a revision was made, or None if the audit log does not have it.

    Args:
        revision: revision of the allow list.
        head: as :func:`head` returns it.
    """
    changes = AuditEvent.objects.using(database()).filter(revision__gt=revision, revision__lte=head.revision)
    return changes.order_by("revision").values_list("at", flat=True).first()


def lag(server: Server) -> Lag:
    """Return how far a server is behind.

    Raises:
        AmeshError: as for :func:`head`.
    """
    return lags([server], head(), timezone.now())[0]


def lags(rows: Sequence[Server], head: Head, now: dt.datetime) -> list[Lag]:
    """Return how far each server is behind. Takes one query.

    Args:
        rows: the servers.
        head: as :func:`head` returns it.
        now: the time.
    """
    behind = {row.pk for row in rows if is_dirty(row, head)}
    oldest: dict[int, dt.datetime | None] = {}
    if behind:
        # One row for each server: a revision may hold many events.
        changes = AuditEvent.objects.filter(revision__gt=OuterRef("after"), revision__lte=head.revision)
        after = Case(When(epoch=head.epoch, then=F("acked")), default=0, output_field=BigIntegerField())
        found = Server.objects.using(database()).filter(pk__in=behind).order_by().annotate(after=after)
        first = Subquery(changes.order_by("revision").values("at")[:1])
        oldest = dict(found.annotate(oldest=first).values_list("pk", "oldest"))
    return [_lag(row, oldest.get(row.pk), head, now) if row.pk in behind else Lag(0, 0.0) for row in rows]


def _lag(row: Server, oldest: dt.datetime | None, head: Head, now: dt.datetime) -> Lag:
    since = max(oldest, row.added_at) if oldest is not None else row.added_at
    after = row.acked if row.epoch == head.epoch else 0
    return Lag(head.revision - after, max(0.0, (now - since).total_seconds()))


def add(
    device_id: str, url: str, *, scope_of_events: str = "revoke", groups: Iterable[str] = (), by: str = ""
) -> Server:
    """Carry changes of the allow list to a server from now on.

    Args:
        device_id: the server, which this hub trusts as a target.
        url: address of ``amesh_django.urls`` there, such as ``https://api.example/amesh/``.
        scope_of_events: ``revoke``, or ``enroll`` to tell it also which devices to trust.
        groups: with ``enroll``, the groups whose devices it is told to trust; ``*`` for all devices.
        by: who adds it, for the audit log.

    Raises:
        InvalidInput: the hub does not trust the device as a target, it is a server already, or an argument is not valid.
        AllowListIntegrityFailure: the allow list is rejected.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    names = sorted(set(groups))
    check(url, scope_of_events, names)
    if public_key_of(device_id) is None:
        raise InvalidInput(
            _("%(device)s is not a target that this hub trusts. Nothing was added.") % {"device": device_id},
            hint=(_("Pair the server first: run "), Run("invite", "CODE --url URL"), "."),
        )
    row = Server(
        device_id=device_id,
        url=url,
        scope_of_events=scope_of_events,
        groups_json=json.dumps(names),
        added_at=_now(),
        added_by=actor(by),
    )
    row.mac = _mac(row, _keys())
    try:
        with transaction.atomic(using=database()):
            row.save(using=database(), force_insert=True)
    except IntegrityError:
        raise InvalidInput(
            _("%(device)s is a server of this hub already. Nothing was changed.") % {"device": device_id},
            hint=(_("To change its address or groups, remove it first: run "), Run("servers", "remove DEVICE"), "."),
        ) from None
    _changed(row, "added", by)
    return row


def check(url: str, scope_of_events: str, groups: Iterable[str] = ()) -> None:
    """Check the arguments of :func:`add` before there is a device for them.

    Raises:
        InvalidInput: one of them is not valid.
        AllowListIntegrityFailure: the allow list is rejected.
    """
    _check_url(url)
    _check_scope(scope_of_events, sorted(set(groups)))


def remove(device_id: str, *, by: str = "") -> Server:
    """Carry no changes to a server any more, and forget what it has acknowledged. It stays in the allow list.

    Raises:
        ServerNotFound: there is none with this device ID.
    """
    row = find(device_id)
    Server.objects.using(database()).filter(pk=row.pk).delete()
    _changed(row, "removed", by)
    return row


def pause(device_id: str, *, by: str = "") -> Server:
    """Carry no changes to a server until :func:`resume`.

    Raises:
        ServerNotFound: there is none with this device ID.
        InvalidInput: its row was changed outside Django.
    """
    return _enable(device_id, False, by)


def resume(device_id: str, *, by: str = "") -> Server:
    """Carry changes to a server again: also those that were made meanwhile.

    Raises:
        ServerNotFound: there is none with this device ID.
        InvalidInput: its row was changed outside Django.
    """
    return _enable(device_id, True, by)


def retry(device_id: str, *, by: str = "") -> Server:
    """Try to reach a server now, without waiting for the next attempt.

    Raises:
        ServerNotFound: there is none with this device ID.
    """
    row = find(device_id)
    row.attempts, row.next_attempt_at = 0, None
    row.save(using=database(), update_fields=["attempts", "next_attempt_at"])
    bell.ring_on_commit(database())
    return row


def renew(server: Server) -> None:
    """Give a genuine row the MAC under the secret that the seal has now, so that the old secret can be removed after a rekey."""
    mac = _mac(server, _keys())
    if not is_same(mac, server.mac):
        Server.objects.using(database()).filter(pk=server.pk, mac=server.mac).update(mac=mac)


def renew_all() -> None:
    """Give each genuine row the MAC under the secret that the seal has now. Call it after a rekey."""
    for server in every():
        if is_genuine(server):
            renew(server)


def _enable(device_id: str, enabled: bool, by: str) -> Server:
    row = find(device_id)
    if not is_genuine(row):
        raise InvalidInput(
            _("The row of %(device)s was changed outside Django. Nothing was changed.") % {"device": device_id},
            hint=(_("Find out who changed it. Then remove the server, and add it again: run "), Run("servers"), "."),
        )
    if row.enabled != enabled:
        row.enabled = enabled
        row.attempts, row.next_attempt_at = 0, None
        row.mac = _mac(row, _keys())
        row.save(using=database(), update_fields=["enabled", "mac", "attempts", "next_attempt_at"])
        _changed(row, "resumed" if enabled else "paused", by)
    return row


def _changed(row: Server, what: str, by: str) -> None:
    record(
        EventKind.SERVER,
        by=by,
        device_id=row.device_id,
        subject=row.url,
        data={"change": what, "tells": row.scope_of_events, "groups": row.groups},
    )
    logger.info("The server %s was %s by %s.", row.device_id, what, actor(by) or "unknown")
    bell.ring_on_commit(database())


def _keys() -> SealKeys:
    return current_list().log_keys()


def _mac(row: Server, keys: SealKeys) -> str:
    texts = [str(getattr(row, name)) for name in _COLUMNS]
    return hmac.digest(keys.feed, encode_row("amesh-fleet-server-v1", keys.owner, *texts), "sha256").hex()


def _check_url(url: str) -> None:
    if not is_server_url(url) or len(url) > _MAX_URL:
        raise InvalidInput(
            _("The address is not valid. Nothing was added."),
            hint=_(
                "It is that of amesh_django.urls on the server, and ends with /, such as https://api.example/amesh/."
            ),
        )
    if not (url.startswith("https://") or is_loopback(url) or django_settings.DEBUG):
        raise InvalidInput(
            _("The address begins with http://, so anyone in between could read the messages. Nothing was added."),
            hint=_(
                "Use https://. Only an address of this machine may begin with http://, and any address if DEBUG is on."
            ),
        )


def is_loopback(url: str) -> bool:
    """Return True if an address is one of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_scope(scope_of_events: str, groups: list[str]) -> None:
    if scope_of_events not in Server.ScopeOfEvents.values:
        raise InvalidInput(_("A server is told of revoke or enroll. Nothing was added."))
    if groups and scope_of_events != Server.ScopeOfEvents.ENROLL:
        raise InvalidInput(
            _("Groups are for servers that are told which devices to trust. Nothing was added."),
            hint=_("Add it with enroll, or without groups."),
        )
    known = {ALL, *current_list().snapshot().groups.scopes} if groups else set[str]()
    unknown = [storable(name) for name in groups if name not in known]
    if unknown:
        raise InvalidInput(
            _("There is no group %(name)s. Nothing was added.") % {"name": repr(unknown[0])},
            hint=(_("To see the groups, run "), Run("group", "list"), "."),
        )


def _now() -> dt.datetime:
    return timezone.now().replace(microsecond=0)

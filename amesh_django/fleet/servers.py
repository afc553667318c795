"""The servers of this hub: added, removed, paused. How far each is behind, :mod:`.heads` says."""

from __future__ import annotations

import datetime as dt
import hmac
import json
import logging
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from amesh_django.audit.recording import record
from amesh_django.kinds import EventKind
from amesh_django.models import Server
from amesh_django.trust import current_list
from amesh_django.trust.chain import is_same
from amesh_django.trust.database import database
from amesh_django.trust.keys import SealKeys, all_seal_keys
from amesh_django.trust.sealing import actor, storable
from authmesh.protocol.enrollment import is_server_url
from authmesh.protocol.errors import AmeshError, InvalidInput, Run
from authmesh.protocol.multiset import encode_row

from . import bell
from .heads import Head as Head
from .heads import Look as Look
from .heads import changed_after as changed_after
from .heads import head as head
from .heads import is_ahead as is_ahead
from .heads import is_dirty as is_dirty
from .heads import lag as lag
from .heads import lags as lags
from .heads import look as look
from .heads import public_key_of as public_key_of
from .heads import trusted as trusted

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

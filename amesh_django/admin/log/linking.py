"""What the events of a page lead to: the pages of devices, servers, and tokens, as far as they exist and the user may view them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from amesh_django.models import AuditEvent, Device, EnrollmentToken, Server
from amesh_django.trust import current_list
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import UNREADABLE, reading
from amesh_django.trust.database import database
from authmesh.protocol.errors import AmeshError

#: Kind of what an event leads to → its model, and the column by which events name it.
_MODELS: Final[dict[str, tuple[type[Model], str]]] = {
    "device": (Device, "device_id"),
    "server": (Server, "device_id"),
    "token": (EnrollmentToken, "jti"),
}


def keys_of(events: Iterable[AuditEvent]) -> dict[str, dict[str, Any]]:
    """Return what some events name and what is still there: kind → device ID or number → primary key. Takes three queries.

    Args:
        events: events that amesh wrote.
    """
    names: dict[str, set[str]] = {kind: set() for kind in _MODELS}
    for event in events:
        data = data_of(event)
        for kind, name in (
            ("device", event.device_id),
            ("device", data.get("hub")),
            ("server", event.device_id),
            ("token", data.get("jti")),
        ):
            if isinstance(name, str) and name:
                names[kind].add(name)
    return {kind: _keys(*_MODELS[kind], found) for kind, found in names.items()}


def addresses(
    request: HttpRequest, keys: dict[str, dict[str, Any]], page: Callable[..., str]
) -> dict[tuple[str, str], str]:
    """Return kind, and device ID or number → address of its page, for what the user may view.

    Args:
        request: the request.
        keys: from :func:`keys_of`.
        page: returns the address of a page, as :meth:`~amesh_django.admin.base.Pages.page` does.
    """
    found: dict[tuple[str, str], str] = {}
    for kind, (model, _column) in _MODELS.items():
        name = model._meta.model_name or ""
        if request.user.has_perm(f"{model._meta.app_label}.view_{name}"):
            found |= {(kind, known): page("change", key, model=name) for known, key in keys[kind].items()}
    return found


def names_of(keys: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return device ID → name, as the verified list has it; nothing if the list is rejected.

    Args:
        keys: from :func:`keys_of`.
    """
    try:
        snapshot = current_list().snapshot()
    except (AmeshError, ImproperlyConfigured):
        return {}
    known = {name: snapshot.known(key) for name, key in keys["device"].items()}
    return {
        name: one.friendly_name
        for name, one in known.items()
        if one is not None and one.device_id == name and one.friendly_name
    }


def _keys(model: type[Model], column: str, names: Iterable[str]) -> dict[str, Any]:
    rows: QuerySet[Any] = model._default_manager.using(database()).filter(**{f"{column}__in": sorted(names)}).order_by()
    with suppress(*UNREADABLE), reading():
        return dict(rows.values_list(column, "pk"))
    return {}

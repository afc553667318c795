"""Selecting devices for a page by the verified list: the columns of a row may have been changed outside Django.

Rows that differ are noted at the request. The page verifies them after it was put together, so that the banner says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from amesh_django.models import Device
from amesh_django.trust import current_list
from amesh_django.trust.verified import KnownDevice, Snapshot
from authmesh.protocol.errors import AmeshError

#: Maximum number of rows that differ in one query. If there are more, the list is rejected anyway, and the page says so.
_MAX_DIFFERING = 500
# Number of devices up to which a filter compares each of them. If there are more, it compares their number; what is shown is compared
# in any case.
_MAX_COMPARED = 10_000


def chosen(
    request: HttpRequest, queryset: QuerySet[Device], condition: Q, is_so: Callable[[KnownDevice], bool]
) -> QuerySet[Device]:
    """Return the devices for which a condition holds in the verified list.

    Args:
        request: the request of the page.
        queryset: the devices to choose from.
        condition: the condition for the columns of a row.
        is_so: the same condition for a verified device.
    """
    found = _snapshot()
    if found is None:
        return queryset.filter(condition)
    verified = {known.pk for known in [*found.by_key.values()] if is_so(known)}
    rows = Device.objects.using(queryset.db).filter(condition)
    if len(verified) > _MAX_COMPARED and rows.count() == len(verified):
        return queryset.filter(condition)
    stored = set(rows.values_list("pk", flat=True))
    wrong, missing = _noted(request, stored - verified), _noted(request, verified - stored)
    return (
        queryset.filter((condition & ~Q(pk__in=wrong)) | Q(pk__in=missing))
        if wrong or missing
        else queryset.filter(condition)
    )


def without_other_names(request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
    """Return the devices that a search has found without those whose names, key, or user are not the verified ones."""
    found = _snapshot()
    if found is None:
        return queryset
    columns = ("pk", "device_id", "friendly_name", "user_id")
    rows = queryset.order_by().values_list(*columns)
    wrong = _noted(request, (row[0] for row in rows if not _is_verified(found, row)))
    return queryset.exclude(pk__in=wrong) if wrong else queryset


def _is_verified(found: Snapshot, row: tuple[object, ...]) -> bool:
    known = found.known(row[0])  # type: ignore[arg-type]
    return known is not None and row[1:] == (known.device_id, known.friendly_name, known.user_id)


def verified(devices: Iterable[Device]) -> list[Device]:
    """Return those of some rows that are the verified ones."""
    found = _snapshot()
    return [device for device in devices if found is not None and found.matches(current_list(), device)]


def differing(request: HttpRequest) -> list[Device]:
    """Return the rows that differ from the verified list, as far as the filters and the search of a page have found them."""
    pks = request.__dict__.get("_amesh_differing", set())
    return list(Device.objects.using(current_list().using).filter(pk__in=pks)) if pks else []


def _noted(request: HttpRequest, pks: Iterable[int]) -> list[int]:
    found = sorted(pks)[:_MAX_DIFFERING]
    request.__dict__.setdefault("_amesh_differing", set()).update(found)
    return found


def _snapshot() -> Snapshot | None:
    """Return the verified list, or None if there is none: then the banner of the page says so."""
    try:
        return current_list().snapshot()
    except (AmeshError, ImproperlyConfigured):
        return None

"""Damage: rows with values that amesh cannot have written, and how the rows beside them are read nevertheless.

Anyone who can write to the database can damage a row so that it cannot be read: SQLite stores any value in any column, and PostgreSQL
has times that Python does not have. Such a row is treated as one that was changed outside Django, never as a database that is down.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import DataError, OperationalError, models
from django.utils.translation import gettext as _

from amesh_django.models import Device, DeviceActivity, DeviceGroup
from authmesh.protocol.display import clean

_M = TypeVar("_M", bound=models.Model)

#: Errors that a damaged row raises while it is read or hashed. InvalidInput is a ValueError.
UNREADABLE = (AttributeError, TypeError, ValueError, OverflowError, RecursionError)
#: Rows that are read from the database at a time.
CHUNK_SIZE = 5000
#: Rows that :func:`each_row` reads at a time. SQLite limits the parameters of a statement.
_PART = 500
#: The error of SQLite for a text that is not UTF-8, which is an OperationalError like that of a database that is down.
_NOT_UTF8 = "could not decode to utf-8"
_TYPES: dict[type[models.Field[Any, Any]], type] = {
    models.CharField: str,
    models.TextField: str,
    models.IntegerField: int,
    models.BooleanField: bool,
    models.DateTimeField: dt.datetime,
}


@contextmanager
def reading() -> Iterator[None]:
    """Raise ValueError for a row that the database driver cannot convert. Any other error of the database is raised as it is."""
    try:
        yield
    except (DataError, OperationalError) as error:
        if isinstance(error, DataError) or _NOT_UTF8 in str(error).lower():
            raise ValueError("A column holds a value that it cannot hold.") from error
        raise


def each_row(rows: models.QuerySet[_M], limit: int | None = None) -> Iterator[tuple[int, _M | None]]:
    """Yield primary key and instance of each row, in the order of the query set; None instead of the instance of a damaged row.

    The rows are not read with a cursor of the server. One that is left open is closed when the garbage collector finds it, which may be
    while psycopg runs a statement, and then waits for itself.

    Args:
        rows: a query set that is not sliced.
        limit: number of rows. Defaults to all.
    """
    keys = list(rows.values_list("pk", flat=True)[:limit])
    for start in range(0, len(keys), _PART):
        yield from _each(rows, keys[start : start + _PART])


def _each(rows: models.QuerySet[_M], keys: Sequence[int]) -> Iterator[tuple[int, _M | None]]:
    """Yield the rows with these primary keys. If one of them is damaged, each half is read alone."""
    found: list[_M] | None
    try:
        with reading():
            found = list(rows.filter(pk__in=keys))
    except UNREADABLE:
        found = None
    if found is not None:
        for row in found:
            yield row.pk, row if has_types(type(row), row.__dict__) else None
    elif len(keys) == 1:
        yield keys[0], None
    else:
        half = len(keys) // 2
        yield from _each(rows, keys[:half])
        yield from _each(rows, keys[half:])


def has_types(model: type[models.Model], values: Mapping[str, Any]) -> bool:
    """Return True if each value has the type of its column. SQLite stores values of any type.

    Args:
        model: the model.
        values: column → value, of all columns or some.
    """
    return all(
        is_null if values[name] is None else isinstance(values[name], kind)
        for name, kind, is_null in _columns(model)
        if name in values
    )


@functools.cache
def _columns(model: type[models.Model]) -> list[tuple[str, type, bool]]:
    """Return name, type, and whether null is allowed, of each column whose type is known. That of a foreign key is the project's."""
    return [
        (field.attname, kind, field.null)
        for field in model._meta.concrete_fields
        for base, kind in _TYPES.items()
        if isinstance(field, base)
    ]


def damaged_rows(using: str) -> Iterator[str]:
    """Yield the devices and groups that were damaged so that they cannot be read, in words.

    Args:
        using: database alias.
    """
    devices, groups = Device.objects.using(using), DeviceGroup.objects.using(using)
    for pk, device in each_row(devices.order_by("pk")):
        if device is None:
            found = next(
                (one for _pk, one in each_row(devices.filter(pk=pk).only("device_id")) if one is not None), None
            )
            yield _row(pk, Device, f" ({clean(found.device_id)})" if found is not None else "")
    for pk, group in each_row(groups.order_by("pk")):
        if group is None:
            yield _row(pk, DeviceGroup)


def _row(pk: int, model: type[models.Model], name: str = "") -> str:
    text = _("Row %(pk)d of the table %(table)s%(name)s has a value that its column cannot hold")
    return text % {"pk": pk, "table": model._meta.db_table, "name": name}


def read_activity(devices: Sequence[Device], using: str) -> None:
    """Read the activity of devices, each of which then has it as ``activity``. One that cannot be read counts as none.

    It is not joined with the devices: a row of it that was damaged must not hide a device, nor keep it from being revoked.

    Args:
        devices: the rows.
        using: database alias.
    """
    rows = DeviceActivity.objects.using(using)
    if len(devices) <= _PART:
        rows = rows.filter(pk__in=[device.pk for device in devices])
    found = dict(each_row(rows.all()))
    field = Device._meta.get_field("activity")
    for device in devices:
        field.set_cached_value(device, found.get(device.pk))

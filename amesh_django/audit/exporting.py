"""Exporting: events as lines, the oldest first, for files and other programs. The log may be long, so lines are made as they are sent."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.db.models import Max, QuerySet

from amesh_django.models import AuditEvent
from amesh_django.trust.damage import each_row
from authmesh.protocol.display import clean_line

from .ocsf import as_ocsf
from .reading import UNREADABLE_KIND, as_json, beside, readable

#: Events that are read at a time.
_CHUNK: Final = 500
#: Characters with which a cell begins that a spreadsheet takes for a formula.
_FORMULA: Final = "=+-@"
_LINE_END: Final = "\r\n"
_INVISIBLE: Final = ("\t", "\r", "\n", "\0")


def json_line(event: AuditEvent) -> str:
    """Return an event as one line of JSON, with what ``amesh_audit --json`` prints."""
    return json.dumps(as_json(event))


def ocsf_line(event: AuditEvent) -> str:
    """Return an event as one line of JSON in the form of :mod:`.ocsf`."""
    return json.dumps(as_ocsf(event))


def csv_line(event: AuditEvent) -> str:
    """Return an event as one record of CSV. No cell begins as a formula does."""
    return _record([_cell(value) for value in as_json(event).values()])


#: Name of a form → the type of its content, and what makes the line of an event.
FORMS: Final[dict[str, tuple[str, Callable[[AuditEvent], str]]]] = {
    "csv": ("text/csv; charset=utf-8", csv_line),
    "json": ("application/jsonl", json_line),
    "ocsf": ("application/jsonl", ocsf_line),
}


def parts(rows: QuerySet[AuditEvent], form: str) -> Iterator[str]:
    """Return the lines of events, many in each part. Events that are written from now on are left out.

    Args:
        rows: the events, in no order.
        form: one of :data:`FORMS`.
    """
    newest = AuditEvent.objects.using(rows.db).order_by().aggregate(found=Max("pk"))["found"] or 0
    return _parts(rows.filter(pk__lte=newest), form)


def _parts(rows: QuerySet[AuditEvent], form: str) -> Iterator[str]:
    line = FORMS[form][1]
    if form == "csv":
        yield f"{_record(list(as_json(AuditEvent(kind=UNREADABLE_KIND))))}\n"
    rest = rows
    while found := list(each_row(rest.order_by("at", "id"), _CHUNK)):
        yield "".join(f"{line(readable(pk, event))}\n" for pk, event in found)
        rest = rows.filter(beside(found[-1][0], "gt"))


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else json.dumps(value)
    # A spreadsheet may leave out what cannot be seen, and take a wide character for a narrow one, before it looks for a formula.
    seen = unicodedata.normalize("NFKC", clean_line(value).lstrip()[:1])
    return f"'{value}" if (seen and seen in _FORMULA) or value[:1] in _INVISIBLE else value


def _record(cells: list[str]) -> str:
    found = io.StringIO()
    csv.writer(found, lineterminator=_LINE_END).writerow(
        cells
    )  # before Python 3.13, it quotes only the line ends that it writes
    return found.getvalue().removesuffix(_LINE_END)

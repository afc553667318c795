"""Charts of the admin: SVG made on the server, without a style or a script of its own, and a table with the same numbers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Protocol

from django.template.loader import render_to_string
from django.utils import formats
from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

_SLOT, _BAR = 20, 14
_HEIGHT = 100
#: Least height of a bar that stands for anything: one request must not disappear beside a million.
_LEAST = 1.5


class Day(Protocol):
    """The requests of one day."""

    @property
    def date(self) -> dt.date: ...
    @property
    def accepted(self) -> int: ...
    @property
    def refused(self) -> int: ...


def bars(days: Sequence[Day], *, title: str | Promise = "", name: str = "requests") -> SafeString:
    """Return a bar chart of requests by day as HTML. Its page needs ``charts.css``.

    Args:
        days: the days, the oldest first, each with its number of accepted and of refused requests.
        title: the name of the chart. Defaults to a general one.
        name: distinguishes it from other charts of the page, in letters of ASCII.
    """
    most = max((day.accepted + day.refused for day in days), default=0)
    drawn = []
    for number, day in enumerate(days):
        accepted, refused = _height(day.accepted, most), _height(day.refused, most)
        x = number * _SLOT + (_SLOT - _BAR) // 2
        rects = (("accepted", accepted, _HEIGHT - accepted), ("refused", refused, _HEIGHT - accepted - refused))
        drawn += [
            {"kind": kind, "x": str(x), "y": f"{y:.1f}", "height": f"{high:.1f}"} for kind, high, y in rects if high
        ]
    context = {
        "name": name,
        "title": title or _("Signed requests by day"),
        "description": _described(days, most),
        "days": [
            (formats.date_format(day.date, "SHORT_DATE_FORMAT"), _number(day.accepted), _number(day.refused))
            for day in days
        ],
        "is_empty": most == 0,
        "first": formats.date_format(days[0].date, "MONTH_DAY_FORMAT") if days else "",
        "last": formats.date_format(days[-1].date, "MONTH_DAY_FORMAT") if days else "",
        "most": _number(most),
        "bars": drawn,
        "bar": str(_BAR),
        "width": str(len(days) * _SLOT),
        "height": str(_HEIGHT),
    }
    return render_to_string("admin/amesh/chart.html", context)


def _height(count: int, most: int) -> float:
    return max(_LEAST, count / most * (_HEIGHT - 2 * _LEAST)) if count else 0.0


def _described(days: Sequence[Day], most: int) -> str:
    if not most:
        return ngettext("No request in %(count)d day.", "No request in %(count)d days.", len(days)) % {
            "count": len(days)
        }
    busiest = max(days, key=lambda day: day.accepted + day.refused)
    text = ngettext(
        "%(accepted)s accepted and %(refused)s refused in %(count)d day. The most were on %(date)s: %(most)s.",
        "%(accepted)s accepted and %(refused)s refused in %(count)d days. The most were on %(date)s: %(most)s.",
        len(days),
    )
    return text % {
        "accepted": _number(sum(day.accepted for day in days)),
        "refused": _number(sum(day.refused for day in days)),
        "count": len(days),
        "date": formats.date_format(busiest.date, "DATE_FORMAT"),
        "most": _number(most),
    }


def _number(count: int) -> str:
    return str(formats.number_format(count, use_l10n=True, force_grouping=True))

"""The charts of the admin: what is drawn is what the table beside it says, without a style or a script of its own."""

from __future__ import annotations

import datetime as dt
import re
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from django.utils import translation

from amesh_django.admin.charts import bars


class _Day(NamedTuple):
    date: dt.date
    accepted: int
    refused: int


def _days(*counts: tuple[int, int]) -> list[_Day]:
    return [_Day(dt.date(2026, 11, 1) + dt.timedelta(number), *count) for number, count in enumerate(counts)]


def _svg(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html, re.DOTALL)[0])  # noqa: S314 -- made by the code under test


def test_the_bars_of_a_day_stand_on_each_other_and_keep_their_proportions() -> None:
    html = bars(_days((200, 0), (50, 50), (0, 0), (1_000_000, 1)))
    rects = _svg(html).findall("rect")
    assert [rect.get("class") for rect in rects] == [
        *("amesh-bar-accepted", "amesh-bar-accepted", "amesh-bar-refused", "amesh-bar-accepted", "amesh-bar-refused"),
    ]
    assert all(float(rect.get("height")) >= 1 and float(rect.get("y")) >= 0 for rect in rects)
    accepted, refused = rects[1], rects[2]
    assert float(refused.get("y")) + float(refused.get("height")) == pytest.approx(float(accepted.get("y")))
    even = _svg(bars(_days((200, 0), (100, 0)))).findall("rect")
    assert float(even[0].get("height")) == pytest.approx(2 * float(even[1].get("height")))


def test_a_chart_has_a_name_a_description_and_a_table() -> None:
    html = bars(_days((1234, 0), (0, 5)), title="Requests", name="one")
    svg = _svg(html)
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby").split() == [svg.find("title").get("id"), svg.find("desc").get("id")]
    assert svg.find("title").text == "Requests"
    assert svg.find("desc").text == "1,234 accepted and 5 refused in 2 days. The most were on Nov. 1, 2026: 1,234."
    assert re.findall(r"<td>(.*?)</td>", html) == ["1,234", "0", "0", "5"]
    assert 'scope="row"' in html
    assert "<caption>" in html


def test_a_chart_obeys_a_strict_content_security_policy_and_escapes_its_title() -> None:
    html = bars(_days((1, 1)), title="<b>&")
    assert not re.search(r"style=|<style|<script|\son[a-z]+=", html)
    assert "&lt;b&gt;&amp;" in html


def test_numbers_of_an_svg_are_those_of_no_language() -> None:
    with translation.override("de"):
        rects = _svg(bars(_days(*[(n, 1) for n in range(30)]))).findall("rect")
    assert all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", rect.get(name)) for rect in rects for name in ("x", "y", "height"))


@pytest.mark.parametrize("days", [[], _days((0, 0), (0, 0))])
def test_without_requests_a_sentence_says_so(days: list[_Day]) -> None:
    assert "<svg" not in bars(days)
    assert "No request in" in bars(days)

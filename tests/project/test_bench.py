"""The bench stays able to run. What it measures is not judged here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench.__main__ import SECTIONS, run
from tests.bench.figures import Row, Section, Target, ratio


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Section], dict[str, Any]]:
    """All sections, run once as small as can be; and the JSON of them."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    sections = run(["--scale", "smoke", "--json", str(path)])
    return sections, json.loads(path.read_text("utf-8"))


@pytest.mark.long
@pytest.mark.unversioned  # the benchmark is a tool of this checkout
@pytest.mark.process
def test_every_section_runs_and_reports(report: tuple[list[Section], dict[str, Any]]) -> None:
    sections, document = report
    assert len(sections) == len(SECTIONS)
    for section in sections:
        assert section.rows and section.targets
        text = section.text()
        assert all(row.name in text for row in section.rows)
        assert all(str(target) in text for target in section.targets)
    assert [section["section"] for section in document["sections"]] == [section.key for section in sections]
    assert document["machine"]["packages"]["django"]


@pytest.mark.long
@pytest.mark.unversioned  # the benchmark is a tool of this checkout
@pytest.mark.process
def test_one_read_and_one_round_trip_are_counted(report: tuple[list[Section], dict[str, Any]]) -> None:
    targets = [target for target in report[0][0].targets if "a request" in target.unit]
    assert [target.value for target in targets] == [1.0] * 4


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratio([10, 2_000, 30], [10, 1_000, 10]) == 2


def test_figures_say_median_and_spread() -> None:
    row = Row("name", "µs", [float(n) for n in range(1, 102)], 1.5, "note")
    assert row.cells() == ("name", "51.00", "11.00 – 91.00", "µs", "1.50 ×", "note")
    assert row.document()["p90"] == 91


@pytest.mark.parametrize(("value", "word"), [(1.25, "reached"), (1.26, "MISSED")])
def test_a_target_says_whether_it_is_reached(value: float, word: str) -> None:
    assert str(Target("x", value, 1.25, "×")).startswith(word)

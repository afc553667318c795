"""What was measured: samples of interleaved rounds, the figures made of them, targets, the table and the JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: name of what is measured → one sample for each round.
Samples = dict[str, list[float]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios within each round: what slowed the machine down slowed both sides of a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def interleave(rounds: int, measures: Mapping[str, Callable[[], float]]) -> Samples:
    """Call every measure once a round, each round beginning with another one, and collect what they return."""
    names = list(measures)
    samples: Samples = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(measures[name]())
    return samples


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        unit: of the samples.
        samples: one for each round.
        ratio: to what the section compares with.
        note: shown at the end of the line.
        count: how much of *unit* there was, where it was counted and not sampled.
    """

    name: str
    unit: str
    samples: Sequence[float] = ()
    ratio: float | None = None
    note: str = ""
    count: str = ""

    def cells(self) -> tuple[str, ...]:
        ratio = f"{self.ratio:.2f} ×" if self.ratio is not None else ""
        if not self.samples:
            return (self.name, self.count, "", self.unit, ratio, self.note)
        middle, low, high = (percentile(self.samples, share) for share in (0.5, 0.1, 0.9))
        return (self.name, _number(middle), f"{_number(low)} – {_number(high)}", self.unit, ratio, self.note)

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "unit": self.unit}
        if self.samples:
            shares = {"median": 0.5, "p10": 0.1, "p90": 0.9}
            found |= {name: round(percentile(self.samples, share), 4) for name, share in shares.items()}
            found["rounds"] = len(self.samples)
        if self.count:
            found["count"] = self.count
        if self.ratio is not None:
            found["ratio"] = round(self.ratio, 4)
        return found | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached: *value* at most *limit*."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "MISSED "
        return f"{verdict}  {self.name}: {_number(self.value)} {self.unit} (at most {_number(self.limit)})"


@dataclass(slots=True)
class Section:
    """A part of the report."""

    key: str
    title: str
    about: str
    compared: str = ""
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def text(self) -> str:
        head = ("", "median", "p10 – p90", "", self.compared, "")
        table = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [self.title, "-" * len(self.title), self.about, ""]
        for line in table:
            cells = [line[0].ljust(widths[0])]
            cells += [line[column].rjust(widths[column]) for column in (1, 2)]
            cells += [line[3].ljust(widths[3]), line[4].rjust(widths[4]), line[5]]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, "", *map(str, self.targets), ""])

    def document(self) -> dict[str, Any]:
        return {
            "section": self.key,
            "title": self.title,
            "about": self.about,
            "compared": self.compared,
            "rows": [row.document() for row in self.rows],
            "targets": [
                {
                    "name": target.name,
                    "value": round(target.value, 4),
                    "limit": target.limit,
                    "unit": target.unit,
                    "reached": target.reached,
                }
                for target in self.targets
            ],
        }


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def write_json(path: Path, machine: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Put all figures into a file."""
    document = {"machine": machine, "sections": [section.document() for section in sections]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")

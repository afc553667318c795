"""Section 1: the verifier alone, beside one raw OpenSSL verification."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tests.bench.figures import Row, Samples, Section, Target, ratio
from tests.bench.world import BACKENDS, World

PARTS = ("parse", "canonical string", "hash", "signature", "seal check")
#: As :data:`tests.bench.measures.SCOPED`, which needs Django.
SCOPED = "without I/O, scoped"
WHOLE = ("local nonces", "Redis nonces")


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    sizes, scale = world.scale.sizes, world.scale
    lists = list(itertools.product(BACKENDS, sizes))
    samples: dict[tuple[str, int], Samples] = {key: {} for key in lists}
    strangers: list[float] = []
    slowest: list[float] = []
    for key in lists:
        world.worker(*key).call("verifier", count=scale.batch)  # the snapshot is built, keys are loaded
    for number in range(scale.rounds):
        for key in lists[number % len(lists) :] + lists[: number % len(lists)]:
            for name, value in world.worker(*key).call("verifier", count=scale.batch).items():
                samples[key].setdefault(name, []).append(value)
        strangers.append(world.worker("sqlite", sizes[-1]).call("strangers", count=min(scale.strangers, sizes[-1])))
        slowest.append(world.worker("sqlite", sizes[-1]).call("slowest", count=scale.batch))
        say(f"verifier: round {number + 1} of {scale.rounds}")
    trips = {backend: world.worker(backend, sizes[-1]).call("trips", count=scale.batch) for backend in BACKENDS}

    section = Section(
        "verifier",
        "The verifier alone",
        "An accepted POST with a body of 80 bytes and a query of two parameters; raw is one P-256 verification of the same\n"
        "message by cryptography (OpenSSL) with a loaded key. Ten devices sign, whatever the size of the list.",
        "÷ raw",
    )
    first = samples["sqlite", sizes[0]]
    section.rows.append(Row("raw verification", "µs", first["raw"], 1.0))
    for size in sizes:
        section.rows.append(_row("without I/O", samples["sqlite", size], "without I/O", f"{size:,} devices"))
    note = "a device with scopes, a group, and an expiry; the view asks for a scope"
    section.rows.append(_row("without I/O", samples["sqlite", sizes[-1]], SCOPED, note))
    for backend, name, size in itertools.product(BACKENDS, WHOLE, sizes):
        title = f"seal in {BACKENDS[backend]}, {name}"
        section.rows.append(_row(title, samples[backend, size], name, f"{size:,} devices"))
    raw = samples["sqlite", sizes[-1]]["raw"]
    section.rows.append(
        Row(
            "seal in SQLite, local nonces",
            "µs",
            strangers,
            ratio(strangers, raw),
            f"{sizes[-1]:,} devices, each request from another one: its key has to be decompressed",
        )
    )
    note = f"{sizes[-1]:,} devices, 99 of 100 stay within this, processor time"
    section.rows.append(Row("seal in SQLite, local nonces", "µs", slowest, ratio(slowest, raw), note))
    section.rows += _parts(samples, sizes[0])
    for backend, counted in trips.items():
        section.rows.append(Row(f"statements in {BACKENDS[backend]}", "a request", count=f"{counted['statements']:g}"))
    section.rows.append(Row("round trips to Redis", "a request", count=f"{trips['sqlite']['round trips']:g}"))
    section.targets = _targets(samples, trips, sizes)
    return section


def _row(title: str, samples: Samples, name: str, note: str) -> Row:
    return Row(title, "µs", samples[name], ratio(samples[name], samples["raw"]), note)


def _parts(samples: dict[tuple[str, int], Samples], size: int) -> list[Row]:
    here = samples["sqlite", size]
    rows = [_row(f"  of it: {part}", here, part, "") for part in PARTS]
    rows[-1] = _row("  of it: seal check", here, "seal check", "SQLite")
    rows.append(_row("  of it: seal check", samples["postgresql", size], "seal check", "PostgreSQL"))
    rows += [_row(f"  of it: {name}", here, name, "") for name in ("nonce, local", "nonce, Redis")]
    known = [here[part] for part in (*PARTS, "nonce, local")]
    rest = [whole - sum(parts) for whole, *parts in zip(here["local nonces"], *known, strict=True)]
    rows.append(Row("  of it: the rest", "µs", rest, note="SQLite, local: clock, checks, the result"))
    return rows


def _targets(samples: dict[tuple[str, int], Samples], trips: dict[str, Any], sizes: tuple[int, ...]) -> list[Target]:
    small, large = samples["sqlite", sizes[0]], samples["sqlite", sizes[-1]]
    targets = [
        Target(f"without I/O, {sizes[-1]:,} devices", ratio(large["without I/O"], large["raw"]), 1.25, "× raw"),
        Target(f"SQLite, local nonces, {sizes[0]:,} devices", ratio(small[WHOLE[0]], small["raw"]), 1.8, "× raw"),
        Target(f"SQLite, local nonces, {sizes[-1]:,} devices", ratio(large[WHOLE[0]], large["raw"]), 1.8, "× raw"),
    ]
    targets.append(Target("scopes, groups, and expiry ÷ none", ratio(large[SCOPED], large["without I/O"]), 1.05, "×"))
    for backend, name in itertools.product(BACKENDS, WHOLE):
        over, under = samples[backend, sizes[-1]], samples[backend, sizes[0]]
        title = f"{BACKENDS[backend]}, {name}: {sizes[-1]:,} devices ÷ {sizes[0]:,}"
        targets.append(Target(title, ratio(over[name], under[name]), 1.1, "×"))
    for backend, counted in trips.items():
        targets.append(Target(f"reads of {BACKENDS[backend]}", counted["statements"], 1, "a request"))
        targets.append(
            Target(f"Redis, list in {BACKENDS[backend]}", counted["round trips"], 1, "round trips a request")
        )
    return targets

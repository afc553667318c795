"""Section 3: the allow list. A change, the first request after it, cold start and memory, small list beside large."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.bench.figures import Row, Section, Target, percentile, ratio
from tests.bench.world import BACKENDS, World

COLD_SECONDS = 3.0
#: Others who write one event each second.
WRITERS = 200


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    small, large = world.scale.sizes[0], world.scale.sizes[-1]
    section = Section(
        "allow list",
        "The allow list",
        "One process changes a device's permissions, another verifies the next request (nonces in local memory). A cold start\n"
        "is a fresh process after Django's own start: unlocking the key (Argon2id), reading and verifying every row, one request.",
        f"÷ {small:,}",
    )
    for backend, title in BACKENDS.items():
        say(f"allow list: {title}")
        changes: dict[int, list[float]] = {small: [], large: []}
        firsts: dict[int, list[float]] = {small: [], large: []}
        for number in range(world.scale.changes):
            for size in (small, large) if number % 2 else (large, small):
                reader = world.worker(backend, size)
                reader.call("first")
                changes[size].append(world.worker(backend, size, "writer").call("change"))
                firsts[size].append(reader.call("first"))
        for what, found in (("one change", changes), ("first request after it", firsts)):
            for size in (small, large):
                relation = ratio(found[size], found[small])
                section.rows.append(Row(f"{what}, {title}", "µs", found[size], relation, f"{size:,} devices"))
            section.targets.append(
                Target(f"{what}, {title}: {large:,} devices ÷ {small:,}", ratio(found[large], found[small]), 2.0, "×")
            )
        _log(world, section, backend)
        _cold_starts(world, section, backend)
    return section


def _log(world: World, section: Section, backend: str) -> None:
    """Measure what the audit log costs a change, and what the writers of other events do."""
    title, size = BACKENDS[backend], world.scale.sizes[0]
    writer = world.worker(backend, size, "writer")
    plain, logged, alone, beside = [], [], [], []
    for _ in range(world.scale.changes):
        plain.append(writer.call("change_without_log"))
        logged.append(writer.call("change"))
    relation = ratio(logged, plain)
    section.rows.append(Row(f"one change without the chain, {title}", "µs", plain, 1.0, f"{size:,} devices"))
    section.rows.append(Row(f"one change with it, {title}", "µs", logged, relation, f"{size:,} devices"))
    section.targets.append(
        Target(f"one change, {title}: with its event in the audit log ÷ without", relation, 1.3, "×")
    )
    if backend != "postgresql":  # SQLite has one writer at a time
        return
    other = world.worker(backend, size, "other writer")
    with ThreadPoolExecutor(1) as pool:
        alone = [writer.call("change") for _ in range(world.scale.changes)]
        busy = pool.submit(other.call, "write_events", writers=WRITERS, seconds=max(1.0, world.scale.changes / 20))
        while not busy.done() or not beside:
            beside.append(writer.call("change"))
    relation = percentile(beside, 0.5) / percentile(alone, 0.5)
    section.rows.append(Row(f"one change, {title}", "µs", alone, 1.0, "nobody writes events"))
    section.rows.append(Row(f"one change, {title}", "µs", beside, relation, f"{WRITERS} events a second"))
    section.targets.append(
        Target(f"one change, {title}: beside {WRITERS} other events a second ÷ alone", relation, 1.1, "×")
    )


def _cold_starts(world: World, section: Section, backend: str) -> None:
    title = BACKENDS[backend]
    for size in (world.scale.sizes[0], world.scale.sizes[-1]):
        starts = []
        for _ in range(world.scale.starts):
            with world.fresh_worker(backend, size) as worker:
                starts.append(worker.call("cold"))
        note = f"{size:,} devices"
        total, memory = [start["all"] for start in starts], [start["memory"] for start in starts]
        section.rows.append(Row(f"cold start, {title}", "s", total, note=note))
        section.rows.append(Row("  of it: unlock the key", "s", [start["unlock"] for start in starts], note=note))
        section.rows.append(Row("  of it: read and verify", "s", [start["rows"] for start in starts], note=note))
        section.rows.append(Row(f"memory, {title}", "MiB", memory, note=note))
    section.targets.append(Target(f"cold start, {title}, {note}", percentile(total, 0.5), COLD_SECONDS, "s"))

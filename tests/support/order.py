"""The order of the tests: half of the workers of pytest-xdist begin with the long ones.

Long tests mostly wait: for servers, browsers, TPMs. So the other half begins with short ones, which need the processor that is idle
meanwhile, and no worker is still busy with a long one when the others have finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def long_first(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in an order in which half of the workers, rounded up, have their share of the long ones at the beginning.

    With ``--dist worksteal``, each worker gets an equal part of the tests, and one that has finished takes from the end of another's
    part. The long tests of a module stay together, because they may share what the module starts.
    """
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("long"):
            modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    first = heads[: (workers + 1) // 2]
    for module in sorted(modules.values(), key=len, reverse=True):
        min(first, key=len).extend(module)
    rest = iter([item for item in items if not item.get_closest_marker("long")])
    ordered: list[pytest.Item] = []
    for number, head in enumerate(heads):
        size = (len(items) - len(ordered)) // (workers - number)  # as pytest-xdist divides them
        ordered += head
        ordered += islice(rest, max(size - len(head), 0))
    return [*ordered, *rest]

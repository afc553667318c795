"""Long tests start first, on half of the workers."""

from __future__ import annotations

from typing import Any

from tests.support.order import long_first


class Item:
    def __init__(self, nodeid: str, *, long: bool) -> None:
        self.nodeid = nodeid
        self.long = long

    def get_closest_marker(self, name: str) -> bool:
        return name == "long" and self.long


def test_half_of_the_workers_begin_with_long_tests_and_those_of_a_module_stay_together() -> None:
    names = ["a::1", "a::2", "b::1", "b::L", "c::1", "d::L", "d::M", "e::1", "f::L", "g::1"]
    items: list[Any] = [Item(name, long=name[-1] in "LM") for name in names]
    ordered = [item.nodeid for item in long_first(items, 3)]
    assert ordered == ["d::L", "d::M", "a::1", "b::L", "f::L", "a::2", "b::1", "c::1", "e::1", "g::1"]
    assert [item.nodeid for item in long_first(items[:1], 3)] == ["a::1"]


def test_more_long_tests_than_a_worker_gets() -> None:
    items: list[Any] = [Item(f"a::{number}", long=number < 3) for number in range(4)]
    assert [item.nodeid for item in long_first(items, 2)] == ["a::0", "a::1", "a::2", "a::3"]

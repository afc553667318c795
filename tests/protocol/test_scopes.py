"""Scopes: which names are scopes, and which of them cover a name that a view asks for."""

from __future__ import annotations

from typing import Any

import pytest

from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.scopes import covers, is_grantable, is_scope, required, scopes_of


@pytest.mark.parametrize("name", ["orders", "orders:read", "a.b-c_d:1:2", "x" * 100])
def test_scopes(name: str) -> None:
    assert is_scope(name)
    assert is_grantable(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "a:",
        ":a",
        "a::b",
        "Orders:read",
        "orders read",
        "ordérs",
        "a\n",
        "x" * 101,
        "*",
        "a*",
        "a:b*",
        "a:*:b",
        1,
        None,
    ],
)
def test_what_is_not_a_scope(name: Any) -> None:
    assert not is_scope(name)
    assert not is_grantable(name)


def test_a_star_may_be_granted_and_not_asked_for() -> None:
    assert is_grantable("orders:*")
    assert not is_scope("orders:*")
    assert not covers(frozenset({"orders:*"}), "orders:*")


@pytest.mark.parametrize(
    ("granted", "name", "expected"),
    [
        ({"orders:read"}, "orders:read", True),
        ({"orders:read"}, "orders:write", False),
        ({"orders"}, "orders:read", False),
        ({"orders:read"}, "orders", False),
        ({"orders:*"}, "orders:read", True),
        ({"orders:*"}, "orders:archive:read", True),
        ({"orders:archive:*"}, "orders:read", False),
        ({"orders:archive:*"}, "orders:archive:read", True),
        ({"orders:*"}, "orders", False),
        ({"orders:*"}, "ordersx:read", False),
        (set(), "orders", False),
    ],
)
def test_a_scope_covers_a_name(granted: set[str], name: str, expected: bool) -> None:
    assert covers(frozenset(granted), name) is expected


@pytest.mark.parametrize("value", [None, "orders:read", {"orders:read": True}, True, 1, [["orders:read"]], ["*"]])
def test_a_value_that_is_no_list_of_scopes_gives_none(value: Any) -> None:
    assert scopes_of({"scopes": value}) == frozenset()


def test_the_scopes_of_a_device() -> None:
    assert scopes_of({"scopes": ["orders:*", "stock:read", "BAD", 1]}) == {"orders:*", "stock:read"}
    assert scopes_of({}) == frozenset()


def test_required_scopes_are_a_list_of_scopes() -> None:
    assert required(["orders:read", "stock:read"]) == ("orders:read", "stock:read")
    for wrong in ("orders:read", ["orders:*"], ["Orders"]):
        with pytest.raises(InvalidInput, match="list of names"):
            required(wrong)

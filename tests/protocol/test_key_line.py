"""The line of export-key, and untrusted text that is made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authmesh.protocol.display import MAX_SHOWN, NO_NAME, clean, clean_line
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.key_line import build_key_line, parse_key_line
from authmesh.protocol.keys import load_private_key, public_key_bytes

KEY = public_key_bytes(load_private_key(bytes(31) + b"\x07"))
LINE = build_key_line(KEY, "Ada's laptop. Nr. 2")


def test_a_line_is_one_word_that_no_shell_interprets() -> None:
    assert LINE.startswith("amesh-key-v1.")
    assert set(LINE) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~%.")
    assert LINE.count(".") == 3


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=128))
def test_a_line_keeps_the_name(name: str) -> None:
    assert parse_key_line(build_key_line(KEY, name)) == (KEY, name)


@given(st.integers(0, len(LINE)), st.sampled_from([" ", "\n", "\r\n", "\t", "  \n ", "\u00a0"]))
def test_white_space_anywhere_is_ignored(place: int, space: str) -> None:
    assert parse_key_line(f"  {LINE[:place]}{space}{LINE[place:]}\n") == parse_key_line(LINE)


@pytest.mark.parametrize("quote", ["'", '"', "`"])
def test_quotes_around_the_line_are_ignored(quote: str) -> None:
    assert parse_key_line(f"{quote}{LINE}{quote}\n") == parse_key_line(LINE)


@pytest.mark.parametrize("length", range(len(LINE)))
def test_a_line_that_was_cut_is_rejected(length: int) -> None:
    with pytest.raises(InvalidInput, match=r"Run export-key|Update the older"):
        parse_key_line(LINE[:length])


@given(st.integers(0, len(LINE) - 1), st.characters(exclude_categories=["Cs", "Z"]))
def test_a_changed_character_is_detected(place: int, char: str) -> None:
    changed = LINE[:place] + char + LINE[place + 1 :]
    if changed.strip("\"'`").lower() != LINE.lower() and not char.isspace():
        try:
            found = parse_key_line(changed)
        except InvalidInput:
            return
        assert found == parse_key_line(LINE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "hello",
        "amesh-bt-v1.a.b.c",
        "amesh-key-v2.a.b.c",
        "amesh-key-v1...",
        "amesh-key-v1.\u00e4.b.c",
        LINE * 99,
    ],
)
def test_other_text_is_rejected_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"export-key|older one of the two"):
        parse_key_line(text)


def test_a_key_that_is_not_a_point_is_rejected() -> None:
    line = build_key_line(b"\x02" + b"\xff" * 32, "x")
    with pytest.raises(InvalidInput, match="not a P-256 key"):
        parse_key_line(line)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("laptop", "laptop"),
        ("größer ✓ 日本", "größer ✓ 日本"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1bcb", "ab"),
        ("line\nforged", "line forged"),
        ("x\u2028y", "x y"),
        ("a\r\x08b", "a b"),
        ("\u202egnp.exe", "gnp.exe"),
        ("ze\u200bro", "zero"),
        ("\ud800x\U000e0041", "x"),
        ("  many   spaces  ", "many spaces"),
        ("", NO_NAME),
        ("\u200b \x07", NO_NAME),
        ("[red]markup[/red]", "[red]markup[/red]"),
    ],
)
def test_names_are_cleaned(name: str, shown: str) -> None:
    assert clean(name) == shown


def test_a_long_name_is_cut() -> None:
    assert clean("x" * 5000) == "x" * (MAX_SHOWN - 1) + "…"


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    for shown in (clean(text), clean_line(text)):
        assert {unicodedata.category(char) for char in shown}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert clean(clean(text)) == clean(text)

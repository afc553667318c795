"""Make untrusted text safe to show: it must not control a terminal, forge a line, or change the direction of writing."""

from __future__ import annotations

import re
import unicodedata

#: Longest name that is shown in full.
MAX_SHOWN = 128
NO_NAME = "(no name)"

# ECMA-48: CSI; OSC, DCS, SOS, PM and APC up to their end; any other escape sequence. Each also in the one-byte (C1) form.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[\x20-\x2f]*[\x30-\x7e]?"
)
# Control, format (bidirectional marks, zero-width, tags), surrogates, private use, unassigned; line and paragraph separators.
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_TOKEN = re.compile(r"(amesh-[be]t-v\d+\.)[\w.=-]+")


def without_tokens(text: str) -> str:
    """Return *text* with every bootstrap or enrollment token shortened, because printed text may end up in logs.

    Args:
        text: an error about user input, which may be a token in the wrong place.
    """
    return _TOKEN.sub(r"\1…", text)


def clean_line(text: str) -> str:
    """Return *text* as one line, without escape sequences, control and format characters.

    Line breaks and tabs become spaces.
    """
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(r"[\t\r\n\v\f\x85\u2028\u2029]", " ", _ESCAPE_SEQUENCE.sub("", text))
    return "".join([char for char in text if unicodedata.category(char) not in _UNSHOWABLE])


def clean(name: str) -> str:
    """Return an untrusted name as it may be shown: as :func:`clean_line`, without repeated spaces, at most 128 characters.

    Args:
        name: a friendly name from a peer, a file or a line of text.

    Returns:
        the name, or ``(no name)`` if nothing is left of it.
    """
    shown = " ".join(clean_line(name).split())
    if len(shown) > MAX_SHOWN:
        shown = shown[: MAX_SHOWN - 1] + "…"
    return shown or NO_NAME

"""Text from elsewhere, made fit to be shown: nothing in it may steer a terminal, forge a line or turn the writing round."""

from __future__ import annotations

import re
import unicodedata

#: Longest name that is shown in full, in characters.
MAX_SHOWN = 128
NO_NAME = "(no name)"

# ECMA-48: CSI; OSC, DCS, SOS, PM and APC up to their end; any other escape sequence. Each also in its one-byte (C1) form.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[\x20-\x2f]*[\x30-\x7e]?"
)
# Control, format (bidirectional marks, zero-width, tags), surrogates, private use, unassigned; line and paragraph separators.
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_TOKEN = re.compile(r"(amesh-bt-v\d+\.)[\w.=-]+")


def without_tokens(text: str) -> str:
    """*text*, where a bootstrap token that somebody gave in the wrong place is cut off: what is printed gets into logs.

    Args:
        text: an error about what was typed.
    """
    return _TOKEN.sub(r"\1…", text)


def clean_line(text: str) -> str:
    """*text* without escape sequences, control and format characters; a line break or tab becomes a space.

    Args:
        text: anything that goes to a terminal as one line.
    """
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(r"[\t\r\n\v\f\x85\u2028\u2029]", " ", _ESCAPE_SEQUENCE.sub("", text))
    return "".join([char for char in text if unicodedata.category(char) not in _UNSHOWABLE])


def clean(name: str) -> str:
    """A name from elsewhere as it may be shown: :func:`clean_line`, white space collapsed, at most 128 characters.

    Args:
        name: a friendly name that a peer, a file or a line of text gave.

    Returns:
        never an empty text: ``(no name)`` where nothing is left.
    """
    shown = " ".join(clean_line(name).split())
    if len(shown) > MAX_SHOWN:
        shown = shown[: MAX_SHOWN - 1] + "…"
    return shown or NO_NAME

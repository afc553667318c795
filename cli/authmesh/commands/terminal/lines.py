"""The lines that a command prints, before a front end draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from authmesh.protocol.errors import Hint

#: The meaning of a line; the front end decides how that looks. ``drawn`` is light on dark, whatever the colors of the terminal are.
Tone = Literal["plain", "title", "good", "warning", "bad", "quiet", "drawn"]


@dataclass(frozen=True, slots=True)
class Styled:
    """One line with a meaning.

    Attributes:
        text: its content. The console spells the commands in it, and removes control characters.
        tone: its meaning.
        label: for a line that is a fact: the name of the fact, padded by the caller.
        whole: True for a line that must not be wrapped, such as a command to copy or a drawing. A fact is never wrapped.
    """

    text: Hint = ""
    tone: Tone = "plain"
    label: str = ""
    whole: bool = False


#: Anything that a console shows as one line.
Shown = Styled | Hint


def facts(*pairs: tuple[str, Hint]) -> list[Styled]:
    """Return one aligned line for each pair of a label and a value."""
    width = max((len(label) for label, _ in pairs), default=0)
    return [Styled(value, label=label.ljust(width)) for label, value in pairs]

"""What the demo prints: acts, commands, and checks with their outcome."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

Paint = Callable[[str], str]

#: Where a check's answer begins, in columns, if what was sent leaves room.
_COLUMN = 52
_INDENT = "     "


class DemoError(Exception):
    """The demo can't go on. The sentence says why."""


class Stage:
    """Prints what happens and remembers what was not as said.

    Args:
        say: prints a line.
        marks: of a check that holds, and of one that does not.
        title: paints headings.
    """

    def __init__(self, say: Callable[[str], None], *, marks: tuple[str, str] = ("✓", "✗"), title: Paint = str) -> None:
        self.say = say
        self._good, self._bad = marks
        self._title = title
        self._acts = self.checks = self.failures = 0

    def act(self, heading: str) -> None:
        """A new part of the play."""
        self._acts += 1
        self.say("")
        self.say(self._title(f"{self._acts:2}  {heading}"))

    def command(self, words: Sequence[str]) -> None:
        """A command, before it runs."""
        self.say(f"{_INDENT}$ {' '.join(words)}")

    def output(self, text: str) -> None:
        """What a command printed."""
        self.say(textwrap.indent(text.rstrip(), f"{_INDENT}  "))

    def check(self, what: str, holds: bool, answer: str, *, expected: str = "") -> None:
        """One line: what was done and what came of it; and what should have come of it, where it did not."""
        self.checks += 1
        self.failures += not holds
        wanted = f"   expected: {expected}" if expected and not holds else ""
        self.say(f"   {self._good if holds else self._bad} {what:<{_COLUMN}} {answer}{wanted}")

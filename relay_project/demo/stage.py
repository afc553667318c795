"""The output of the demo: acts, commands, and checks with their outcome."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

Paint = Callable[[str], str]

#: The column in which the answer of a check begins, if there is room.
_COLUMN = 52
_INDENT = "     "


class DemoError(Exception):
    """The demo cannot continue. The message says why."""


class Stage:
    """Prints what happens, and counts the checks that fail.

    Args:
        say: prints a line.
        marks: the marks of a check that passes, and of one that fails.
        title: styles a heading.
    """

    def __init__(self, say: Callable[[str], None], *, marks: tuple[str, str] = ("✓", "✗"), title: Paint = str) -> None:
        self.say = say
        self._good, self._bad = marks
        self._title = title
        self._acts = self.checks = self.failures = 0

    def act(self, heading: str) -> None:
        """Begin a new part of the demo."""
        self._acts += 1
        self.say("")
        self.say(self._title(f"{self._acts:2}  {heading}"))

    def command(self, words: Sequence[str]) -> None:
        """Show a command before it runs."""
        self.say(f"{_INDENT}$ {' '.join(words)}")

    def output(self, text: str) -> None:
        """Show the output of a command."""
        self.say(textwrap.indent(text.rstrip(), f"{_INDENT}  "))

    def check(self, what: str, holds: bool, answer: str, *, expected: str = "") -> None:
        """Show what was done, and the answer. If the check fails, also show the expected answer."""
        self.checks += 1
        self.failures += not holds
        wanted = f"   expected: {expected}" if expected and not holds else ""
        self.say(f"   {self._good if holds else self._bad} {what:<{_COLUMN}} {answer}{wanted}")

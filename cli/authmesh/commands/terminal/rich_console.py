"""The console of the command line: rich draws the lines, and nothing in them is markup."""

from __future__ import annotations

import sys

import rich.console
from rich.text import Text

from .. import Console, Line, Tone

_STYLES: dict[Tone, str] = {
    "plain": "",
    "title": "bold",
    "good": "green",
    "warning": "yellow",
    "bad": "red",
    "quiet": "dim",
    "drawn": "bright_white on black",
}


class RichConsole(Console):
    """Words for the terminal, in colour where it shows colours and ``NO_COLOR`` is not set."""

    def __init__(self, *, as_json: bool = False, no_input: bool = False) -> None:
        super().__init__(as_json=as_json, no_input=no_input)
        # soft_wrap: an id or a key that was broken into two lines could not be copied.
        self._out, self._err = (
            rich.console.Console(stderr=err, markup=False, emoji=False, highlight=False, soft_wrap=True)
            for err in (False, True)
        )

    def write_line(self, line: Line, *, err: bool, end: str = "\n") -> None:
        """See :meth:`Console.write_line`."""
        text = Text.assemble((line.indent, "dim"), (line.text, _STYLES[line.tone]))
        (self._err if err else self._out).print(text, end=end)

    def write_data(self, data: bytes) -> None:
        """See :meth:`Console.write_data`."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

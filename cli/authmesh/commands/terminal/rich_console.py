"""The console of ``amesh``: rich draws the lines, and nothing in them is markup."""

from __future__ import annotations

import os
import sys
from typing import Literal

import rich.console
from rich.text import Text

from .console import Console, writing
from .lines import Tone

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
    """Writes lines in color and bold, if the terminal shows them and ``NO_COLOR`` is not set."""

    def __init__(self, *, as_json: bool = False, no_input: bool = False) -> None:
        super().__init__(as_json=as_json, no_input=no_input)
        # Without a color system, rich writes no escape sequence at all, not even for bold and dim.
        colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        # soft_wrap: a device ID or a key that is broken into two lines cannot be copied.
        self._out, self._err = (
            rich.console.Console(
                stderr=err, color_system=colors, markup=False, emoji=False, highlight=False, soft_wrap=True
            )
            for err in (False, True)
        )

    def write_line(self, text: str, tone: Tone = "plain", *, indent: str = "", err: bool, end: str = "\n") -> None:
        console = self._err if err else self._out
        with writing():
            console.print(Text.assemble((indent, "dim"), (text, _STYLES[tone])), end=end)

    def write_data(self, data: bytes) -> None:
        with writing():
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

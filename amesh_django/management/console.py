"""The console of ``manage.py``: the same lines in Django's styles."""

from __future__ import annotations

import os
from collections.abc import Callable

from django.core.management.base import BaseCommand
from django.core.management.color import color_style, no_style
from django.utils.termcolors import make_style

from authmesh.commands import Console, Line, Tone

_STYLES: dict[Tone, str] = {
    "plain": "",
    "title": "MIGRATE_LABEL",
    "good": "SUCCESS",
    "warning": "WARNING",
    "bad": "ERROR",
    "quiet": "",
    "drawn": "",
}
_DRAWN = make_style(fg="white", bg="black")


class DjangoConsole(Console):
    """Words to the stdout and stderr of a management command.

    Args:
        command: whose streams they are.
        in_color: ``--force-color`` or ``--no-color``; None where neither is given.
    """

    def __init__(
        self,
        command: BaseCommand,
        *,
        as_json: bool = False,
        no_input: bool = False,
        owns_terminal: bool = True,
        in_color: bool | None = None,
    ) -> None:
        super().__init__(as_json=as_json, no_input=no_input, owns_terminal=owns_terminal)
        self._command = command
        self._in_color = in_color

    def write_line(self, line: Line, *, err: bool, end: str = "\n") -> None:
        """See :meth:`Console.write_line`."""
        stream = self._command.stderr if err else self._command.stdout
        # The style that the stream would put on everything by itself is turned off by naming one.
        stream.write(line.indent + self._styled(line, self.is_terminal(err=err)), style_func=str, ending=end)
        stream.flush()

    def _styled(self, line: Line, is_terminal: bool) -> str:
        in_color = self._in_color
        if in_color is None:
            in_color = is_terminal and not os.environ.get("NO_COLOR")
        if in_color and line.tone == "drawn":
            return str(_DRAWN(line.text))
        if not in_color or not _STYLES[line.tone]:
            return line.text
        style = color_style(force_color=bool(self._in_color)) if in_color else no_style()
        paint: Callable[[str], str] = getattr(style, _STYLES[line.tone])
        return paint(line.text)

    def write_data(self, data: bytes) -> None:
        """See :meth:`Console.write_data`."""
        out = self._command.stdout
        out.flush()
        raw = getattr(out, "buffer", None)
        if raw is None:  # call_command(stdout=StringIO())
            out.write(data.decode("utf-8", "replace"), ending="")
        else:
            raw.write(data)
            raw.flush()

    def is_terminal(self, *, err: bool = False) -> bool:
        """See :meth:`Console.is_terminal`."""
        return bool((self._command.stderr if err else self._command.stdout).isatty())

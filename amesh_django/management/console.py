"""The console of ``manage.py``: the lines of a command in Django's styles."""

from __future__ import annotations

import os

from django.core.management.base import BaseCommand
from django.core.management.color import color_style
from django.utils.termcolors import make_style

from amesh_django.spelling import manage_py
from authmesh.commands.terminal.console import Console, writing
from authmesh.commands.terminal.lines import Tone
from authmesh.protocol.errors import Run

_STYLES: dict[Tone, str] = {"title": "MIGRATE_LABEL", "good": "SUCCESS", "warning": "WARNING", "bad": "ERROR"}
_DRAWN = make_style(fg="white", bg="black")


class DjangoConsole(Console):
    """Writes to the stdout and stderr of a management command.

    Args:
        command: the management command.
        in_color: True for ``--force-color``, False for ``--no-color``, None if neither is given.
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

    def spell(self, run: Run) -> str:
        return manage_py(run)

    def write_line(self, text: str, tone: Tone = "plain", *, indent: str = "", err: bool, end: str = "\n") -> None:
        stream = self._command.stderr if err else self._command.stdout
        # Without a style function, the stream would style everything itself.
        with writing():
            stream.write(indent + self._styled(text, tone, self.is_terminal(err=err)), style_func=str, ending=end)
            stream.flush()

    def _styled(self, text: str, tone: Tone, is_terminal: bool) -> str:
        in_color = self._in_color
        if in_color is None:
            in_color = is_terminal and not os.environ.get("NO_COLOR")
        if not in_color:
            return text
        if tone == "drawn":
            return str(_DRAWN(text))
        if tone not in _STYLES:
            return text
        style = color_style(force_color=bool(self._in_color))
        return str(getattr(style, _STYLES[tone])(text))

    def write_data(self, data: bytes) -> None:
        out = self._command.stdout
        with writing():
            out.flush()
            raw = getattr(out, "buffer", None)
            if raw is None:  # call_command(stdout=StringIO())
                out.write(data.decode("utf-8", "replace"), ending="")
            else:
                raw.write(data)
                raw.flush()

    def is_terminal(self, *, err: bool = False) -> bool:
        return bool((self._command.stderr if err else self._command.stdout).isatty())

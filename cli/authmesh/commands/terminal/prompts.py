"""Questions that are asked while an event loop runs. The other device leaving, a timeout or Ctrl-C withdraws them.

The wording is that of the questions of :class:`.console.Console`, which block until they are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from .console import Console
from .errors import Unanswered
from .keyboard import Keyboard
from .lines import Shown, Styled


class Prompts:
    """Asks the person, or with ``--json`` the program, at standard input.

    Args:
        console: the console that shows the questions.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._keyboard = Keyboard()

    async def text(self, prompt: str, *, about: Iterable[Shown] = (), unanswered: Unanswered) -> str:
        """Return the line that is typed at a prompt, without surrounding white space.

        Args:
            prompt: shown before the typed text.
            about: what a person must know to answer.
            unanswered: raised if standard input has ended.
        """
        console = self._console
        if not console.as_json:
            console.beside(*about)
        self._keyboard.forget()
        if not console.as_json:
            console.beside(prompt, end="")
        try:
            answer = await self._keyboard.line()
        except asyncio.CancelledError:
            self._keyboard.forget()  # half an answer must not become a command of the shell
            if not console.as_json:
                console.beside("")
            raise
        if answer is None:
            if not console.as_json:
                console.beside("")
            raise unanswered
        return answer.strip()

    async def confirm(self, question: str, *, about: Iterable[Shown] = (), unanswered: Unanswered) -> bool:
        """Return the answer to a yes-or-no question; the default is no. The arguments are those of :meth:`text`."""
        while True:
            answer = (await self.text(f"{question} [y/N] ", about=about, unanswered=unanswered)).lower()
            if answer in ("y", "yes"):
                return True
            if answer in ("", "n", "no") or self._console.as_json:
                return False
            about = ["Please answer y or n."]

    async def choose(
        self, question: str, choices: Sequence[str], *, about: Iterable[Shown] = (), unanswered: Unanswered
    ) -> int | None:
        """Return the index of one of several numbered choices, or None for none of them, the default."""
        about = [*about, *(Styled(choice, label=f"{number})") for number, choice in enumerate(choices, 1))]
        while True:
            answer = await self.text(
                f"{question} [1-{len(choices)}, Enter for none] ", about=about, unanswered=unanswered
            )
            if answer.lower() in ("", "n", "no", "none"):
                return None
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            about = [f"Please answer with a number from 1 to {len(choices)}, or press Enter for none."]

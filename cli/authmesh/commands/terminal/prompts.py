"""Questions that are asked beside an event loop: they give way when the other side leaves, when time is up, and to Ctrl-C.

The words are those of the console's own questions; there, nothing else can happen while one is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from .console import Console, Line, Refused
from .keyboard import Keyboard


class Prompts:
    """The person, or with ``--json`` the program, at standard input.

    Args:
        console: where the questions go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._keyboard = Keyboard()

    async def text(self, prompt: str, *, about: Iterable[Line | str] = (), unanswered: str) -> str:
        """What is typed at a prompt, without white space around it.

        Args:
            prompt: ends where the typing begins.
            about: what one must know to answer.
            unanswered: what it means that nobody is there.

        Raises:
            Refused: the input has ended.
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
            raise Refused(unanswered)
        return answer.strip()

    async def confirm(self, question: str, *, about: Iterable[Line | str] = (), unanswered: str) -> bool:
        """A yes-or-no question; no is the default.

        Raises:
            Refused: the input has ended.
        """
        while True:
            answer = (await self.text(f"{question} [y/N] ", about=about, unanswered=unanswered)).lower()
            if answer in ("y", "yes"):
                return True
            if answer in ("", "n", "no") or self._console.as_json:
                return False
            about = ["Please answer y or n."]

    async def choose(
        self, question: str, choices: Sequence[str], *, about: Iterable[Line | str] = (), unanswered: str
    ) -> int | None:
        """A question with numbered choices; none is the default.

        Returns:
            the index of the choice, or None.

        Raises:
            Refused: the input has ended.
        """
        about = [*about, *(Line(choice, label=f"{number})") for number, choice in enumerate(choices, 1))]
        while True:
            prompt = f"{question} [1-{len(choices)}, Enter for none] "
            answer = await self.text(prompt, about=about, unanswered=unanswered)
            if answer.lower() in ("", "n", "no", "none"):
                return None
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            about = [f"Please answer with a number from 1 to {len(choices)}, or with Enter."]

"""How a command speaks: words and facts on stdout, questions and warnings on stderr, or JSON for programs.

The two front ends differ in how a line gets to the terminal, and in nothing else.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from authmesh.protocol.display import clean_line, without_tokens
from authmesh.protocol.errors import AmeshError

#: What a line means; the front end decides how that looks. ``drawn`` is light on dark, whatever the terminal's colours are.
Tone = Literal["plain", "title", "good", "warning", "bad", "quiet", "drawn"]

LOGGER = "amesh_django"
INTERRUPTED_CODE = "interrupted"


class Refused(AmeshError):
    """A question that nobody answers: the safe default is no. Nothing was changed."""

    code = "refused"


class Declined(AmeshError):
    """A person said no."""

    code = "declined"

    def __str__(self) -> str:
        return "Nothing was changed."


class UsageProblem(AmeshError):
    """The options contradict each other, or one is missing. The exit code is 2."""

    code = "usage"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and what is true then; at a question nothing was changed."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "Interrupted. Nothing was changed."


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        text: what it says. It is cleaned before it is shown.
        tone: what it means.
        label: where the line is a fact: what *text* is. It is padded by whoever makes the line.
        whole: not to be broken, however long it is: a command to be copied, a drawing. A fact never is.
    """

    text: str = ""
    tone: Tone = "plain"
    label: str = ""
    whole: bool = False

    @property
    def indent(self) -> str:
        """What stands before the text."""
        return f"  {self.label}  " if self.label else ""


def facts(*pairs: tuple[str, str]) -> list[Line]:
    """Lines of a label and a value each, aligned."""
    width = max((len(label) for label, _ in pairs), default=0)
    return [Line(value, label=label.ljust(width)) for label, value in pairs]


def forget_stdout() -> None:
    """Whoever read stdout is gone (``| head``): what is still to be written goes nowhere, without a complaint at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console(ABC):
    """Where a command's words go.

    Args:
        as_json: one JSON document on stdout, JSON lines on stderr, no words.
        no_input: answer every question with its safe default.
        owns_terminal: the process runs for this command alone: what is logged does not go between its words.
    """

    def __init__(self, *, as_json: bool = False, no_input: bool = False, owns_terminal: bool = True) -> None:
        self.as_json = as_json
        self.no_input = no_input
        self.owns_terminal = owns_terminal
        self._stdin_is_taken = False
        self._warned: set[str] = set()
        self._status = ""
        self._held: list[str] | None = None

    # --- what a front end implements ----------------------------------------------------------------------------------

    @abstractmethod
    def write_line(self, line: Line, *, err: bool, end: str = "\n") -> None:
        """Write a line, already cleaned, to stdout or stderr."""

    @abstractmethod
    def write_data(self, data: bytes) -> None:
        """Write bytes to stdout as they are."""

    def is_terminal(self, *, err: bool = False) -> bool:
        """True if a person reads stdout, or stderr."""
        return (sys.stderr if err else sys.stdout).isatty()

    @property
    def encoding(self) -> str:
        """Of stdout."""
        return getattr(sys.stdout, "encoding", None) or "ascii"

    # --- what a command calls -----------------------------------------------------------------------------------------

    def say(self, *lines: Line | str, tone: Tone = "plain") -> None:
        """Words for people, on stdout. Nothing with ``--json``."""
        if not self.as_json:
            for line in lines:
                self._show(line if isinstance(line, Line) else Line(line, tone), err=False)

    def warn(self, text: str) -> None:
        """A warning on stderr, once for each text."""
        if self._held is not None:
            self._held.append(text)
            return
        if text in self._warned:
            return
        self._warned.add(text)
        if self.as_json:
            self._json({"warning": text}, err=True)
        else:
            self._show(Line(f"Warning: {text}", "warning"), err=True)

    def hint(self, text: str) -> None:
        """What to do at the terminal now, on stderr."""
        self._show(Line(text, "quiet"), err=True)

    def beside(self, *lines: Line | str, end: str = "\n") -> None:
        """What belongs to a question, on stderr."""
        for line in lines:
            self._show(line, err=True, end=end)

    def status(self, text: str = "") -> None:
        """A line of a person's terminal that is written over again and again, such as a countdown. Empty takes it away."""
        if text == self._status or self.as_json or not self.is_terminal():
            return
        before, self._status = self._status, clean_line(text)[: shutil.get_terminal_size().columns - 1]
        back = "" if self._status else "\r"
        self.write_data(f"\r{self._status.ljust(len(before))}{back}".encode())

    def error(self, code: str, message: str) -> None:
        """Why the command failed, on stderr."""
        message = without_tokens(message)
        if self.as_json:
            self._json({"error": code, "message": message}, err=True)
        elif code in (Declined.code, INTERRUPTED_CODE):  # that is no mistake
            self._show(message, err=True)
        else:
            self._show(Line(f"Error: {message}", "bad"), err=True)

    def result(self, value: Any) -> None:
        """The one JSON document of ``--json``. Nothing without."""
        if self.as_json:
            self._json(value, err=False)

    def step(self, value: Any) -> None:
        """One line of a ``--json`` that prints one for each step. Nothing without."""
        if self.as_json:
            self._json(value, err=False, indent=None)

    def data(self, text: str) -> None:
        """A line that programs and people take from stdout alike: a header, a key. Nothing with ``--json``."""
        if not self.as_json:
            self.write_data(f"{text}\n".encode())

    def ask(self, question: str, *, about: Iterable[Line | str] = (), instead: str) -> bool:
        """A yes-or-no question on stderr; no is the default.

        Args:
            question: ends with a question mark.
            about: what one must know to answer it.
            instead: the option that answers it without asking.

        Raises:
            Refused: ``--no-input``, or nobody is there to answer.
            Interrupted: Ctrl-C.
        """
        self._introduce(question, about, instead)
        while True:
            answer = self._read(f"{question} [y/N] ", question, instead).lower()
            if answer in ("y", "yes"):
                return True
            if answer in ("", "n", "no"):
                return False
            self._show(Line("Please answer y or n."), err=True)

    def choose(
        self, question: str, choices: Sequence[str], *, about: Iterable[Line | str] = (), instead: str
    ) -> int | None:
        """A question with numbered choices on stderr; none is the default.

        Returns:
            the index of the choice, or None.

        Raises:
            Refused, Interrupted: as :meth:`ask`.
        """
        self._introduce(question, about, instead)
        for number, choice in enumerate(choices, 1):
            self._show(Line(choice, label=f"{number})"), err=True)
        while True:
            answer = self._read(f"{question} [1-{len(choices)}, Enter for none] ", question, instead)
            if answer == "" or answer.lower() in ("n", "no", "none"):
                return None
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            self._show(Line(f"Please answer with a number from 1 to {len(choices)}, or with Enter."), err=True)

    def ask_secret(self, question: str, *, instead: str) -> str:
        """Something that nobody else shall read, typed on the terminal without echo.

        Args:
            question: what is asked for, such as ``PIN: ``.
            instead: what answers it without asking.

        Raises:
            Refused: ``--no-input``, no terminal, or nothing typed.
            Interrupted: Ctrl-C.
        """
        if self.no_input:
            raise _unanswered(question.strip(" :"), instead)
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))  # getpass would read stdin instead, and echo it
            answer = getpass.getpass(question)
        except KeyboardInterrupt:
            self._show(Line(), err=True)
            raise Interrupted from None
        except (OSError, EOFError, UnicodeDecodeError):
            answer = ""
        if not answer:
            raise _unanswered(question.strip(" :"), instead)
        return answer

    def read_stdin(self) -> bytes:
        """All of stdin, for an argument ``-``; questions are then asked on the terminal, where there is one.

        Raises:
            UsageProblem: an argument took it already.
            Interrupted: Ctrl-C.
        """
        if self._stdin_is_taken:
            raise UsageProblem("Only one argument can be read from stdin.")
        self._stdin_is_taken = not sys.stdin.isatty()
        try:
            buffer = getattr(sys.stdin, "buffer", None)
            return bytes(buffer.read()) if buffer is not None else sys.stdin.read().encode()
        except KeyboardInterrupt:
            raise Interrupted from None

    @contextlib.contextmanager
    def hearing_logs(self) -> Iterator[None]:
        """Warnings that the library logs are the command's warnings. Errors are not repeated: they are raised as well.

        Handlers of the project that write to files or elsewhere get everything as ever.
        """
        listener = _WarningHandler(self)
        logger = logging.getLogger(LOGGER)
        at_terminal = [
            handler
            for handler in (*logging.getLogger().handlers, *logger.handlers)
            if self.owns_terminal and getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
        ]
        logger.addHandler(listener)
        for handler in at_terminal:
            handler.addFilter(_is_not_ours)
        try:
            yield
        finally:
            logger.removeHandler(listener)
            for handler in at_terminal:
                handler.removeFilter(_is_not_ours)

    @contextlib.contextmanager
    def holding_warnings(self) -> Iterator[list[str]]:
        """Inside the block warnings are kept in the list that it is given, and not shown."""
        before, self._held = self._held, []
        try:
            yield self._held
        finally:
            self._held = before

    # --- inside -------------------------------------------------------------------------------------------------------

    def _show(self, line: Line | str, *, err: bool, end: str = "\n") -> None:
        self.status()
        if isinstance(line, str):
            line = Line(line)
        text, label = clean_line(line.text), clean_line(line.label)
        if not (label or line.whole) and self.is_terminal(err=err):
            text = _wrap(text)
        self.write_line(Line(text, line.tone, label), err=err, end=end)

    def _json(self, value: Any, *, err: bool, indent: int | None = 2) -> None:
        # ASCII only, so that a name keeps its true value and still can't reach the terminal as control characters.
        text = json.dumps(value, ensure_ascii=True, indent=None if err else indent)
        for line in text.split("\n"):
            self.write_line(Line(line), err=err)

    def _introduce(self, question: str, about: Iterable[Line | str], instead: str) -> None:
        if self.no_input:
            raise _unanswered(question, instead)
        for line in about:
            self._show(line, err=True)

    def _read(self, prompt: str, question: str, instead: str) -> str:
        try:
            self._show(Line(prompt), err=True, end="")
            answer = self._read_line()
        except KeyboardInterrupt:  # it may come as soon as the question can be seen
            self._show(Line(), err=True)
            raise Interrupted from None
        if not answer:  # end of input: nobody is there
            self._show(Line(), err=True)
            raise _unanswered(question, instead)
        return answer.strip()

    def _read_line(self) -> str:
        if not self._stdin_is_taken:
            try:
                return sys.stdin.readline() if sys.stdin is not None else ""
            except UnicodeDecodeError:  # an answer that is no text is no answer; it is asked again
                return "?\n"
        try:
            with open("/dev/tty", encoding="utf-8", errors="replace") as terminal:
                return terminal.readline()
        except OSError:
            return ""


def _wrap(text: str) -> str:
    """Break a sentence between words for the terminal. Ids, keys and paths stay in one piece, so that they can be copied."""
    margin = " " * (len(text) - len(text.lstrip()))
    width = max(shutil.get_terminal_size().columns - 1, 40)
    if len(text) <= width:
        return text
    trailing = text[len(text.rstrip()) :]
    wrapped = textwrap.fill(
        text, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return wrapped + trailing


def _is_not_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] not in (LOGGER, "httpx", "httpcore")


class _WarningHandler(logging.Handler):
    """Hands warnings to the console, and keeps them from Python's last resort."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        if record.levelno == logging.WARNING:
            self._console.warn(record.getMessage())


def _unanswered(question: str, instead: str) -> Refused:
    return Refused(f"This asks “{question}” and got no answer, so it is no. {instead} answers it. Nothing was changed.")

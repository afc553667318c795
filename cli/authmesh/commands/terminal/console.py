"""The console of a command: words and facts on stdout, questions and warnings on stderr, or JSON for programs.

The two front ends differ in how a line reaches the terminal and in how they spell a command, and in nothing else.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from authmesh.protocol.display import clean_line, without_tokens
from authmesh.protocol.errors import Hint, Run, spelled

from .errors import INTERRUPTED_CODE, Declined, Interrupted, OutputFailed, Unanswered, UsageProblem
from .lines import Shown, Styled, Tone


def forget_stdout() -> None:
    """Discard what is still to be written to stdout, because its reader has gone (``| head``)."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raise :class:`.errors.OutputFailed` if the block cannot write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise OutputFailed.because_of(error) from None


class Console(ABC):
    """The place where a command writes its words and reads its answers.

    Args:
        as_json: print one JSON document on stdout, JSON lines on stderr, and no words.
        no_input: answer every question with its safe default.
        owns_terminal: True if the process runs for this command only.
    """

    def __init__(self, *, as_json: bool = False, no_input: bool = False, owns_terminal: bool = True) -> None:
        self.as_json = as_json
        self.no_input = no_input
        self.owns_terminal = owns_terminal
        self._stdin_is_taken = False
        self._warned: set[str] = set()
        self._status = ""
        self._held: list[str] | None = None

    # --- implemented by a front end -----------------------------------------------------------------------------------

    @abstractmethod
    def write_line(self, text: str, tone: Tone = "plain", *, indent: str = "", err: bool, end: str = "\n") -> None:
        """Write a line to stdout or stderr.

        Args:
            text: its content, without control characters.
            tone: its meaning.
            indent: written before the text: the label of a fact.
            err: True for stderr.
            end: written after the text.
        """

    @abstractmethod
    def write_data(self, data: bytes) -> None:
        """Write bytes to stdout as they are."""

    def spell(self, run: Run) -> str:
        """Return a command of amesh as a person types it in this front end."""
        return str(run)

    def is_terminal(self, *, err: bool = False) -> bool:
        """Return True if stdout, or stderr, is a terminal."""
        return (sys.stderr if err else sys.stdout).isatty()

    def reads_terminal(self) -> bool:
        """Return True if stdin is a terminal."""
        return sys.stdin is not None and sys.stdin.isatty()

    @property
    def encoding(self) -> str:
        """The encoding of stdout."""
        return getattr(sys.stdout, "encoding", None) or "ascii"

    # --- output -------------------------------------------------------------------------------------------------------

    def text(self, hint: Hint) -> str:
        """Return a text with its commands spelled."""
        return spelled(hint, self.spell)

    def say(self, *lines: Shown, tone: Tone = "plain") -> None:
        """Print lines for people on stdout; nothing with ``--json``."""
        if not self.as_json:
            for line in lines:
                self._show(line if isinstance(line, Styled) else Styled(line, tone), err=False)

    def warn(self, text: Hint) -> None:
        """Print a warning on stderr, once for each text."""
        warning = self.text(text)
        if self._held is not None:
            self._held.append(warning)
            return
        if warning in self._warned:
            return
        self._warned.add(warning)
        if self.as_json:
            self._json({"warning": warning}, err=True)
        else:
            self._show(Styled(f"Warning: {warning}", "warning"), err=True)

    def hint(self, text: Hint) -> None:
        """Print on stderr what to do at the terminal now."""
        self._show(Styled(text, "quiet"), err=True)

    def beside(self, *lines: Shown, end: str = "\n") -> None:
        """Print the lines that belong to a question on stderr."""
        for line in lines:
            self._show(line, err=True, end=end)

    def status(self, text: str = "") -> None:
        """Overwrite the status line of the terminal, such as a countdown. An empty text removes the line."""
        if text == self._status or self.as_json or not self.is_terminal():
            return
        before, self._status = self._status, clean_line(text)[: shutil.get_terminal_size().columns - 1]
        back = "" if self._status else "\r"
        self.write_data(f"\r{self._status.ljust(len(before))}{back}".encode())

    def error(self, code: str, message: str) -> None:
        """Print on stderr why the command failed."""
        message = without_tokens(message)
        if self.as_json:
            self._json({"error": code, "message": message}, err=True)
        elif code in (Declined.code, INTERRUPTED_CODE):  # decisions of a person are not errors
            self._show(message, err=True)
        else:
            self._show(Styled(f"Error: {message}", "bad"), err=True)

    def result(self, value: Any) -> None:
        """Print the JSON document of ``--json``; nothing without ``--json``."""
        if self.as_json:
            self._json(value, err=False)

    def step(self, value: Any) -> None:
        """Print one line of a ``--json`` that prints a line for each step; nothing without ``--json``."""
        if self.as_json:
            self._json(value, err=False, indent=None)

    def data(self, text: str) -> None:
        """Print a line that both people and programs read from stdout, such as a key; nothing with ``--json``."""
        if not self.as_json:
            self.write_data(f"{text}\n".encode())

    @contextlib.contextmanager
    def holding_warnings(self) -> Iterator[list[str]]:
        """Inside the block, collect warnings in the list that the block receives instead of printing them."""
        before, self._held = self._held, []
        try:
            yield self._held
        finally:
            self._held = before

    # --- questions ----------------------------------------------------------------------------------------------------

    def confirm(self, question: str, *, about: Iterable[Shown] = (), yes: bool = False, instead: str = "--yes") -> None:
        """Ask a yes-or-no question on stderr unless *yes*; the default is no.

        Args:
            question: ends with a question mark.
            about: what a person must know to answer it.
            yes: True if the question is answered already.
            instead: the option that answers it without asking.

        Raises:
            Declined: the answer is no.
            Unanswered: ``--no-input`` was given, or standard input has ended.
            Interrupted: Ctrl-C was pressed.
        """
        if yes:
            return
        self._introduce(question, about, instead)
        while True:
            answer = self._read(f"{question} [y/N] ", question, instead).lower()
            if answer in ("y", "yes"):
                return
            if answer in ("", "n", "no"):
                raise Declined()
            self._show("Please answer y or n.", err=True)

    def choose(self, question: str, choices: Sequence[str], *, about: Iterable[Shown] = (), instead: str) -> int | None:
        """Ask a question with numbered choices on stderr; the default is none of them.

        Returns:
            the index of the choice, or None.

        Raises:
            Unanswered, Interrupted: as :meth:`confirm`.
        """
        self._introduce(question, about, instead)
        for number, choice in enumerate(choices, 1):
            self._show(Styled(choice, label=f"{number})"), err=True)
        while True:
            answer = self._read(f"{question} [1-{len(choices)}, Enter for none] ", question, instead)
            if answer == "" or answer.lower() in ("n", "no", "none"):
                return None
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            self._show(f"Please answer with a number from 1 to {len(choices)}, or press Enter for none.", err=True)

    def ask_secret(self, what: str, *, instead: str) -> str:
        """Read a secret that is typed on the terminal without echo.

        Args:
            what: name of the secret, such as ``PIN``.
            instead: the option or variable that provides it without asking.

        Raises:
            Unanswered: ``--no-input`` was given, there is no terminal, or nothing was typed.
            Interrupted: Ctrl-C was pressed.
        """
        if self.no_input:
            raise _unanswered(what, instead)
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))  # without one, getpass would read stdin and echo it
            answer = getpass.getpass(f"{what}: ")
        except KeyboardInterrupt:
            self._show("", err=True)
            raise Interrupted from None
        except (OSError, EOFError, UnicodeDecodeError):
            answer = ""
        if not answer:
            raise _unanswered(what, instead)
        return answer

    def read_stdin(self) -> bytes:
        """Return all of stdin, for an argument ``-``. Later questions are asked on the terminal, if there is one.

        Raises:
            UsageProblem: another argument has read stdin already.
            Interrupted: Ctrl-C was pressed.
        """
        if self._stdin_is_taken:
            raise UsageProblem("Only one argument can be read from stdin. Nothing was changed.")
        self._stdin_is_taken = not self.reads_terminal()
        if sys.stdin is None:  # closed
            return b""
        try:
            buffer = getattr(sys.stdin, "buffer", None)
            return bytes(buffer.read()) if buffer is not None else sys.stdin.read().encode()
        except KeyboardInterrupt:
            raise Interrupted from None

    # --- internals ----------------------------------------------------------------------------------------------------

    def _show(self, line: Shown, *, err: bool, end: str = "\n") -> None:
        self.status()
        if not isinstance(line, Styled):
            line = Styled(line)
        text, label = clean_line(self.text(line.text)), clean_line(line.label)
        if not (label or line.whole) and self.is_terminal(err=err):
            text = _wrap(text)
        self.write_line(text, line.tone, indent=f"  {label}  " if label else "", err=err, end=end)

    def _json(self, value: Any, *, err: bool, indent: int | None = 2) -> None:
        # ASCII only: a name keeps its true value and cannot reach the terminal as control characters.
        text = json.dumps(value, ensure_ascii=True, indent=None if err else indent)
        for line in text.split("\n"):
            self.write_line(line, err=err)

    def _introduce(self, question: str, about: Iterable[Shown], instead: str) -> None:
        if self.no_input:
            raise _unanswered(question, instead)
        for line in about:
            self._show(line, err=True)

    def _read(self, prompt: str, question: str, instead: str) -> str:
        try:
            self._show(prompt, err=True, end="")
            answer = self._read_line()
        except KeyboardInterrupt:  # it may come as soon as the question can be seen
            self._show("", err=True)
            raise Interrupted from None
        if not answer:  # standard input has ended
            self._show("", err=True)
            raise _unanswered(question, instead)
        return answer.strip()

    def _read_line(self) -> str:
        if not self._stdin_is_taken:
            try:
                return sys.stdin.readline() if sys.stdin is not None else ""
            except UnicodeDecodeError:  # not text, so not an answer: the question is asked again
                return "?\n"
        try:
            with open("/dev/tty", encoding="utf-8", errors="replace") as terminal:
                return terminal.readline()
        except OSError:
            return ""


def _wrap(text: str) -> str:
    """Break a sentence between words. Device IDs, keys and paths stay in one piece, so that a person can copy them."""
    margin = " " * (len(text) - len(text.lstrip()))
    width = max(shutil.get_terminal_size().columns - 1, 40)
    if len(text) <= width:
        return text
    trailing = text[len(text.rstrip()) :]
    wrapped = textwrap.fill(
        text, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return wrapped + trailing


def _unanswered(question: str, instead: str) -> Unanswered:
    return Unanswered(
        f"“{question}” was not answered, and the default is no. Nothing was changed.",
        hint=f"To answer in advance, use {instead}.",
    )

"""The one description of a command, and the one place where errors become exit codes.

A command adds its arguments to an :class:`argparse.ArgumentParser`. A management command hands over the parser that Django makes,
``amesh`` a parser of its own. So nothing is translated between the two, and neither needs a further package.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from authmesh.protocol.errors import AmeshError

from .context import Context
from .terminal.errors import INTERRUPTED_CODE, ExitingError, Interrupted
from .terminal.logs import shown_warnings

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
_MAX_COLUMNS = 100


@dataclass(frozen=True, slots=True)
class Command:
    """A command of both front ends.

    Attributes:
        name: with dashes, such as ``sign-test``.
        summary: one sentence for the list of commands.
        run: called with the context, and with each option as a keyword argument.
        arguments: adds the options and arguments of this command to a parser.
        details: paragraphs for ``--help``.
        asks: True if it asks questions, so that ``--no-input`` is an option.
        steps: True if its ``--json`` prints one line for each step.
    """

    name: str
    summary: str
    run: Callable[..., None]
    arguments: Callable[[ArgumentParser], None] = lambda parser: None
    details: tuple[str, ...] = ()
    asks: bool = False
    steps: bool = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options and arguments of this command, and those that every command has."""
        self.arguments(parser)
        if self.asks:
            parser.add_argument("--no-input", action="store_true", help="Do not prompt; answer no to every question.")
        steps = "Print one JSON line for each step, for a program that answers with lines on stdin;"
        document = "Print one JSON document for programs;"
        parser.add_argument(
            "--json",
            action="store_true",
            help=f"{steps if self.steps else document} warnings and errors are JSON lines on stderr.",
        )

    def options(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of :attr:`run` among all that a parser has found."""
        _, *names = inspect.signature(self.run).parameters
        return {name: parsed[name] for name in names}

    @property
    def description(self) -> str:
        """Summary and details, wrapped for the terminal."""
        columns = min(shutil.get_terminal_size().columns - 2, _MAX_COLUMNS)
        return "\n\n".join(textwrap.fill(paragraph, columns) for paragraph in (self.summary, *self.details))


def add_yes(parser: ArgumentParser, help: str = "Do not ask for confirmation.") -> None:
    """Add the option that answers the question of a command."""
    parser.add_argument("--yes", "-y", action="store_true", help=help)


class Failure(NamedTuple):
    """The end of a command that did not succeed."""

    exit_code: int
    code: str
    message: str


def attempt(
    command: Command,
    context: Context,
    options: dict[str, Any],
    *,
    run: Callable[..., None] | None = None,
    translate: Callable[[Exception], AmeshError | None] = lambda error: None,
) -> Failure | None:
    """Run a command; return a failure instead of raising what a person, a file or the network can cause.

    Args:
        command: the command.
        context: its surroundings.
        options: its own options by name.
        run: called in place of :attr:`Command.run`, if a front end does more.
        translate: returns a better error for one that only the front end knows, or None.

    Returns:
        None if the command succeeded. The front end prints a failure.
    """
    console = context.console
    with shown_warnings(console.warn, owns_terminal=console.owns_terminal):
        try:
            (run or command.run)(context, **options)
        except KeyboardInterrupt as interrupt:
            message = interrupt.message if isinstance(interrupt, Interrupted) else "Interrupted."
            return Failure(INTERRUPTED, INTERRUPTED_CODE, console.text(message))
        except BrokenPipeError:
            raise
        except Exception as error:
            known = translate(error) or error
            if isinstance(known, AmeshError):
                exit_code = known.exit_code if isinstance(known, ExitingError) else FAILED
                return Failure(exit_code, known.code, known.text(console.spell))
            if isinstance(known, OSError):
                place = f"{known.filename}: " if known.filename else ""
                why = known.strerror or str(known)
                return Failure(FAILED, "os_error", f"{place}{why}. Check the path, its owner and its permissions.")
            raise
    return None

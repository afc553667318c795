"""The ``amesh`` application: a parser for all commands, and a device in a directory."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from authmesh.device import default_directory
from authmesh.files.storage import expanded
from authmesh.protocol.display import without_tokens
from authmesh.protocol.errors import AmeshError

from .completion import SHELLS, script
from .context import Context
from .home import FileHome
from .registry import COMMANDS
from .spec import FAILED, INTERRUPTED, WRONG_USAGE, Command, attempt
from .terminal.console import forget_stdout
from .terminal.errors import INTERRUPTED_CODE, OutputFailed, UsageProblem
from .terminal.rich_console import RichConsole

_SUMMARY = "Trust between devices: the identity of this device, the devices that it trusts, and signed requests."


#: Commands that only a list in a database has.
SERVER_COMMANDS = ("approve", "deny", "suspend", "lift", "reinstate", "group", "map", "purge", "prune")


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage without repeating a bootstrap token.

    Args:
        as_json: report it as JSON.
    """

    def __init__(self, *, as_json: bool, **options: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]
        self._as_json = as_json

    def error(self, message: str) -> NoReturn:
        if self._as_json:
            RichConsole(as_json=True).error(UsageProblem.code, message)
            sys.exit(WRONG_USAGE)
        super().error(without_tokens(message))


def _show_help(context: Context, *, command: str | None) -> None:
    """Print the help of amesh, or of a command."""
    parser, found = parsers()
    text = (found[command] if command else parser).format_help()
    context.console.data(text.rstrip("\n"))
    context.console.result({"command": command, "help": text})


def _show_completion(context: Context, *, shell: str) -> None:
    """Print the script that completes command lines in a shell."""
    text = script(shell, *parsers())
    context.console.data(text)
    context.console.result({"shell": shell, "script": text})


def _help_arguments(parser: argparse.ArgumentParser) -> None:
    names = [command.name for command in (*COMMANDS, *_OWN)]
    parser.add_argument("command", metavar="COMMAND", nargs="?", choices=names, help="Name of a command.")


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish.")


#: Commands of this front end. Django has its own help and its own completion for manage.py.
_OWN = (
    Command(
        "completion",
        "Print a script that completes amesh in bash, zsh or fish.",
        _show_completion,
        _completion_arguments,
        details=(
            "In bash: source <(amesh completion bash). In zsh, after compinit: source <(amesh completion zsh). In fish: amesh completion "
            "fish | source. Add that line to the file that the shell reads when it starts.",
        ),
    ),
    Command("help", "Show the help of amesh or of a command.", _show_help, _help_arguments),
)


def parsers(*, as_json: bool = False) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of ``amesh``, and the parsers of its commands by name.

    Args:
        as_json: report wrong usage as JSON.
    """
    parser = Parser(prog="amesh", description=_SUMMARY, as_json=as_json)
    parser.add_argument("--version", action="store_true", help="Print the version and exit.")
    _add_directory(parser, default=None)
    commands = parser.add_subparsers(title="commands", dest="subcommand", metavar="COMMAND")
    found = {}
    for command in (*COMMANDS, *_OWN):
        description = command.description
        sub = commands.add_parser(command.name, help=command.summary, description=description, as_json=as_json)
        command.add_arguments(sub)
        _add_directory(sub, default=argparse.SUPPRESS)  # if it is omitted, the one before the command stands
        found[command.name] = sub
    return parser, found


def _add_directory(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        default=default,
        help="Device directory. Defaults to AMESH_DIR or AUTH_MESH_DIR, or ~/.amesh if neither is set.",
    )


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        the exit code: 0 done, 1 rejected or failed, 2 wrong usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    as_json = "--json" in arguments
    try:
        try:
            code = _run(arguments, as_json)
        except SystemExit as done:  # of argparse: help, or wrong usage
            code = done.code if isinstance(done.code, int) else FAILED
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        RichConsole(as_json=as_json).error(INTERRUPTED_CODE, "Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has ended, such as head
        forget_stdout()
        return FAILED
    except (OSError, OutputFailed) as error:  # what was left to write, or an error
        forget_stdout()
        failure = error if isinstance(error, OutputFailed) else OutputFailed.because_of(error)
        with contextlib.suppress(OSError, OutputFailed):
            RichConsole(as_json=as_json).error(failure.code, failure.text())
        return FAILED


def _run(arguments: Sequence[str], as_json: bool) -> int:
    parser, subparsers = parsers(as_json=as_json)
    if arguments and arguments[0] in SERVER_COMMANDS:
        parser.error(
            f"{arguments[0]} is a command of a Django server only: the list in a file has neither states nor groups. Nothing was changed."
        )
    found, unknown = parser.parse_known_args(arguments)
    if found.version:
        print(f"amesh {_version()}")
        return 0
    if found.subcommand is None:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    if unknown:
        subparsers[found.subcommand].error(f"unrecognized arguments: {' '.join(unknown)}")
    options = vars(found)
    console = RichConsole(as_json=options["json"], no_input=options.get("no_input", False))
    command = next(command for command in (*COMMANDS, *_OWN) if command.name == found.subcommand)
    try:
        home = FileHome(Path() if command in _OWN else expanded(found.dir or default_directory()))
    except AmeshError as error:
        console.error(error.code, error.text(console.spell))
        return FAILED
    failure = attempt(command, Context(console, home), command.options(options))
    if failure is None:
        return 0
    console.error(failure.code, failure.message)
    return failure.exit_code


def _version() -> str:
    from importlib.metadata import version  # quick start: only --version needs it

    return version("amesh-django")

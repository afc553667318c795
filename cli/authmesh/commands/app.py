"""The ``amesh`` application: click's commands, made from the ones that both front ends share."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from authmesh.device import FileAllowList, LocalDevice, default_directory
from authmesh.files.storage import expanded
from authmesh.protocol.display import without_tokens
from authmesh.protocol.errors import AmeshError

from . import COMMANDS, Command, Context, Option, attempt, forget_stdout
from .terminal.rich_console import RichConsole

_TYPES: dict[str, click.ParamType[Any]] = {"text": click.STRING, "number": click.INT, "seconds": click.FLOAT}
_DIRECTORY_HELP = "Device directory; else AUTH_MESH_DIR, else ~/.amesh."


def _parameter(option: Option) -> click.Parameter:
    """What click makes of an option."""
    settings: dict[str, Any] = {"required": option.required}
    if option.default is not None:  # click takes even None for a value that was given
        settings["default"] = option.default
    if option.kind not in ("flag", "switch"):
        settings["type"] = click.Choice(option.choices) if option.choices else _TYPES[option.kind]
        settings["metavar"] = option.metavar
    if option.is_argument:
        if not option.required:
            settings["metavar"] = f"[{option.metavar}]"
        return click.Argument([option.name], **settings)
    flags = list(option.flags)
    if option.kind == "switch":
        flags[0] = f"{flags[0]}/--no-{flags[0][2:]}"
        settings["default"] = None
    elif option.kind == "flag":
        settings["is_flag"] = True
    return click.Option([option.name, *flags], help=option.help, multiple=option.multiple, **settings)


def _help(command: Command) -> str:
    arguments = [option for option in command.options if option.is_argument]
    lines = [f"{option.metavar}: {option.help}" for option in arguments]
    return "\n\n".join([command.summary, *lines, *command.details])


def _context(console: RichConsole, directory: Path) -> Context:
    device = functools.cache(lambda: LocalDevice(directory))
    return Context(
        console=console,
        directory=directory,
        device=device,
        allow_list=lambda: FileAllowList(device()),
        command=lambda name: f"amesh {name}",
    )


def _click_command(command: Command) -> click.Command:
    def run(directory: Path | None, **options: Any) -> None:
        console = RichConsole(as_json=options.pop("json"), no_input=options.pop("no_input", False))
        above = click.get_current_context().find_root().params["directory"]
        try:
            path = expanded(directory or above or default_directory())
        except AmeshError as error:
            console.error(error.code, str(error))
            sys.exit(1)
        failure = attempt(command, _context(console, path), options)
        if failure is not None:
            console.error(failure.code, failure.message)
            sys.exit(failure.exit_code)

    parameters = [_parameter(option) for option in (*command.options, *command.common)]
    return click.Command(
        command.name,
        params=[*parameters, _directory_option()],
        callback=run,
        help=_help(command),
        short_help=command.summary,
    )


def _directory_option() -> click.Option:
    return click.Option(["directory", "--dir"], type=click.Path(path_type=Path), metavar="DIR", help=_DIRECTORY_HELP)


@click.group(
    params=[_directory_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(None, "--version", package_name="amesh-django", prog_name="amesh", message="%(prog)s %(version)s")
def amesh(directory: Path | None) -> None:
    """Trust between devices: this device's identity, whom it trusts, and signed requests."""


for _command in COMMANDS:
    amesh.add_command(_click_command(_command))


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        the exit code: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show a character must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        amesh.main(args=list(arguments), prog_name="amesh", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        if "--json" in arguments:
            RichConsole(as_json=True).error("usage", error.format_message())
        else:
            shown = io.StringIO()
            error.show(file=shown)
            click.echo(without_tokens(shown.getvalue()), err=True, nl=False)
        return error.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        RichConsole(as_json="--json" in arguments).error("interrupted", "Interrupted.")
        return 130
    except BrokenPipeError:  # whoever read us has seen enough, such as head
        forget_stdout()
        return 1
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    return 0

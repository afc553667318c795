"""Scripts that complete a command line of ``amesh`` in bash, zsh and fish, made from its argument parsers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "DIR")


class Argument(NamedTuple):
    """An option, or an argument without a flag.

    Attributes:
        flags: its spellings; empty for an argument.
        help: its description.
        takes_value: True for an option with a value.
        choices: its values, if they are listed.
        metavar: name of its value.
        repeats: True if it may be given several times.
    """

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]
    metavar: str
    repeats: bool


def arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    """Yield the options and arguments of a parser, without its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        choices = tuple(map(str, action.choices or ()))
        description = (action.help or "") % {**vars(action), "prog": parser.prog}
        repeats = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        yield Argument(tuple(action.option_strings), description, action.nargs != 0, choices, metavar, repeats)


def script(shell: str, parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the script for a shell.

    Args:
        shell: one of :data:`SHELLS`.
        parser: the parser of ``amesh``.
        commands: the parsers of its commands by name.
    """
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return make(
        list(arguments(parser)), {name: (_summary(sub), list(arguments(sub))) for name, sub in commands.items()}
    )


def _summary(parser: argparse.ArgumentParser) -> str:
    return " ".join((parser.description or "").partition("\n\n")[0].split())


_Commands = Mapping[str, tuple[str, list[Argument]]]


def _bash(own: list[Argument], commands: _Commands) -> str:
    values, words = [], []
    for name, (_, found) in {"": ("", own), **commands}.items():
        for argument in found:
            if argument.flags and argument.takes_value:
                patterns = " | ".join(shlex.quote(f"{name} {flag}") for flag in argument.flags)
                values.append(f"        {patterns}) words={shlex.quote(' '.join(argument.choices))} ;;")
        shown = [word for argument in found for word in argument.flags or argument.choices]
        words.append(
            f"            {name or chr(39) * 2}) words={shlex.quote(' '.join([*shown, *([] if name else commands)]))} ;;"
        )
    return "\n".join(
        (
            "# Completes amesh in bash. Load it with: source <(amesh completion bash)",
            "_amesh() {",
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= i",
            "    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi",
            "    for ((i = 1; i < COMP_CWORD; i++)); do",
            "        case ${COMP_WORDS[i]} in",
            "            --dir) ((i++)) ;;",
            "            -* | =) ;;",
            "            *) command=${COMP_WORDS[i]}; break ;;",
            "        esac",
            "    done",
            '    case "$command $prev" in',
            *values,
            "        *) case $command in",
            *words,
            "        esac ;;",
            "    esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
            "}",
            "complete -o bashdefault -o default -F _amesh amesh",
        )
    )


def _zsh(own: list[Argument], commands: _Commands) -> str:
    names = [shlex.quote(f"{name}:{_zsh_text(summary)}") for name, (summary, _) in commands.items()]
    lines = [
        "#compdef amesh",
        "# Completes amesh in zsh. Load it with: source <(amesh completion zsh)",
        "_amesh() {",
        "    local curcontext=$curcontext state line",
        "    typeset -A opt_args",
        "    _arguments -C " + " ".join([*_zsh_specs(own), "'1:command:->command'", "'*::argument:->argument'"]),
        "    case $state in",
        "        command)",
        "            local -a commands=(" + " ".join(names) + ")",
        "            _describe command commands ;;",
        "        argument)",
        "            case $words[1] in",
    ]
    for name, (_, found) in commands.items():
        lines.append(f"                {name}) _arguments " + " ".join(_zsh_specs(found)) + " ;;")
    return "\n".join(
        [
            *lines,
            "            esac ;;",
            "    esac",
            "}",
            'if [[ $funcstack[1] == _amesh ]]; then _amesh "$@"; else compdef _amesh amesh; fi',
        ]
    )


def _zsh_text(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return text


def _zsh_specs(found: list[Argument]) -> Iterator[str]:
    for argument in found:
        value = f":{argument.metavar}:"
        if argument.choices:
            value += f"({' '.join(argument.choices)})"
        elif argument.metavar in _FILES:
            value += "_files"
        else:
            value += " "
        if not argument.flags:
            yield shlex.quote(f"*{value}" if argument.repeats else f":{value}")  # two colons: it may be omitted
            continue
        together = "*" if argument.repeats else f"({' '.join(argument.flags)})"
        for flag in argument.flags:
            yield shlex.quote(f"{together}{flag}[{_zsh_text(argument.help)}]{value if argument.takes_value else ''}")


_FISH_START = """\
# Completes amesh in fish. Load it with: amesh completion fish | source
function __amesh_command
    set -l words (commandline -opc)[2..]
    while set -q words[1]
        switch $words[1]
            case --dir
                set -q words[2]; and set -e words[1]
            case '-*'
            case '*'
                echo $words[1]
                return 0
        end
        set -e words[1]
    end
    return 1
end"""


def _fish(own: list[Argument], commands: _Commands) -> str:
    lines = [_FISH_START, "complete -c amesh -f"]
    top = "'not __amesh_command >/dev/null'"
    lines += [_fish_line(top, argument) for argument in own]
    for name, (summary, found) in commands.items():
        lines.append(f"complete -c amesh -n {top} -a {name} -d {_fish_quoted(summary)}")
        within = _fish_quoted(f"contains {name} (__amesh_command)")
        lines += [_fish_line(within, argument) for argument in found if argument.flags or argument.choices]
    return "\n".join(lines)


def _fish_line(condition: str, argument: Argument) -> str:
    line = f"complete -c amesh -n {condition}"
    for flag in argument.flags:
        line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
    if argument.flags and argument.takes_value:
        line += " -r -F" if argument.metavar in _FILES else " -x"
    if argument.choices:
        line += f" -a {_fish_quoted(' '.join(argument.choices))}"
    return f"{line} -d {_fish_quoted(argument.help)}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

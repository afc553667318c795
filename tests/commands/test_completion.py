"""`amesh help` and `amesh completion`, whose scripts are loaded by the real shells."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from authmesh.commands.app import parsers
from authmesh.commands.completion import SHELLS
from authmesh.commands.registry import COMMANDS
from tests.support import services
from tests.support.front_ends import invoke
from tests.support.terminal import terminal

#: What is typed, what must be offered, and what must not.
CASES = [
    ("", ["init", "export-key", "fetch", "help"], ["--backend"]),
    ("--dir /tmp rev", ["revoke"], ["init"]),
    ("init --", ["--name", "--backend", "--json", "--dir"], ["--relay"]),
    ("init --backend ", ["encrypted-file", "tpm2"], ["--name", "init"]),
    ("init --name x --backend tpm", ["tpm2"], ["encrypted-file"]),
    ("trust LINE --role ", ["controller", "target"], []),
    ("completion ", list(SHELLS), ["init"]),
    ("help lis", ["list", "listen"], ["init"]),
    ("grant x --no", ["--no-shell"], []),
]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    for shell in SHELLS:
        (tmp_path / shell).write_text(invoke(["completion", shell]).stdout)
    return tmp_path


def offered_by_bash(scripts: Path, line: str) -> list[str]:
    words = ["amesh", *line.split(" ")]
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); set -u; _amesh; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        [services.program("bash", package="bash"), "--norc", "-c", ask, "bash", scripts / "bash", *words],
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.stdout.split()


def offered_by_fish(scripts: Path, line: str) -> list[str]:
    ask = f"source {scripts / 'fish'}; complete -C 'amesh {line}'"
    done = subprocess.run(
        [services.program("fish", package="fish"), "--no-config", "-c", ask],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(scripts)},
    )
    assert not done.stderr
    return [row.split("\t")[0] for row in done.stdout.splitlines()]


@pytest.mark.process
@pytest.mark.parametrize(("line", "offered", "hidden"), CASES, ids=[line or "nothing" for line, _, _ in CASES])
def test_bash_and_fish_offer_what_fits(scripts: Path, line: str, offered: list[str], hidden: list[str]) -> None:
    for found in (offered_by_bash(scripts, line), offered_by_fish(scripts, line)):
        assert set(offered) <= set(found)
        assert not set(hidden) & set(found)


@pytest.mark.process
def test_bash_completes_a_value_after_an_equals_sign(scripts: Path) -> None:
    assert offered_by_bash(scripts, "init --backend = tp") == ["tpm2"]  # bash splits the word there


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_person_presses_tab(scripts: Path, shell: str) -> None:
    start = {
        "bash": ["bash", "--norc", "--noprofile", "-i"],
        "zsh": ["zsh", "-f", "-i"],
        "fish": ["fish", "--no-config"],
    }[shell]
    load = f"source {scripts / shell}"
    if shell == "zsh":
        load = f"autoload -Uz compinit; compinit -u -d {scripts / 'dump'}; {load}"
    env = {"HOME": str(scripts), "PS1": "$ ", "HISTFILE": ""}
    with terminal([services.program(shell, package=shell), *start[1:]], env, cwd=scripts) as person:
        person.type(f"{load}; echo lo''aded\n")
        person.expect("loaded")
        person.type(
            "echo; function amesh; echo 'got:' $argv; end\n" if shell == "fish" else "amesh() { echo got: $*; }\n"
        )
        person.type("amesh exp\t")
        person.expect("export-key")
        person.type("--js\t")
        person.expect("--json")
        person.type("\n")
        person.expect("got: export-key --json")
        person.type("exit\n")


def test_the_scripts_have_every_command_and_option() -> None:
    parser, found = parsers()
    flags = {flag for sub in (parser, *found.values()) for flag in sub._option_string_actions if flag.startswith("--")}
    for shell in SHELLS:
        text = invoke(["completion", shell]).stdout
        missing = {name for name in found if name not in text}
        missing |= {flag for flag in flags if (f"-l {flag[2:]} " if shell == "fish" else flag) not in text}
        assert not missing, shell


def test_help_of_amesh_and_of_a_command(tmp_path: Path) -> None:
    parser, found = parsers()
    assert set(found) == {command.name for command in COMMANDS} | {"help", "completion"}
    shown = invoke(["help"])
    assert (shown.exit_code, shown.stdout) == (0, parser.format_help())
    shown = invoke(["help", "revoke"])
    assert (shown.exit_code, shown.stdout) == (0, found["revoke"].format_help())
    assert json.loads(invoke(["help", "revoke", "--json"]).stdout)["command"] == "revoke"
    assert json.loads(invoke(["completion", "bash", "--json"]).stdout)["script"].startswith("# Completes amesh")
    wrong = invoke(["help", "nothing"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    both = {"AMESH_DIR": "one", "AUTH_MESH_DIR": "two"}
    assert invoke(["help"], **both).exit_code == 0

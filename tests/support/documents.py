"""Documents as data: their blocks, each with its instructions, their headings and links; and a stage that plays them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.test import override_settings

from tests.support import hosts, services
from tests.support.databases import as_default
from tests.support.documents_pairing import play_pairing
from tests.support.forked_python import BIN, ForkedPython
from tests.support.services import ROOT
from tests.support.terminal import Terminal, terminal

#: These also describe parts that are not built yet, so the names in them need not exist.
PLANS = [ROOT / "docs" / name for name in ("design.md", "protocol.md")]
DOCUMENTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")] + [
    path for path in sorted((ROOT / "docs").glob("*.md")) if path not in PLANS
]

_FENCE = re.compile(r"^ *```(\w*)$")
_MARKER = re.compile(r"^ *<!-- ([a-z ]+?)(?:: (.*))? -->$")
_HEADING = re.compile(r"^(#+) (.+)$")
#: Values in a document that differ in each run: device IDs and lines of export-key.
_DIFFERENT = re.compile(r"am_[A-Za-z0-9_-]{16}(?![A-Za-z0-9_-])|amesh-key-v1\.[A-Za-z0-9_-]{44}\.[^.\s]+\.[0-9a-f]{8}")
#: Ports that a document may name: servers of Django, Redis, and a relay.
_PORT = re.compile(r"\b(?:8\d{3}|6379|3001)\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
_ANSWER = re.compile(r"(\[y/N\]) (\S+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment above it, which says how the block is played.

    `kind` and `words` are the two sides of the colon in `<!-- run: server, exit 1 -->`. Without a comment, both are empty.
    """

    document: str
    line: int
    section: str
    language: str
    kind: str
    words: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Commands of a console block, each with the lines of output that the document shows."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found


def blocks(path: Path, *, root: Path = ROOT) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found, section, marker = [], "", ("", "")
    lines = enumerate(path.read_text().splitlines(), 1)
    for number, line in lines:
        if fence := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner)
            text = "".join(f"{inner}\n" for inner in body)
            found.append(Block(str(path.relative_to(root)), number, section, fence[1], *marker, text))
            marker = ("", "")
        elif comment := _MARKER.match(line):
            marker = (comment[1], comment[2] or "")
        elif heading := _HEADING.match(line):
            section, marker = heading[2], ("", "")
        elif line.strip():
            marker = ("", "")
    return found


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^ *```\w*\n.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and GitLab make them."""
    found = set()
    for match in re.finditer(r"^#+ (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1]).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


@dataclass
class Machine:
    """One of the machines of a document. It has its own home directory, and so its own `~/.amesh`."""

    home: Path
    place: Path


class Stage:
    """Plays a document: writes its files, runs its commands in order, and compares their output.

    Each port in the document is replaced by a free one. Device IDs and keys are learned when they first appear.

    Args:
        folder: the folder for all files.
        ports: the real ports of those that the document names, if they are not free ones.
        forked: run Python programs with the fork server, which takes less time than starting Python for each of them.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int] | None = None, *, forked: bool = False) -> None:
        self._folder = folder
        self._ports: dict[str, int] = dict(ports or {})
        self._known: dict[str, str] = {}
        self._machines: dict[str, Machine] = {}
        self._servers: dict[str, services.Server] = {}
        self._servers_of: dict[str, services.Server] = {}
        self._stack = ExitStack()
        self._output = ""
        self._listening: Block | None = None
        self._programs = folder / "programs"
        self._path = [str(self._programs), str(BIN), os.environ["PATH"]]
        if forked:
            self._path.insert(1, str(self._stack.enter_context(ForkedPython(folder)).folder))

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        assert error[0] is not None or self._listening is None, f"{self._listening} has no second block to pair with"

    def machine(self, name: str) -> Machine:
        if name not in self._machines:
            home = self._folder / name
            (home / "project").mkdir(parents=True)
            self._machines[name] = Machine(home, home / "project")
        return self._machines[name]

    def play(self, block: Block) -> None:
        """Play a block as its comment says."""
        try:
            assert block.words or block.kind in ("output", "settings"), "the comment above it is incomplete or missing"
            match block.kind:
                case "run":
                    self._run(block)
                case "pair":
                    self._pair(block)
                case "serve":
                    self._serve(block)
                case "file" | "add":
                    self._write(block)
                case "python" | "shell":
                    self._python(block)
                case "output":
                    self._compare(block.text.splitlines(), self._output)
                case "log":
                    self._compare(block.text.splitlines(), self._servers_of[block.words].output())
                case "settings":
                    _check_settings(block.text)
                case "not run":
                    pass
                case _:
                    raise AssertionError(f"there is no way to play {block.kind!r}")
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"{block} ({block.section}): {error}") from None

    # --- the kinds of blocks ---------------------------------------------------------------------------------------------

    def _run(self, block: Block) -> None:
        name, _, rest = block.words.partition(", exit ")
        for command, shown in block.commands:
            found = self.execute(name, command, exit_code=int(rest or 0), answers=_answers(shown))
            self._compare(shown, found)

    def execute(self, name: str, command: str, *, exit_code: int = 0, answers: str = "") -> str:
        """Run one command on a machine, and return its output on both streams."""
        machine = self.machine(name)
        if "ssh " in command:
            self._start_hosts()
        done = subprocess.run(
            ["bash", "-c", self._here(command)],
            cwd=machine.place,
            env=self._environment(machine),
            input=answers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == exit_code, f"`{command}` ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _pair(self, block: Block) -> None:
        """Play two blocks together: the screen of the target, then that of the controller."""
        if self._listening is None:
            self._listening = block
            return
        listening, self._listening = self._listening, None
        for shown, found in play_pairing(self, listening, block):
            self._compare([_PORT.sub(lambda match: str(self._port(match[0])), line) for line in shown], found)

    def at(self, name: str, command: str) -> AbstractContextManager[Terminal]:
        """Start a command at a terminal of a machine."""
        machine = self.machine(name)
        environment = {**self._environment(machine), "TERM": "xterm-256color"}
        argv = [
            "env",
            "-i",
            *(f"{key}={value}" for key, value in environment.items()),
            "bash",
            "-c",
            self._here(command),
        ]
        return terminal(argv, {}, cwd=machine.place)

    def _serve(self, block: Block) -> None:
        ((command, _),) = block.commands
        machine = self.machine(block.words)
        port = _PORT.findall(command)[-1]
        if port in self._servers:
            self._servers[port].stop()
        real = self._port(port)
        environment = [f"{name}={value}" for name, value in self._environment(machine).items()]
        argv = ["env", "-i", *environment, "bash", "-c", f"exec {self._here(command)}"]
        server = self._stack.enter_context(services.serve(argv, port=real, cwd=machine.place))
        self._servers[port] = self._servers_of[block.words] = server

    def _write(self, block: Block) -> None:
        name, path = block.words.split()
        file = self.machine(name).place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = self._here(block.text)
        file.write_text(file.read_text() + "\n" + text if block.kind == "add" else text)

    def _python(self, block: Block) -> None:
        machine = self.machine(block.words)
        argv = [sys.executable, "-"]
        if block.kind == "shell":
            argv = [sys.executable, "manage.py", "shell", "--verbosity=0"]
        done = subprocess.run(
            argv,
            cwd=machine.place,
            env=self._environment(machine),
            input=self._here(block.text),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
        self._output = done.stdout

    # --- translation between the document and this run ------------------------------------------------------------------

    def _environment(self, machine: Machine) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not _is_ours(name)}
        kept["AMESH_TPM_TCTI"] = "none"  # the documents show a machine without a TPM
        return {**kept, "PATH": os.pathsep.join(self._path), "HOME": str(machine.home)}

    def _start_hosts(self) -> None:
        """Start the process in which `ssh HOST amesh …` runs, and wait for it."""
        if self._programs.exists():
            return
        path = self._folder / "hosts.sock"
        hosts.write_program(self._programs, path)
        kept = {name: value for name, value in os.environ.items() if not _is_ours(name)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hosts", str(path), str(self._folder / "hosts")],
            cwd=ROOT,
            env={**kept, "AMESH_TPM_TCTI": "none"},
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        deadline = time.monotonic() + services.START_SECONDS
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline, "the process with the hosts did not start"
            time.sleep(0.02)

    def _port(self, shown: str) -> int:
        if shown not in self._ports:
            self._ports[shown] = services.free_port()
        return self._ports[shown]

    def _here(self, text: str) -> str:
        text = _PORT.sub(lambda match: str(self._port(match[0])), text)
        return _DIFFERENT.sub(lambda match: self._known.get(match[0], match[0]), text)

    def _compare(self, shown: list[str], found: str) -> None:
        """Check that each line of the document occurs, in order. `…` matches anything, and lines in between may be omitted."""
        position = 0
        for line in shown:
            if not line.strip():
                continue
            text = _ANSWER.sub(r"\1", line.strip())
            match = re.compile(self._pattern(text)).search(found, position)
            assert match, f"the output has no line like this:\n    {line}\nThe output:\n{found}"
            position = match.end()
            names = [shown_name for shown_name in _DIFFERENT.findall(text) if shown_name not in self._known]
            self._known.update(zip(dict.fromkeys(names), match.groups(), strict=True))

    def _pattern(self, text: str) -> str:
        """Return the line as a regular expression, with a group for each value that is not known yet."""
        pattern, last, learned = "", 0, list[str]()
        for match in _DIFFERENT.finditer(text):
            pattern += _loose(text[last : match.start()])
            last = match.end()
            if match[0] in self._known:
                pattern += re.escape(self._known[match[0]])
            elif match[0] in learned:
                pattern += rf"\{learned.index(match[0]) + 1}"
            else:
                learned.append(match[0])
                pattern += r"(am_[\w-]{16})" if match[0].startswith("am_") else r"(amesh-key-v1\.\S+)"
        return pattern + _loose(text[last:])


def _loose(text: str) -> str:
    """Return a regular expression that allows any amount of white space, any time, and anything for an ellipsis."""
    pattern = re.escape(_TIME.sub("\0", text)).replace("\0", _TIME.pattern).replace("…", ".*")
    return re.sub(r"(?:\\ )+", r"\\s+", pattern)


def _check_settings(text: str) -> None:
    from amesh_django import checks, conf  # after Django is set up

    found: dict[str, Any] = {"BASE_DIR": Path("/nowhere")}
    exec(text, found)  # noqa: S102 -- our own documents
    if "DATABASES" in found:
        with as_default(found["DATABASES"]["default"]):
            assert not checks.check_connections(None)
        return
    with override_settings(AMESH=found["AMESH"]):
        assert not conf.problems(), conf.problems()


def _answers(shown: list[str]) -> str:
    found = [match[2] for line in shown if (match := _ANSWER.search(line))]
    return "".join(f"{answer}\n" for answer in found)


def _is_ours(name: str) -> bool:
    return name.startswith(("AMESH", "AUTH_MESH", "DJANGO", "PYTEST", "TEST_")) or name in ("REDIS_URL", "VIRTUAL_ENV")

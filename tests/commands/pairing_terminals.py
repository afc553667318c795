"""Two machines whose operators pair at terminals. Each has a front end, a device, and a list in a file or a database."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from authmesh.files.clock import utc_now
from authmesh.pairing import ControllerOperator, Met, Pairing, TargetOperator, Timeouts
from authmesh.protocol.allow_list import DeviceEntry
from tests.pairing.hostile_relay import HostileRelay
from tests.pairing.pairing_people import MemoryDevice
from tests.pairing.pairing_world import MemoryAllowList
from tests.support import cheap_keys, databases, fork_server
from tests.support.front_ends import id_of, line_of
from tests.support.terminal import Terminal, terminal

T = TypeVar("T")
#: A slow machine must not fail a test.
PATIENT = Timeouts(connect=30, relay=30, peer=60, message=30, person=60, farewell=2)

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "socks_proxy", "ws_proxy", "wss_proxy")
#: What a terminal must never get from anybody's name.
STEERING = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e")


@dataclass
class Machine:
    """A machine.

    Attributes:
        device: its identity.
        path: its device directory.
        relay: address of the relay.
        database: of a Django server; None for the command line.
    """

    device: EphemeralDevice
    path: Path
    relay: str
    database: Mapping[str, str] | None = None
    more: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
        ours = {"AUTH_MESH_DIR": str(self.path), "AMESH_RELAY_URL": self.relay, "PYTHONWARNINGS": "error"}
        if self.database is not None:
            ours |= {"DJANGO_SETTINGS_MODULE": "tests.settings", **databases.environment(self.database)}
        return {**kept, **ours, **self.more}

    @property
    def id(self) -> str:
        return id_of(self.device)

    def call(self, name: str) -> str:
        """Return the spelling of a command on this machine."""
        return f"amesh {name}" if self.database is None else f"manage.py amesh_{name}"

    def argv(self, *words: str) -> list[str]:
        name, *rest = words
        return cheap_keys.argv(self.database is not None, name, *rest)

    @contextmanager
    def at(self, *words: str, **options: Any) -> Iterator[Terminal]:
        """Run a command on a terminal that is wide enough for every sentence."""
        with terminal(self.argv(*words), self.env, **{"columns": 300, **options}) as person:
            yield person

    def run(self, *words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command without a terminal."""
        return fork_server.run(self.argv(*words), env={**self.env, **more}, input=given, timeout=60)

    def start(self, *words: str, stdin: int = subprocess.PIPE, **more: str) -> fork_server.Process:
        """Start a command without a terminal, and do not wait for its end."""
        pipe = subprocess.PIPE
        return fork_server.start(self.argv(*words), env={**self.env, **more}, stdin=stdin, stdout=pipe, stderr=pipe)

    def trust(self, other: EphemeralDevice, role: str = "controller", *words: str) -> None:
        done = self.run("trust", line_of(other), "--role", role, "--yes", *words)
        assert done.returncode == 0, done.stderr

    def listed(self) -> dict[str, DeviceEntry]:
        """Return the trusted devices, as another process reads them."""
        if self.database is None:
            entries = FileAllowList(LocalDevice(self.path, environ={})).read()
        else:
            entries = [
                DeviceEntry.from_json(entry) for entry in json.loads(self.run("list", "--json").stdout)["devices"]
            ]
        return {entry.device_id: entry for entry in entries}


def machine(folder: Path, name: str, relay: str, database: Mapping[str, str] | None = None, **identity: Any) -> Machine:
    """Return a machine with a new device of that name."""
    device = EphemeralDevice(name)
    path = folder / f"device-{device.identity.device_id}"
    device.write(path, **identity)
    return Machine(device, path, relay, database)


def code_on(person: Terminal, title: str) -> str:
    """Return the six digits that are shown after a title."""
    person.expect(f"{title}  ")
    person.expect("\n")
    found = re.findall(rf"{title}  (\d{{3}}) (\d{{3}})\s", person.shown)
    return "".join(found[-1])


def one_time_code(person: Terminal) -> str:
    code = code_on(person, "One-time code")
    person.expect(f"amesh invite {code}")
    return code


def verification_code(person: Terminal) -> str:
    return code_on(person, "Verification code")


def wrong(code: str) -> str:
    """Return another code."""
    return f"{(int(code) + 1) % 1_000_000:06d}"


@contextmanager
def introduced(
    target: Machine, controller: Machine, listen: Sequence[str] = (), invite: Sequence[str] = (), **options: Any
) -> Iterator[tuple[Terminal, Terminal, str]]:
    """Yield the terminals of target and controller, and the verification code, when the target asks for it."""
    with target.at("listen", *listen, **options) as there:
        code = one_time_code(there)
        with controller.at("invite", code, *invite, **options) as here:
            shown = verification_code(here)
            there.expect("Verification code: ")
            yield there, here, shown


def is_calm(person: Terminal) -> bool:
    """Return True if the terminal shows colors and words only, and has its original settings."""
    import termios

    flags = termios.tcgetattr(person.master)[3]
    as_found = bool(flags & termios.ECHO) and bool(flags & termios.ICANON)
    noise = {"\x1b", "Traceback", "ResourceWarning", "Exception ignored"}
    return as_found and not [text for text in noise if text in person.shown]


def rest(process: fork_server.Process, given: str = "") -> tuple[str, str]:
    """Return what comes on both streams until the end. `communicate` would lose what was read ahead with the last line."""
    assert process.stdout and process.stderr
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.close()
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(60)
    process.stdout.close()
    process.stderr.close()
    return out, err


@dataclass
class Program:
    """A program that drives `--json`: it reads steps and answers questions."""

    process: fork_server.Process
    steps: list[dict[str, Any]] = field(default_factory=list)

    def until(self, step: str) -> dict[str, Any]:
        """Return the next step of that name. All steps are kept."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.steps.append(json.loads(line))
            if self.steps[-1]["step"] == step:
                return self.steps[-1]
        assert self.process.stderr is not None
        raise AssertionError(f"{step!r} did not come, but {self.steps} and {self.process.stderr.read()}")

    def answer(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the exit code, and the lines of stderr."""
        out, err = rest(self.process)
        self.steps += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]

    @property
    def names(self) -> list[str]:
        return [step["step"] for step in self.steps]


@contextmanager
def program(on: Machine, *words: str) -> Iterator[Program]:
    """Start a command with `--json`. A program that hangs is killed."""
    process = on.start(*words, "--json")
    alarm = threading.Timer(120, process.kill)
    alarm.start()
    try:
        yield Program(process)
    finally:
        alarm.cancel()
        process.kill()
        with process:  # closes its streams
            pass


class Background:
    """An event loop in a thread, with a relay: the other device of a command that runs in this process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.relay = HostileRelay()

    @contextmanager
    def running(self) -> Iterator[Background]:
        self._thread.start()
        serving = self.relay.running()
        try:
            self.submit(serving.__aenter__()).result(30)
            yield self
            self.submit(serving.__aexit__(None, None, None)).result(30)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def other(self, name: str = "other", **options: Any) -> Pairing:
        """Return the pairing of a device that is only in memory."""
        return Pairing(
            relay=self.relay.url,
            device=cast("LocalDevice", MemoryDevice(name)),
            allow_list=MemoryAllowList(9),
            **{"timeouts": PATIENT, "now": utc_now, **options},
        )


async def shown(find: Callable[[], re.Match[str] | None]) -> str:
    """Return digits as soon as they are shown."""
    async with asyncio.timeout(60):
        while (match := find()) is None:
            await asyncio.sleep(0.02)
    return "".join(match.groups())


@dataclass
class Reading(TargetOperator):
    """A person at a target who reads the code on the other screen.

    Attributes:
        screen: all that it shows.
        code: the one-time code, once it is there.
    """

    screen: Callable[[], str]
    code: Future[str] = field(default_factory=Future)

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        self.code.set_result(code)

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        return await shown(lambda: re.search(r"Verification code  (\d{3}) (\d{3})\s", self.screen()))

    async def confirm_peer(self, met: Met) -> bool:
        return True


@dataclass
class Telling(ControllerOperator):
    """A person at a controller who tells the target's person the code."""

    tell: Callable[[str], object]
    says: bool = True

    def show_verification_code(self, code: str, met: Met) -> None:
        self.tell(code)

    async def confirm_verified(self, met: Met) -> bool:
        return self.says

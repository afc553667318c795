"""`listen` and `invite` in this process: time, threads and database connections, which a terminal cannot show."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.spelling import manage_py
from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.context import Context
from authmesh.commands.home import FileHome
from authmesh.commands.registry import INVITE, LISTEN
from authmesh.commands.spec import Failure, attempt
from authmesh.commands.terminal.keyboard import Keyboard
from authmesh.commands.terminal.rich_console import RichConsole
from authmesh.device import AllowList, LocalDevice
from authmesh.pairing import Paired, Timeouts
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.errors import Run, StorageError
from authmesh.protocol.pairing.errors import PairingError
from tests.commands.pairing_terminals import PROXIES, Background, Reading, Telling
from tests.docs.test_docs import every_error
from tests.pairing.pairing_world import MemoryAllowList


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def background() -> Iterator[Background]:
    with Background().running() as running:
        yield running


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Return a function that types a line into the stdin of this process."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w", buffering=1) as keys:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: keys.write(f"{text}\n")


def code_shown(text: str) -> re.Match[str] | None:
    return re.search(r"amesh invite (\d{6}) ", text)


# --- the database -----------------------------------------------------------------------------------------------------


def listens(background: Background, typing: Callable[[str], object]) -> str:
    """Pair this server, as the target, with a device in the background, and return the ID of that device."""
    out = io.StringIO()

    async def come() -> Paired:
        async with asyncio.timeout(60):
            while (match := code_shown(out.getvalue())) is None:
                await asyncio.sleep(0.02)
        return await background.other().invite(match[1], Telling(typing))

    coming = background.submit(come())
    call_command("amesh_listen", "--relay", background.relay.url, stdout=out, stderr=io.StringIO())
    coming.result(60)
    found = re.search(r"Paired: (\S+) ", out.getvalue())
    assert found
    return found[1]


def invites(background: Background) -> str:
    """Pair this server, as the controller, with a device in the background, and return the ID of that device."""
    out = io.StringIO()
    reading = Reading(out.getvalue)
    listening = background.submit(background.other().listen(reading))
    call_command(
        "amesh_invite",
        reading.code.result(60),
        "--yes",
        "--relay",
        background.relay.url,
        stdout=out,
        stderr=io.StringIO(),
    )
    listening.result(60)
    found = re.search(r"Paired: (\S+) ", out.getvalue())
    assert found
    return found[1]


def test_in_a_transaction_of_the_caller(
    db: None, amesh_server: LocalDevice, background: Background, typing: Callable[[str], object]
) -> None:
    """The database of a test is in memory and in a transaction, and what the command writes is rolled back with it."""
    with transaction.atomic():
        found = {listens(background, typing), invites(background)}
        assert {entry.device_id for entry in DatabaseAllowList().read()} == found
        transaction.set_rollback(True)
    assert DatabaseAllowList().read() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("amesh-database")]
    assert not connection.allow_thread_sharing


def test_on_a_database_of_its_own(
    default_database: dict[str, str], amesh_server: LocalDevice, background: Background, typing: Callable[[str], object]
) -> None:
    opened: list[Any] = []

    def opens(connect: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any) -> Any:
            opened.append((threading.current_thread().name, self))
            return connect(self)

        return wrapped

    from django.db.backends.base.base import BaseDatabaseWrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "connect", opens(BaseDatabaseWrapper.connect))
        listens(background, typing)
        invites(background)
    # Only the connection of the caller is used, which the caller closes, whichever thread opened it.
    assert {wrapper for _, wrapper in opened} <= {connections["default"]}
    assert len(DatabaseAllowList().read()) == 2


def test_a_database_error_is_one_message(
    db: None, amesh_server: LocalDevice, background: Background, typing: Callable[[str], object]
) -> None:
    """The list cannot be written after the operator has typed the code."""
    device = EphemeralDevice("phone")
    DatabaseAllowList().add(device.entry("target"))
    out = io.StringIO()

    async def come() -> Paired:
        async with asyncio.timeout(60):
            while (match := code_shown(out.getvalue())) is None:
                await asyncio.sleep(0.02)
        return await background.other().invite(match[1], Telling(typing))

    coming = background.submit(come())

    def spoil(self: Any, *args: Any, **options: Any) -> None:
        raise StorageError("The disk is full.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseAllowList, "add", spoil)
        with pytest.raises(CommandError, match=r"The disk is full\."):
            call_command(
                "amesh_listen", "--replace", device.identity.device_id, "--relay", background.relay.url, stdout=out
            )
    with pytest.raises(PairingError):
        coming.result(60)
    assert len(DatabaseAllowList().read()) == 1
    lifecycle.reset()


# --- Ctrl-C that comes while something is written ---------------------------------------------------------------------


class Interrupting(MemoryAllowList):
    """A list that presses Ctrl-C this many times while it writes, and may then fail."""

    def __init__(self, times: int, fails: bool) -> None:
        super().__init__()
        self._times, self._fails = times, fails

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        for _ in range(self._times):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)
        if self._fails:
            raise StorageError("The disk is full.")
        super().add(entry, replacing=replacing)


class HomeWithList(FileHome):
    """A device directory with another allow list."""

    def __init__(self, directory: Path, allow_list: AllowList) -> None:
        super().__init__(directory)
        self._allow_list = allow_list

    def allow_list(self) -> AllowList:
        return self._allow_list


def context_of(path: Path, allow_list: AllowList, **more: Any) -> Context:
    EphemeralDevice("here").write(path)
    return Context(RichConsole(as_json=False), HomeWithList(path, allow_list), **more)


def listen(context: Context, url: str, **more: Any) -> Failure | None:
    options = {"relay": url, "shell": False, "replace": None, "qr": False, "v1": False}
    return attempt(LISTEN, context, {**options, **more})


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_the_write(
    times: int,
    fails: bool,
    tmp_path: Path,
    background: Background,
    typing: Callable[[str], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A started write cannot be stopped; the message says whether it succeeded."""
    allow_list = Interrupting(times, fails)
    coming = background.submit(_come(background, typing, capsys))
    failure = listen(context_of(tmp_path / "device", allow_list), background.relay.url)
    assert failure is not None and failure.exit_code == 130
    assert bool(allow_list.entries) is not fails
    if fails:
        assert failure.message.startswith("Interrupted. Nothing was stored here.")
    else:
        entry = allow_list.entries[0]
        assert failure.message == (
            f"Interrupted, but {entry.device_id} (other) is already stored as controller: it may authenticate to this device. To "
            f"undo this, run amesh revoke {entry.device_id}."
        )
    with pytest.raises(PairingError):
        coming.result(60)


async def _come(
    background: Background, typing: Callable[[str], object], capsys: pytest.CaptureFixture[str], **options: Any
) -> Paired:
    seen = ""
    async with asyncio.timeout(60):
        while (match := code_shown(seen)) is None:
            await asyncio.sleep(0.02)
            seen += capsys.readouterr().out
    return await background.other(**options).invite(match[1], Telling(typing))


# --- time -------------------------------------------------------------------------------------------------------------

HASTY = Timeouts(connect=30, relay=30, peer=0.3, message=30, person=0.3, farewell=0.1)


def test_nobody_comes_in_time(tmp_path: Path, background: Background) -> None:
    failure = listen(context_of(tmp_path / "device", MemoryAllowList(), timeouts=HASTY), background.relay.url)
    assert failure is not None
    assert (failure.exit_code, failure.code) == (1, "nobody_came")
    assert "Run amesh listen again" in failure.message


def test_nobody_types_in_time(
    tmp_path: Path, background: Background, typing: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    allow_list = MemoryAllowList()
    coming = background.submit(_come(background, lambda code: None, capsys))
    context = context_of(tmp_path / "device", allow_list, timeouts=replace(HASTY, peer=60))
    failure = listen(context, background.relay.url)
    assert failure is not None
    assert (failure.exit_code, failure.code) == (1, "took_too_long")
    with pytest.raises(PairingError):
        coming.result(60)
    assert not allow_list.entries


def test_the_other_side_does_not_answer(tmp_path: Path, background: Background) -> None:
    class Slow(Reading):
        async def enter_verification_code(self, met: Any, *, again: bool) -> str | None:
            await asyncio.Event().wait()
            return None

    slow = Slow(str)
    listening = background.submit(background.other().listen(slow))
    context = context_of(tmp_path / "device", MemoryAllowList(), timeouts=HASTY)
    options = {"code": slow.code.result(60), "relay": background.relay.url, "v1": False, "yes": True}
    failure = attempt(INVITE, context, options)
    assert failure is not None and (failure.exit_code, failure.code) == (1, "peer_silent")
    with pytest.raises(PairingError):
        listening.result(60)


def test_a_clock_that_is_far_off(
    tmp_path: Path, background: Background, typing: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    import datetime as dt

    from authmesh.files.clock import utc_now

    coming = background.submit(_come(background, typing, capsys, now=lambda: utc_now() + dt.timedelta(minutes=2)))
    failure = listen(context_of(tmp_path / "device", MemoryAllowList()), background.relay.url)
    assert failure is not None and failure.code == "clock_skew" and "NTP" in failure.message
    with pytest.raises(PairingError):
        coming.result(60)


# --- sentences --------------------------------------------------------------------------------------------------------


class DjangoSpelling(RichConsole):
    def spell(self, run: Run) -> str:
        return manage_py(run)


@pytest.mark.parametrize("kind", sorted(every_error(PairingError), key=lambda kind: kind.__name__))
def test_messages_name_the_commands_of_the_front_end(kind: type[PairingError], tmp_path: Path) -> None:
    def fail(context: Context) -> None:
        raise kind()

    for console, name in ((RichConsole(), "amesh "), (DjangoSpelling(), "manage.py amesh_")):
        failure = attempt(LISTEN, Context(console, FileHome(tmp_path)), {}, run=fail)
        assert failure is not None and (failure.exit_code, failure.code) == (1, kind.code)
        assert failure.message.startswith(kind.default_message)
        runs = [part for part in kind.default_hint if isinstance(part, Run)]
        assert all(f"{name}{run.name}" in failure.message for run in runs)
        assert ("manage.py" in failure.message) is (bool(runs) and name == "manage.py amesh_")


# --- standard input ---------------------------------------------------------------------------------------------------


def test_lines_of_a_pipe_come_one_at_a_time() -> None:
    reading, writing = os.pipe()

    async def test() -> None:
        keyboard = Keyboard()
        os.write(writing, b"one\ntw")
        assert await keyboard.line() == "one"
        waiting = asyncio.ensure_future(keyboard.line())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        keyboard.forget()  # the lines of a pipe are kept
        os.write(writing, b"o\xff\n\nlast")
        assert await keyboard.line() == "two\ufffd"
        assert await keyboard.line() == ""
        os.close(writing)
        assert await keyboard.line() == "last"
        assert await keyboard.line() is None
        assert not asyncio.get_running_loop()._selector.get_map().get(reading)  # type: ignore[attr-defined]

    with os.fdopen(reading) as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        before = threading.active_count()
        asyncio.run(test())
        assert threading.active_count() == before


@pytest.mark.parametrize("text", [None, "", "one\ntwo"])
def test_lines_of_a_file(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text or "")

    async def test() -> None:
        keyboard = Keyboard()
        for line in (text or "").split():
            assert await keyboard.line() == line
        assert await keyboard.line() is None

    with open(path if text is not None else os.devnull) as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        asyncio.run(test())


@pytest.mark.parametrize("stdin", [None, io.StringIO(""), io.StringIO("one\n")])
def test_no_real_stdin(stdin: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    expected = "one" if stdin is not None and stdin.getvalue() else None
    assert asyncio.run(Keyboard().line()) == expected

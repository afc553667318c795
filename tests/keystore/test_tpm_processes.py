"""The TPM key store with many users at the same time: threads, forked workers, killed processes, a TPM that is restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from authmesh.keystore.tpm import link as tpm_link
from authmesh.keystore.tpm.store import TpmKeyStore, unavailable
from authmesh.keystore.tpm.turn import PATIENCE, Turn
from authmesh.protocol import verify_signature
from authmesh.protocol.errors import KeyStoreError
from authmesh.protocol.keys import load_public_key
from tests.keystore.tpm_worker import MESSAGE
from tests.keystore.tpms import Swtpm, forget, running_abrmd, running_swtpm
from tests.support import fork_server
from tests.support.services import ROOT, program

pytestmark = [pytest.mark.process, pytest.mark.unversioned]


def no_pin() -> str:
    raise AssertionError("asked for a PIN")


def argv(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "tests.keystore.tpm_worker", *map(str, words)]


def run(environ: dict[str, str], *words: str | Path) -> list[str]:
    """Return the lines that a worker prints."""
    done = fork_server.run(argv(*words), env={**os.environ, **environ}, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout.splitlines()


@contextmanager
def worker(environ: dict[str, str], *words: str | Path) -> Iterator[fork_server.Process]:
    """Yield a worker that runs until it is killed."""
    process = fork_server.start(argv(*words), env={**os.environ, **environ}, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: fork_server.Process, count: int, *, good: bool) -> list[str]:
    """Read until there are *count* valid signatures, or as many errors. Return the valid signatures."""
    assert process.stdout is not None
    signatures = []
    while count:
        line = process.stdout.readline()
        assert line, "the worker has ended"
        is_error = line.startswith("KeyStoreError ")
        if is_error:
            assert "does not respond" in line, line
        else:
            signatures.append(line.strip())
        count -= is_error is not good
    return signatures


def check(public_key: bytes, signatures: list[str]) -> None:
    key = load_public_key(public_key)
    assert all(verify_signature(key, MESSAGE, bytes.fromhex(line)) for line in signatures)


@pytest.fixture
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.fixture
def store(swtpm: Swtpm, tmp_path: Path) -> TpmKeyStore:
    return TpmKeyStore(tmp_path, swtpm.tcti, no_pin)


@pytest.mark.parametrize("pin", [None, "4711 is no good PIN"])
def test_a_thousand_signatures_of_threads_and_forked_workers(swtpm: Swtpm, tmp_path: Path, pin: str | None) -> None:
    alias, public_key = TpmKeyStore(tmp_path, swtpm.tcti, no_pin).create(pin=pin)
    lines = run(swtpm.environ, "forks", tmp_path, alias, "1000")
    assert len(lines) == 1001
    check(public_key, lines)
    forget(swtpm.tcti)
    TpmKeyStore(tmp_path, swtpm.tcti, no_pin).seal_secret(alias)
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_a_thousand_signatures_through_a_resource_manager(tmp_path: Path) -> None:
    with running_abrmd() as environ:
        (alias,) = run(environ, "create", tmp_path)
        lines = run(environ, "forks", tmp_path, alias, "1000")
        assert len(lines) == 1000
        check(TpmKeyStore(tmp_path, "none", no_pin).public_key(alias), lines)
        assert run(environ, "secret", tmp_path, alias) == run(environ, "secret", tmp_path, alias)


def test_a_resource_manager_that_is_restarted_is_not_noticed(tmp_path: Path) -> None:
    """The connection is lost between two signatures and opened again."""
    with running_abrmd() as environ, worker(environ, "on demand", tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None
        public_key = bytes.fromhex(process.stdout.readline())
        for _ in range(3):
            process.stdin.write("sign\n")
            process.stdin.flush()
            check(public_key, read_until(process, 1, good=True))
            environ.restart()


def test_a_fork_after_d_bus_was_used_is_refused(tmp_path: Path) -> None:
    """The threads of GLib do not exist in the child, which would wait for them forever."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom authmesh.keystore.tpm.store import TpmKeyStore\n"
        "store = TpmKeyStore(Path(sys.argv[1]), 'tabrmd:bus_type=session', str)\nalias = store.create().alias\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try: store.sign(alias, b'm')\n"
        "    except Exception as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\nstore.sign(alias, b'm')\nprint('signed')\n"
    )
    with running_abrmd() as environ:
        env = {**os.environ, **environ}
        words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path)]
        done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "before this process was forked" in done.stdout and done.stdout.endswith("signed\n"), done.stderr


def test_a_tpm_that_one_process_has_at_a_time(swtpm: Swtpm, tmp_path: Path) -> None:
    """As for /dev/tpm0: each use opens a connection, closes it, and frees its slots."""
    program("tpm2_send", package="tpm2-tools")
    environ = {"AMESH_TPM_TCTI": f"cmd:tpm2_send -T {swtpm.tcti}"}
    (alias,) = run(environ, "create", tmp_path)
    lines = run(environ, "forks", tmp_path, alias, "16")
    check(TpmKeyStore(tmp_path, "none", no_pin).public_key(alias), lines)
    assert len(lines) == 17
    assert swtpm.loaded() == []


def test_the_tpm_is_restarted_in_between(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    alias, public_key = store.create()
    secret = store.seal_secret(alias)
    for _ in range(3):
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
        with swtpm.down():
            for _ in range(2):
                with pytest.raises(KeyStoreError, match="does not respond"):
                    store.sign(alias, b"m")
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert TpmKeyStore(tmp_path, swtpm.tcti, no_pin).seal_secret(alias) == secret


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_the_tpm_is_killed_while_it_signs(
    swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path, sig: signal.Signals
) -> None:
    """Two processes with four threads each. Every signature is valid, every failure has a reason, and signing continues later."""
    alias, public_key = store.create()
    with (
        worker(swtpm.environ, "forever", tmp_path, alias) as one,
        worker(swtpm.environ, "forever", tmp_path, alias) as other,
    ):
        for _ in range(2):
            for process in (one, other):
                check(public_key, read_until(process, 20, good=True))
            swtpm.stop(sig)
            for process in (one, other):
                check(public_key, read_until(process, 8, good=False))
            swtpm.start()
        for process in (one, other):
            check(public_key, read_until(process, 20, good=True))


def test_a_hundred_rounds_lose_no_slot(swtpm: Swtpm, store: TpmKeyStore) -> None:
    for _ in range(100):
        alias, public_key = store.create()
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
        assert len(store.seal_secret(alias)) == 32
        store.delete(alias)
        assert swtpm.loaded() == []


def test_killed_processes_lose_no_slot(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    alias, public_key = store.create()
    for number in range(20):
        with worker(swtpm.environ, "rounds", tmp_path / "other") as process:
            read_until(process, 1 + number % 3, good=True)
        assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
        assert len(swtpm.loaded()) == 1
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_a_hundred_rounds_of_several_processes(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    alias, public_key = store.create()
    with (
        worker(swtpm.environ, "rounds", tmp_path / "one") as one,
        worker(swtpm.environ, "rounds", tmp_path / "other") as other,
    ):
        for _ in range(25):
            for process in (one, other):
                read_until(process, 4, good=True)
            assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    forget(swtpm.tcti)
    assert swtpm.loaded() == []


def test_users_who_do_not_know_of_each_other(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    """Two users have separate lock files. Their processes unload each other's keys, and still sign with their own."""
    (tmp_path / "a").mkdir()
    keys = [store.create() for _ in range(2)]
    with (
        worker(swtpm.environ, "forever", tmp_path, keys[0].alias) as one,
        worker({**swtpm.environ, "TMPDIR": str(tmp_path / "a")}, "forever", tmp_path, keys[1].alias) as other,
    ):
        for _ in range(10):
            for process, key in ((one, keys[0]), (other, keys[1])):
                check(key.public_key, read_until(process, 20, good=True))


def test_a_fork_in_the_middle_of_a_command(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    """A TPM that accepts one connection would wait for a connection that the parent has closed and a child still has open."""
    alias, public_key = store.create()
    with worker(swtpm.environ, "forks while signing", tmp_path, alias, "60") as process:
        waiting = threading.Timer(60, process.kill)
        waiting.start()
        output, _ = process.communicate()
        waiting.cancel()
    assert process.returncode == 0
    check(public_key, output.split())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # because the process has threads
def test_a_fork_by_whoever_has_the_tpm_does_not_wait_for_itself(swtpm: Swtpm, store: TpmKeyStore) -> None:
    alias, public_key = store.create()

    def fork(tpm: object) -> int:
        child = os.fork()
        if child == 0:
            os._exit(0)
        return os.waitpid(child, 0)[1]

    started = time.monotonic()
    assert tpm_link.link_to(swtpm.tcti).run(fork) == 0
    assert time.monotonic() - started < PATIENCE / 2
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))


def test_a_fork_leaves_the_parent_s_connection_alone(swtpm: Swtpm, store: TpmKeyStore) -> None:
    alias, public_key = store.create()
    store.sign(alias, b"m")
    link = tpm_link.link_to(swtpm.tcti)
    parents, turn = link._tpm, link._turn
    link._pid = 1  # as in a child
    assert verify_signature(public_key, b"m", store.sign(alias, b"m"))
    assert link._tpm is not parents and link._turn is not turn
    assert parents in tpm_link._abandoned and not parents.context.is_closed()  # type: ignore[union-attr]
    tpm_link._abandoned.remove(parents)
    parents.close()  # type: ignore[union-attr]


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Turn, Turn]:
    """Return the turns of two processes. An flock belongs to the open file, so both can be in this process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Turn("x"), Turn("x")


def test_a_turn_says_what_the_one_before_left(turns: tuple[Turn, Turn]) -> None:
    one, other = turns
    assert one.take() is False and one.left_over == ()
    one.note([0x80000001, 0x02000000])
    one.give()
    assert one.take() is True
    one.give()
    assert other.take() is False and other.left_over == (0x80000001, 0x02000000)
    other.note([])
    other.give()
    assert one.take() is False and one.left_over == ()
    one.give()


def test_one_has_it_at_a_time(turns: tuple[Turn, Turn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authmesh.keystore.tpm.turn.PATIENCE", 0.05)
    one, other = turns
    one.take()
    with pytest.raises(KeyStoreError, match="in use by another process"):
        other.take()
    one.give()
    other.take()
    other.give()


def test_whoever_waits_gets_it(turns: tuple[Turn, Turn]) -> None:
    """One process takes turn after turn without a pause."""
    one, other = turns
    one.take()
    got = threading.Event()

    def wait() -> None:
        other.take()
        got.set()
        other.give()

    thread = threading.Thread(target=wait)
    thread.start()
    while thread.is_alive() and not got.is_set():
        one.give()
        one.take()
    one.give()
    thread.join()
    assert got.is_set()


def test_a_lock_file_that_was_tidied_away(turns: tuple[Turn, Turn], tmp_path: Path) -> None:
    one, other = turns
    one.take()
    one.give()
    for path in tmp_path.glob(".amesh-tpm-*"):
        path.unlink()
    other.take()
    other.give()
    one._since = 0
    assert one.take() is False
    one.give()


def test_a_lock_file_of_somebody_else(
    turns: tuple[Turn, Turn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", lambda descriptor: os.stat_result([0o600, 0, 0, 1, 12345, 0, 0, 0, 0, 0]))
        with pytest.raises(KeyStoreError, match="belongs to another user"):
            turns[0].take()
    for path in tmp_path.glob(".amesh-tpm-*"):
        path.unlink()
    for kind in ("turn", "queue"):
        for file in turns[1]._files:
            if file._path.suffix == f".{kind}":
                file._path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyStoreError, match="cannot be opened"):
        turns[1].take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_probe_of_a_busy_tpm_waits(swtpm: Swtpm, store: TpmKeyStore, tmp_path: Path) -> None:
    alias = store.create().alias
    with worker(swtpm.environ, "forever", tmp_path, alias) as process:
        read_until(process, 5, good=True)
        assert unavailable(swtpm.tcti) is None

"""The sealed file with many writers at the same time, and with kill -9 at any moment."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from amesh_django.test import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice, file_list
from authmesh.keystore import encrypted_file
from tests.support.services import ROOT

pytestmark = pytest.mark.process


def names(allow_list: FileAllowList) -> set[str]:
    return {entry.friendly_name for entry in allow_list.read()}


WRITER = """
import sys
from authmesh.device import LocalDevice, FileAllowList
from amesh_django.test import EphemeralDevice

path, name, shared = sys.argv[1:]
allow_list = FileAllowList(LocalDevice(path, environ={}))
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    entry = EphemeralDevice(f"{name}-{number}").entry("target")
    allow_list.add(entry)
    if number % 3 == 0:
        allow_list.revoke(entry.device_id)
    if number % 3 == 1:
        allow_list.set_permissions(entry.device_id, {"shell": True})
    allow_list.update_permissions(shared, lambda before: {**before, entry.friendly_name: True})
"""


def test_writers_in_many_processes_lose_nothing_and_revive_nothing(tmp_path: Path) -> None:
    device = EphemeralDevice("owner").write(tmp_path / "d")
    allow_list = FileAllowList(device)
    first = [EphemeralDevice(f"first-{number}").entry("target") for number in range(24)]
    allow_list.add_all(first)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(device.path), f"writer{number}", first[-1].device_id],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    threads = [
        threading.Thread(target=lambda part=part: [allow_list.revoke(entry.device_id) for entry in part])
        for part in (first[0::3], first[1::3])
    ]
    for thread in threads:
        thread.start()
    seen: set[str] = set()
    revoked = {entry.friendly_name for entry in (*first[0::3], *first[1::3])}
    while any(writer.poll() is None for writer in writers):
        now = names(allow_list)  # the seal is valid at every moment
        gone = {name for name in revoked if name not in now}
        assert seen <= gone, "a revoked device came back"
        seen = gone
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    permissions = allow_list.get(first[-1].device_id).permissions
    assert permissions == {f"writer{writer}-{number}": True for writer in range(4) for number in range(12)}
    expected = {entry.friendly_name for entry in first[2::3]}
    expected |= {f"writer{writer}-{number}" for writer in range(4) for number in range(12) if number % 3}
    assert names(allow_list) == expected
    granted = {entry.friendly_name for entry in allow_list.read() if entry.permissions == {"shell": True}}
    assert granted == {name for name in expected if name.startswith("writer") and int(name.split("-")[1]) % 3 == 1}


KILLER = """
import os, random, signal, sys, time
import datetime as dt
from dataclasses import replace
from pathlib import Path
from authmesh.device import LocalDevice, FileAllowList, init_device
from amesh_django.test import EphemeralDevice
from amesh_django.test.devices import CHEAP_ARGON2
from tests.support import cheap_keys

path, what = Path(sys.argv[1]), sys.argv[2]
cheap_keys.use(CHEAP_ARGON2)
known = EphemeralDevice("0")

def lists(done):
    allow_list = FileAllowList(device)
    number = int(allow_list.read()[0].friendly_name)
    while True:
        number += 1
        allow_list.add(replace(known.entry(), friendly_name=str(number)))
        os.write(done, b"%d\\n" % number)

def identities(done):
    while True:
        init_device(path, "again", now=dt.datetime.now(dt.UTC), force=True, backend="encrypted-file", environ={})
        FileAllowList(LocalDevice(path, environ={})).add(known.entry())
        os.write(done, b"1\\n")

if what == "lists":
    device = LocalDevice(path, environ={})
    device.sign(b"unlocked once, for all rounds")
    FileAllowList(device).add(known.entry())
chance, left_over, rounds = random.Random(7), 0, 40
for _ in range(rounds):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            (lists if what == "lists" else identities)(writing)
        finally:
            os._exit(1)
    os.close(writing)
    before = os.read(reading, 1)  # the child has started
    time.sleep(chance.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    finished = before
    while more := os.read(reading, 1 << 16):
        finished += more
    os.close(reading)
    left_over += bool([name for name in os.listdir(path) if name.endswith(".amesh-tmp")])
    opened = device if what == "lists" else LocalDevice(path, environ={})
    assert len(opened.sign(b"m")) == 64
    entries = FileAllowList(opened).read()
    if what == "lists":
        last = int(finished.split(b"\\n")[-2])
        assert [entry.friendly_name for entry in entries] in ([str(last)], [str(last + 1)]), (last, entries)
    else:
        assert [entry.device_id for entry in entries] in ([], [known.identity.device_id])
FileAllowList(opened).add(known.entry())
assert not [p for p in path.rglob("*") if p.name.endswith(".amesh-tmp")]
print("killed", rounds, "left", left_over)
"""


@pytest.mark.parametrize("what", ["lists", "identities"])
def test_kill_9_at_any_moment_leaves_the_old_or_the_new_state(tmp_path: Path, what: str) -> None:
    EphemeralDevice("owner").write(tmp_path / "d", max_controllers=2)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "d"), what], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed 40 ")


def test_the_key_is_unlocked_before_the_lock_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = EphemeralDevice("owner").write(tmp_path / "d")
    order: list[str] = []
    true_hash, true_lock = encrypted_file.hash_secret_raw, file_list.locked

    def hash_secret(*arguments: object, **options: object) -> bytes:
        order.append("argon2")
        return true_hash(*arguments, **options)  # type: ignore[arg-type]

    def lock(folder: Path) -> AbstractContextManager[None]:
        order.append("lock")
        return true_lock(folder)

    monkeypatch.setattr(encrypted_file, "hash_secret_raw", hash_secret)
    monkeypatch.setattr(file_list, "locked", lock)
    FileAllowList(LocalDevice(device.path, environ={})).add(EphemeralDevice("new").entry("target"))
    assert order == ["argon2", "lock"]

"""The header of one request, and the default device: found by the environment, unlocked once, in threads and after a fork."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from amesh_django.test import EphemeralDevice
from authmesh.client import AmeshAuth, authorization_header, default_device, forget_devices
from authmesh.device import FileAllowList, LocalDevice
from authmesh.keystore import encrypted_file
from authmesh.protocol import (
    InvalidInput,
    b64encode,
    b64url_decode,
    canonical_string,
    decode_public_key,
    parse_authorization,
    verify_signature,
)
from authmesh.protocol.errors import IdentityMissing, KeyStoreError
from tests.support.directories import make
from tests.support.services import ROOT

DEVICE = EphemeralDevice("client")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The default directory of this test. Devices of other tests are closed."""
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "amesh"))
    forget_devices()
    yield tmp_path / "amesh"
    forget_devices()


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that gets an item whenever Argon2id runs. Each run takes longer than usual, so that threads meet in it."""
    found: list[float] = []
    derive = encrypted_file.hash_secret_raw

    def counted(**arguments: object) -> bytes:
        found.append(time.monotonic())
        time.sleep(0.05)
        return derive(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encrypted_file, "hash_secret_raw", counted)
    return found


def holds(header: str, method: str, target: str, body: bytes = b"") -> bool:
    members = parse_authorization(header)
    message = canonical_string(method, target, members.ts, members.nonce, body).encode()
    return verify_signature(DEVICE.identity.public_key, message, b64url_decode(members.sig))


def test_the_header_of_a_url() -> None:
    before = int(time.time())
    header = authorization_header("post", "https://host:8443/a b?y=ü&x=1#part", b"body", device=DEVICE)
    members = parse_authorization(header)
    assert members.v == "1"
    assert before <= int(members.ts) <= time.time()
    assert len(members.nonce) == 22
    assert len(b64url_decode(members.nonce)) == 16
    assert holds(header, "POST", "/a%20b?y=%C3%BC&x=1", b"body")
    assert not holds(header, "POST", "/a%20b?y=%C3%BC&x=1", b"bodi")
    assert authorization_header("GET", "/", device=DEVICE) != authorization_header("GET", "/", device=DEVICE)


def test_the_header_of_a_target_takes_it_as_it_stands() -> None:
    target = "/a/%2e%2E/b%2fc?x=[1]"
    assert holds(authorization_header("GET", target, device=DEVICE), "GET", target)
    url = httpx.URL("http://host/x")
    assert holds(authorization_header("GET", url, "tëxt", device=DEVICE), "GET", "/x", "tëxt".encode())


@pytest.mark.parametrize(
    "url", ["", "host/path", "?x=1", "http://", "http://host:port/", "https:///path", "http://h/\udc80"], ids=ascii
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidInput, match="https://HOST/PATH"):
        authorization_header("GET", url, device=DEVICE)


def test_time_and_nonce_can_be_given() -> None:
    header = authorization_header("GET", "/", device=DEVICE, now=1786508746.9, nonce="j32jDJMfSlC8_AwoIhP46Q")
    assert 'ts="1786508746",nonce="j32jDJMfSlC8_AwoIhP46Q"' in header
    for nonce in ("a b", "a\nb", "ü", "x" * 65):
        with pytest.raises(InvalidInput):
            authorization_header("GET", "/", device=DEVICE, nonce=nonce)
    with pytest.raises(InvalidInput, match="line break"):
        authorization_header("GET", "/a\nb", device=DEVICE)


def test_a_target_that_servers_refuse_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    authorization_header("GET", "/fine?x=1", device=DEVICE)
    assert not caplog.records
    authorization_header("GET", "//twice?token=s3cret", device=DEVICE)
    assert "leading double slash" in caplog.text and "//twice" in caplog.text
    assert "s3cret" not in caplog.text


def test_the_default_device_is_found_by_the_environment(directory: Path, tmp_path: Path) -> None:
    auth = AmeshAuth()
    with pytest.raises(IdentityMissing, match="amesh init"):
        default_device()
    with pytest.raises(IdentityMissing), httpx.Client(auth=auth) as client:
        client.get("http://127.0.0.1:1/")
    device = DEVICE.write(directory)
    assert default_device().identity == device.identity
    assert holds(authorization_header("GET", "/x"), "GET", "/x")


def test_one_default_device_for_each_directory(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DEVICE.write(directory)
    first = default_device()
    assert default_device() is first
    other = EphemeralDevice().write(tmp_path / "other")
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "other"))
    assert default_device().identity == other.identity
    monkeypatch.setenv("AUTH_MESH_DIR", str(directory))
    assert default_device() is first
    forget_devices()
    assert default_device() is not first


def test_a_device_whose_key_was_replaced_after_it_was_opened_signs_with_the_new_one(directory: Path) -> None:
    make(directory, backend="encrypted-file")
    opened = LocalDevice(directory)
    new = make(directory, backend="encrypted-file", force=True)
    assert new.device_id != opened.identity.device_id
    header = parse_authorization(authorization_header("GET", "/", device=opened))
    assert decode_public_key(header.id) == new.public_key
    for key in (directory / "keys").iterdir():
        key.unlink()
    with pytest.raises(KeyStoreError):
        authorization_header("GET", "/", device=LocalDevice(directory))


def test_the_key_is_unlocked_once_whatever_the_threads(directory: Path, derivations: list[float]) -> None:
    DEVICE.write(directory)
    derivations.clear()
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    with httpx.Client(auth=AmeshAuth(), transport=transport) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.get("http://host/"), range(32)))
    authorization_header("GET", "/")
    default_device().seal_secret()
    assert len(derivations) == 1


FORKING = """
import os, sys, threading, time, warnings
from pathlib import Path
from authmesh.client import authorization_header, default_device
from authmesh.keystore import encrypted_file

warnings.simplefilter("ignore")  # the test forks a process with threads on purpose
derive, calls = encrypted_file.hash_secret_raw, []

def slow(**arguments):
    calls.append(os.getpid())
    time.sleep(0.5)
    return derive(**arguments)

encrypted_file.hash_secret_raw = slow
def child():
    reading, writing = os.pipe()
    if not os.fork():
        header = authorization_header("GET", "/")
        os.write(writing, f"{header[:8]} {calls.count(os.getpid())}\\n".encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        return answer.read().strip()

thread = threading.Thread(target=authorization_header, args=("GET", "/"))
thread.start()
time.sleep(0.2)
print("while another thread unlocks:", child())
thread.join()
print("after it is unlocked:", child())
"""


@pytest.mark.process
def test_a_forked_process_signs_too(directory: Path) -> None:
    """Even if another thread was unlocking the key when the process forked."""
    DEVICE.write(directory)
    done = subprocess.run(
        [sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.splitlines() == ["while another thread unlocks: AuthMesh 1", "after it is unlocked: AuthMesh 0"]


def test_no_secret_gets_into_the_log(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = bytes(range(1, 33))
    device: LocalDevice = EphemeralDevice(private_key=key).write(directory)
    with caplog.at_level(logging.DEBUG):
        allow_list = FileAllowList(device)
        allow_list.add(DEVICE.entry())
        assert [entry.device_id for entry in allow_list.read()] == [DEVICE.identity.device_id]
        with httpx.Client(
            auth=AmeshAuth(), transport=httpx.MockTransport(lambda request: httpx.Response(200))
        ) as client:
            client.get("http://host/")
    said = caplog.text + repr(device) + repr(device.identity) + repr(allow_list) + repr(vars(device))
    secrets = [key, device.seal_secret(), hashlib.sha256(key).digest()]
    for secret in secrets:
        assert secret.hex() not in said
        assert b64encode(secret) not in said
        assert repr(secret)[2:-1] not in said
    assert "throw-away" not in said


def test_the_clock_of_the_auth_is_the_callers() -> None:
    sent: list[httpx.Request] = []
    now = dt.datetime(2026, 3, 28, tzinfo=dt.UTC).timestamp()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    with httpx.Client(auth=AmeshAuth(DEVICE, now=lambda: now + 0.9), transport=httpx.MockTransport(answer)) as client:
        client.get("http://host/")
    assert parse_authorization(sent[0].headers["Authorization"]).ts == str(int(now))


@pytest.mark.process
def test_importing_the_client_is_quiet() -> None:
    code = textwrap.dedent(
        """
        import sys
        import authmesh.client, amesh_django.test.plugin
        heavy = {"django", "rest_framework", "requests"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)
        """
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)

"""Bootstrap tokens with a real relay and a process for each side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from amesh_django.test.devices import EphemeralDevice
from authmesh.client import AmeshAuth
from authmesh.device import FileAllowList, LocalDevice
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing.token import verify_token
from tests.pairing.bootstrap.bootstrap_world import without_ours
from tests.relay.relay_world import address, serving
from tests.support import cheap_keys, databases, fork_server, services
from tests.support.recording import recording
from tests.support.services import ROOT
from tests.support.terminal import terminal

pytestmark = pytest.mark.process

#: Longest time of a step on a busy machine, in seconds.
SECONDS = 90.0


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Server]:
    with serving(tmp_path_factory.mktemp("relay")) as server:
        yield server


class Side:
    """A machine with the command line."""

    def __init__(self, path: Path, relay: str, **env: str) -> None:
        self.path = path
        self.env = {
            **without_ours(),
            "AUTH_MESH_DIR": str(path),
            "AMESH_RELAY_URL": relay,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}",
            **env,
        }
        self.argv = cheap_keys.AMESH

    def run(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run([*self.argv, *words], env={**self.env, **env}, input=stdin, timeout=90)

    def ok(self, *words: str, **env: str) -> Any:
        """Run a command with --json, and return what it prints."""
        done = self.run(*words, "--json", **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def token(self, name: str = "web-1", *words: str) -> str:
        return str(self.ok("provision", "--name", name, "--no-wait", *words)["token"])

    def states(self) -> dict[str, str]:
        return {token["name"]: token["state"] for token in self.ok("provision", "--list")["tokens"]}

    @contextmanager
    def waiting(self, *words: str) -> Iterator[Waiting]:
        process = fork_server.start([*self.argv, "provision", *words, "--json"], env=self.env)
        try:
            yield Waiting(process)
        finally:
            process.kill()
            process.communicate()


class Waiting:
    """A waiting provision, and the lines that it prints."""

    def __init__(self, process: fork_server.Process) -> None:
        self.process = process
        self.steps: list[dict[str, Any]] = []

    def until(self, step: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        # A step that never comes must fail the test instead of blocking it.
        watchdog = threading.Timer(SECONDS, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.steps.append(json.loads(line))
                if self.steps[-1]["step"] == step:
                    return self.steps[-1]
        finally:
            watchdog.cancel()
        raise AssertionError(f"no {step}, but {self.steps}: {self.process.stderr and self.process.stderr.read()}")


@pytest.fixture
def laptop(tmp_path: Path, relay: services.Server) -> Side:
    EphemeralDevice("laptop").write(tmp_path / "laptop")
    return Side(tmp_path / "laptop", address(relay))


def enrolled(path: Path, controller: Side) -> LocalDevice:
    device = LocalDevice(path, environ={})
    (entry,) = FileAllowList(device).read()
    assert (entry.public_key, entry.role) == (
        LocalDevice(controller.path, environ={}).identity.public_key,
        "controller",
    )
    assert not (path / ".bootstrap").exists()
    return device


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_at_a_terminal(laptop: Side, tmp_path: Path) -> None:
    argv = [*laptop.argv, "provision", "--name", "web-1", "--ttl", "15m"]
    with terminal(argv, laptop.env, columns=200) as person:
        person.expect("AMESH_BOOTSTRAP_TOKEN=")
        token = person.expect("\n").strip()
        person.expect("Anyone who has this token")
        person.expect("Waiting for web-1")
        target = Side(tmp_path / "t", "")
        done = target.run("bootstrap", AMESH_BOOTSTRAP_TOKEN=token)
        assert done.returncode == 0, done.stderr
        device = enrolled(tmp_path / "t", laptop)
        assert device.identity.device_id in done.stdout and "it may authenticate to this device" in done.stdout
        person.expect(f"Enrolled: {device.identity.device_id} (web-1) as target: this device may authenticate to it.")
        assert person.end() == 0
        assert person.shown.count(token) == 1
    again = target.run("bootstrap", AMESH_BOOTSTRAP_TOKEN=token)
    assert again.returncode == 0 and "ignored" in again.stderr and token not in again.stdout + again.stderr
    other = Side(tmp_path / "u", "").run("bootstrap", "--json", AMESH_BOOTSTRAP_TOKEN=token)
    assert other.returncode == 1 and json.loads(other.stderr)["error"] == "token_already_used"
    assert token not in other.stderr
    assert laptop.states() == {"web-1": "used"}


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_a_target_of_which_nothing_is_known_is_not_called_enrolled(laptop: Side) -> None:
    """A target of the TypeScript implementation shows the token. Over that implementation's relay, it cannot verify the answer."""
    argv = [*laptop.argv, "provision", "--name", "web-1", "--v1"]
    with terminal(argv, laptop.env, columns=400) as person:
        person.expect("AMESH_BOOTSTRAP_TOKEN=")
        token = person.expect("\n").strip()
        person.expect("Waiting for web-1")
        target = EphemeralDevice("web-1")
        init = {
            "jti": verify_token(token, now=time.time()).jti,
            "token": token,
            "targetPubKey": encode_public_key(target.identity.public_key),
        }
        with connect(laptop.env["AMESH_RELAY_URL"]) as socket:
            socket.send(json.dumps({"type": "bootstrap_init", **init}))
            assert json.loads(socket.recv(SECONDS))["type"] == "bootstrap_ack"
        person.expect(f"Stored: {target.identity.device_id} (web-1) as target")
        mine = LocalDevice(laptop.path, environ={}).identity.device_id
        person.expect("and may not be enrolled: the relay of the TypeScript implementation loses the signature")
        person.expect(f"check that list shows {mine} as a controller")
        person.expect(f"amesh revoke {target.identity.device_id}")
        assert person.end() == 0
        assert "Enrolled" not in person.shown


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_ctrl_c_leaves_the_token_open_and_resume_serves_it(laptop: Side, tmp_path: Path) -> None:
    argv = [*laptop.argv, "provision", "--name", "web-1"]
    with terminal(argv, laptop.env) as person:
        person.expect("AMESH_BOOTSTRAP_TOKEN=")
        token = person.expect("\n").strip()
        person.expect("Waiting for")
        person.type("\x03")
        assert person.end() == 130
        assert "--resume" in person.shown and "Traceback" not in person.shown
    assert laptop.states() == {"web-1": "open"}
    late = Side(tmp_path / "t", "").run("bootstrap", "--no-wait", "--json", AMESH_BOOTSTRAP_TOKEN=token)
    assert json.loads(late.stderr)["error"] == "no_watcher"
    assert not (tmp_path / "t" / "identity.json").exists()
    with laptop.waiting("--resume") as waiting:
        waiting.until("waiting")
        (tmp_path / "token").write_text(f"AMESH_BOOTSTRAP_TOKEN={token}\n")
        Side(tmp_path / "t", "").ok("bootstrap", "--token-file", str(tmp_path / "token"))
        assert waiting.until("enrolled")["name"] == "web-1"
        waiting.until("done")
        assert waiting.process.wait(30) == 0
    enrolled(tmp_path / "t", laptop)
    assert laptop.run("provision", "--resume").stdout == "No token is open.\n"


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_two_resumes_serve_two_tokens_once_each(laptop: Side, tmp_path: Path) -> None:
    tokens = [laptop.token("web-1"), laptop.token("web-2")]
    with laptop.waiting("--resume") as one:
        one.until("waiting")  # the second process takes the token that is still free
        with laptop.waiting("--resume") as two:
            two.until("waiting_elsewhere")
            enroll_two(tokens, one, two, tmp_path)
    ids = {enrolled(tmp_path / f"t{n}", laptop).identity.device_id for n in (0, 1)}
    listed = FileAllowList(LocalDevice(laptop.path, environ={})).read()
    assert {entry.device_id for entry in listed} == ids and {entry.role for entry in listed} == {"target"}


def enroll_two(tokens: list[str], one: Waiting, two: Waiting, tmp_path: Path) -> None:
    """Both devices come at the same time; each is served once, by the process that waits for it."""
    coming = [
        fork_server.start(
            [*cheap_keys.AMESH, "bootstrap"],
            env={**Side(tmp_path / f"t{n}", "").env, "AMESH_BOOTSTRAP_TOKEN": token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for n, token in enumerate(tokens)
    ]
    assert [process.wait(60) for process in coming] == [0, 0]
    for waiting in (one, two):
        waiting.until("done")
        assert waiting.process.wait(30) == 0
    assert len([step for waiting in (one, two) for step in waiting.steps if step["step"] == "enrolled"]) == 2


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_a_relay_is_killed_and_started_again_while_provision_waits(tmp_path: Path) -> None:
    EphemeralDevice("laptop").write(tmp_path / "laptop")
    with serving(tmp_path) as server:
        laptop = Side(tmp_path / "laptop", address(server))
        with laptop.waiting("--name", "web-1") as waiting:
            token = waiting.until("token")["token"]
            waiting.until("waiting")
            server.stop(signal.SIGKILL)
            assert waiting.until("lost")["error"] in ("relay_closed", "relay_unreachable")
            gone = Side(tmp_path / "t", "").run("bootstrap", "--no-wait", "--json", AMESH_BOOTSTRAP_TOKEN=token)
            assert json.loads(gone.stderr)["error"] == "relay_unreachable"
            server.start()
            waiting.until("waiting")
            Side(tmp_path / "t", "").ok("bootstrap", AMESH_BOOTSTRAP_TOKEN=token)
            waiting.until("enrolled")
            assert waiting.process.wait(30) == 0
        enrolled(tmp_path / "t", laptop)


FETCHES = {
    "fetch": "from authmesh.client import fetch; print(fetch(sys.argv[1]).status_code)",
    "httpx": "with httpx.Client(auth=AmeshAuth()) as c: print(c.get(sys.argv[1]).status_code)",
    "requests": "import requests; from authmesh.client import AmeshRequestsAuth\n"
    "print(requests.get(sys.argv[1], auth=AmeshRequestsAuth()).status_code)",
    "async": """
async def main():
    beats = 0
    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1
    task = asyncio.ensure_future(beat())
    async with httpx.AsyncClient(auth=AmeshAuth()) as client:
        answers = await asyncio.gather(*(client.get(sys.argv[1]) for _ in range(5)))
    print(*{a.status_code for a in answers})
    assert beats > 10, beats
asyncio.run(main())""",
    "threads": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(*{a.status_code for a in pool.map(lambda _: fetch(sys.argv[1]), range(8))})""",
}
HEAD = """
import asyncio, logging, os, sys, httpx
from authmesh.client import AmeshAuth, fetch, signing
logging.basicConfig(level='DEBUG')
signing.BOOTSTRAP_SECONDS = 60  # long enough for a busy machine
"""
TAIL = "\nassert 'AMESH_BOOTSTRAP_TOKEN' not in os.environ\n"


@pytest.mark.parametrize("how", list(FETCHES))
def test_a_client_is_enrolled_by_its_first_request(laptop: Side, tmp_path: Path, how: str) -> None:
    with laptop.waiting("--name", "web-1") as waiting, recording() as server:
        token = waiting.until("token")["token"]
        waiting.until("waiting")
        target = Side(tmp_path / "t", "", AMESH_BOOTSTRAP_TOKEN=token)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", HEAD + FETCHES[how] + TAIL, f"{server.url}/x"],
            env=target.env, capture_output=True, text=True, cwd=ROOT, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == "200\n"
        waiting.until("enrolled")
    device = enrolled(tmp_path / "t", laptop)
    assert all(seen.genuine() and seen.public_key == device.identity.public_key for seen in server.seen)
    assert token not in done.stderr and token.split(".")[2] not in done.stderr


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_a_client_reports_why_it_waits_and_tries_again(laptop: Side, tmp_path: Path) -> None:
    token = laptop.token()
    code = (
        HEAD
        + """
import time
from authmesh.protocol.errors import IdentityMissing
for attempt in range(600):
    try:
        print(fetch(sys.argv[1]).status_code)
        break
    except IdentityMissing as error:
        if not attempt:
            print(error.code, "provision --resume" in str(error), flush=True)
    time.sleep(0.1)
"""
    )
    with recording() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"{server.url}/x"], env={**Side(tmp_path / "t", "").env, "AMESH_BOOTSTRAP_TOKEN": token},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "bootstrap_pending True\n"
        with laptop.waiting("--resume") as waiting:
            waiting.until("enrolled")
            out, err = process.communicate(timeout=60)
    assert out == "200\n" and "no_watcher" in err and token not in err
    enrolled(tmp_path / "t", laptop)


@pytest.mark.unversioned  # it is about `amesh` and the relay, and Django has no part in it
def test_a_client_with_an_invalid_token(laptop: Side, tmp_path: Path) -> None:
    token = laptop.token()
    forged = token[:-6] + "AAAAAA"
    code = (
        HEAD
        + """
from authmesh.protocol.errors import IdentityMissing
for _ in range(2):
    try:
        fetch("http://127.0.0.1:9/")
    except IdentityMissing as error:
        print(type(error).__name__, error.code)
"""
    )
    for more, kind in (
        ({"AMESH_BOOTSTRAP_TOKEN": forged}, "BootstrapFailed invalid_signature"),
        ({"AMESH_BOOTSTRAP_TOKEN": "x"}, "BootstrapFailed invalid_token_format"),
        ({"AMESH_BOOTSTRAP_TOKEN": token, "AMESH_BOOTSTRAP_RELAYS": "wss://other.example/ws, "},
         "BootstrapFailed relay_not_allowed"),
        ({"AMESH_BOOTSTRAP_TOKEN": ""}, "IdentityMissing identity_missing"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**Side(tmp_path / "t", "").env, **more},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.stdout.splitlines() == [kind] * 2, done.stderr
        assert not (tmp_path / "t").exists()
        assert token not in done.stderr and forged not in done.stderr


# --- Django ---------------------------------------------------------------------------------------------------------


def project(tmp_path: Path, database: dict[str, str], **env: str) -> dict[str, str]:
    return {
        **without_ours(),
        "DJANGO_SETTINGS_MODULE": "tests.verification.wire_settings",
        "TEST_AMESH_DIR": str(tmp_path / "server"),
        **databases.environment(database),
        **env,
    }


def controllers(env: dict[str, str]) -> list[dict[str, Any]]:
    done = fork_server.run([sys.executable, "-m", "django", "amesh_list", "--json"], env=env)
    assert done.returncode == 0, done.stderr
    devices: list[dict[str, Any]] = json.loads(done.stdout)["devices"]
    return devices


def asks(server: services.Server, laptop: Side, path: str = "/middleware/sync") -> int:
    device = LocalDevice(laptop.path, environ={})
    return httpx.get(server.url + path, auth=AmeshAuth(device), timeout=60).status_code


# As in wire.py, runserver is one of those that one pair is enough for: the handler is the same as under gunicorn.
@pytest.mark.parametrize("kind", ["gunicorn", pytest.param("runserver", marks=pytest.mark.unversioned), "uvicorn"])
def test_a_django_server_is_enrolled_by_its_first_request(
    laptop: Side, tmp_path: Path, sqlite_database: dict[str, str], kind: str
) -> None:
    options = ["-w", "3"] if kind == "gunicorn" else []
    with laptop.waiting("--name", "web-1") as waiting:
        token = waiting.until("token")["token"]
        waiting.until("waiting")
        env = project(tmp_path, sqlite_database, AMESH_BOOTSTRAP_TOKEN=token, TEST_BOOTSTRAP_SECONDS="45")
        with services.serve([*services.SERVERS[kind](), *options], env) as server:
            first = asks(server, laptop)
            assert first == 200, server.output()  # signed by the controller, as the first request
            waiting.until("enrolled")
            for _ in range(12):  # every worker
                assert asks(server, laptop) == 200
            assert asks(server, Side(_stranger(tmp_path), "")) == 401
            assert token not in server.output() and token.split(".")[2] not in server.output()
    (entry,) = controllers(env)
    assert entry["role"] == "controller"
    assert not (tmp_path / "server" / "allow_list.json").exists()
    assert not (tmp_path / "server" / ".bootstrap").exists()


def _stranger(tmp_path: Path) -> Path:
    EphemeralDevice("stranger").write(tmp_path / "stranger")
    return tmp_path / "stranger"


def test_a_django_server_fails_closed_until_a_controller_waits(
    laptop: Side, tmp_path: Path, sqlite_database: dict[str, str]
) -> None:
    env = project(tmp_path, sqlite_database, AMESH_BOOTSTRAP_TOKEN=laptop.token())
    with services.serve([*services.gunicorn(), "-w", "2"], env) as server:
        started = time.monotonic()
        assert [asks(server, laptop) for _ in range(6)] == [500] * 6
        assert time.monotonic() - started < 25  # the requests do not wait for the network again and again
        assert "bootstrap_pending" in server.output() and "no_watcher" in server.output()
        with laptop.waiting("--resume") as waiting:
            waiting.until("enrolled")
        deadline = time.monotonic() + 30
        while asks(server, laptop) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_django_server_with_an_invalid_token(laptop: Side, tmp_path: Path, sqlite_database: dict[str, str]) -> None:
    token = laptop.token()
    env = project(
        tmp_path, sqlite_database, AMESH_BOOTSTRAP_TOKEN=token, AMESH_BOOTSTRAP_RELAYS="wss://other.example/ws"
    )
    with services.serve(services.gunicorn(), env) as server:
        assert [asks(server, laptop) for _ in range(2)] == [500, 500]
        assert "relay_not_allowed" in server.output() and token not in server.output()
        assert httpx.get(f"{server.url}/middleware/open").status_code != 500
    assert not (tmp_path / "server").exists()


def test_manage_py_enrolls_at_deploy_time(laptop: Side, tmp_path: Path, sqlite_database: dict[str, str]) -> None:
    env = project(tmp_path, sqlite_database)

    def manage(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return fork_server.run([sys.executable, "-m", "django", *words], env=env, input=stdin)

    # Another command does not enroll the device.
    env["AMESH_BOOTSTRAP_TOKEN"] = laptop.token("other")
    done = manage("amesh_list", "--json")
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "identity_missing"
    del env["AMESH_BOOTSTRAP_TOKEN"]
    assert manage("amesh_bootstrap").returncode == 2
    with laptop.waiting("--name", "web-1") as waiting:
        token = waiting.until("token")["token"]
        waiting.until("waiting")
        done = manage("amesh_bootstrap", "--token-file", "-", stdin=token)
        assert done.returncode == 0, done.stderr
        assert "manage.py amesh_revoke" in done.stdout and token not in done.stdout + done.stderr
        waiting.until("enrolled")
    assert [entry["role"] for entry in controllers(env)] == ["controller"]
    with services.serve(services.gunicorn(), env) as server:
        assert asks(server, laptop) == 200
    # The directory is lost, but not the database: this is reported before a token is used.
    os.rename(tmp_path / "server", tmp_path / "lost")
    again = laptop.token("web-2")
    done = manage("amesh_bootstrap", "--token-file", "-", "--json", stdin=again)
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "allow_list_integrity_failure", done.stderr
    assert laptop.states()["web-2"] == "open" and not (tmp_path / "server" / "identity.json").exists()


def test_a_django_server_makes_tokens_too(
    tmp_path: Path, relay: services.Server, sqlite_database: dict[str, str]
) -> None:
    env = project(tmp_path, sqlite_database, AMESH_RELAY_URL=address(relay))
    EphemeralDevice("server").write(tmp_path / "server")
    argv = [sys.executable, "-m", "django", "amesh_provision", "--name", "sensor"]
    with terminal(argv, env) as person:
        person.expect("AMESH_BOOTSTRAP_TOKEN=")
        token = person.expect("\n").strip()
        person.expect("Waiting for sensor")
        Side(tmp_path / "t", "").ok("bootstrap", AMESH_BOOTSTRAP_TOKEN=token)
        person.expect("Enrolled: ")
        assert person.end() == 0
    (entry,) = controllers(env)
    assert (entry["role"], entry["deviceId"]) == ("target", LocalDevice(tmp_path / "t", environ={}).identity.device_id)


def test_two_hosts_behind_one_database(laptop: Side, tmp_path: Path) -> None:
    """They share the secret of the seal. Each has an identity and a token of its own, and both trust the same controller."""
    (tmp_path / "seal").write_text("5a" * 32)
    (tmp_path / "seal").chmod(0o600)
    common = {
        **without_ours(),
        "DJANGO_SETTINGS_MODULE": "relay_project.settings",
        "DJANGO_DATA_DIR": str(tmp_path / "data"),
        "AMESH_SEAL_KEY_FILE": str(tmp_path / "seal"),
    }
    services.run([sys.executable, "manage.py", "migrate", "-v0"], env=common)
    for host in ("one", "two"):
        with laptop.waiting("--name", host) as waiting:
            token = waiting.until("token")["token"]
            waiting.until("waiting")
            env = {**common, "AUTH_MESH_DIR": str(tmp_path / host), "AMESH_BOOTSTRAP_TOKEN": token}
            with services.serve(services.gunicorn("relay_project.wsgi:application"), env) as server:
                assert asks(server, laptop, "/protected/") == 404  # authenticated, but there is no such page
                waiting.until("enrolled")
                assert asks(server, Side(_stranger(tmp_path), ""), "/protected/") == 401
    done = fork_server.run([sys.executable, "manage.py", "amesh_list", "--json"], env=env)
    (entry,) = json.loads(done.stdout)["devices"]
    assert entry["role"] == "controller"
    assert LocalDevice(tmp_path / "one", environ={}).identity != LocalDevice(tmp_path / "two", environ={}).identity

"""provision and bootstrap without a relay: options, lists, refusals, and that the token appears only where it was asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from amesh_django import conf
from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.app import run
from authmesh.device.tokens import TokenStore
from authmesh.pairing.bootstrap import background as first
from authmesh.pairing.bootstrap.enrolment import allowed_relays
from authmesh.pairing.bootstrap.target import same_relay
from authmesh.protocol.pairing.token import verify_token
from authmesh.protocol.pairing.token_errors import BootstrapFailed, BootstrapPending
from tests.pairing.bootstrap.bootstrap_world import Clock, Target, without_ours
from tests.support import fork_server
from tests.support.front_ends import Result, invoke

RELAY = "wss://relay.example/ws"


class Laptop:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = EphemeralDevice("laptop").write(path)

    def run(self, *words: str, **env: str) -> Result:
        return invoke(["--dir", self.path, *words], **env)

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    for name in ("AMESH_BOOTSTRAP_TOKEN", "AMESH_BOOTSTRAP_RELAYS", "AMESH_RELAY_URL"):
        monkeypatch.delenv(name, raising=False)
    first.reset()
    return Laptop(tmp_path / "laptop")


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [["bootstrap", "TOKEN"], ["bootstrap", "--token-file", "TOKEN"], ["bootstrap", "--timeout", "TOKEN"], ["TOKEN"]],
)
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_token_in_the_wrong_place_is_not_repeated(
    laptop: Laptop, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], json_too: list[str]
) -> None:
    text = laptop.json("provision", "--name", "web", "--no-wait", "--relay", RELAY)["token"]
    given = [text if word == "TOKEN" else word for word in words]
    assert run(["--dir", str(tmp_path / "new"), *given, *json_too]) in (1, 2)
    shown = ["".join(capfd.readouterr())]
    if words[0] == "bootstrap":
        manage = [sys.executable, "manage.py", "amesh_bootstrap", *given[1:], *json_too]
        env = without_ours() | {"DJANGO_DATA_DIR": str(tmp_path / "data"), "AUTH_MESH_DIR": str(tmp_path / "new")}
        done = fork_server.run(manage, env=env)
        assert done.returncode in (1, 2)
        shown.append(done.stdout + done.stderr)
    for output in shown:
        assert output and text[:40] not in output


def test_a_token_is_printed_once_and_kept_nowhere(laptop: Laptop) -> None:
    done = laptop.run("provision", "--name", "web-1", "--ttl", "15m", "--no-wait", "--relay", RELAY)
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("AMESH_BOOTSTRAP_TOKEN=")]
    text = line.partition("=")[2]
    assert text not in done.stderr and done.stdout.count(text) == 1
    assert "Warning: Anyone who has this token" in done.stderr and "--withdraw bt_" in done.stderr.replace("\n", " ")
    (stored,) = TokenStore(laptop.path).read()
    token = verify_token(text, now=stored.issued_at, controller_key=laptop.device.identity.public_key)
    assert (token.name, token.relay, token.jti, token.expires_at - token.issued_at) == ("web-1", RELAY, stored.jti, 900)
    everything = b"".join(path.read_bytes() for path in laptop.path.rglob("*") if path.is_file())
    assert text.encode() not in everything


@pytest.mark.parametrize("words", [["--json"], ["--output", "json"], ["--output", "json", "--json"]])
def test_output_json_is_json(laptop: Laptop, words: list[str]) -> None:
    done = laptop.run("provision", "--name", "web-1", "--no-wait", "--relay", RELAY, *words)
    found = json.loads(done.stdout)
    assert found["environment"] == {"AMESH_BOOTSTRAP_TOKEN": found["token"]}
    assert verify_token(found["token"], now=TokenStore(laptop.path).read()[0].issued_at).jti == found["jti"]
    assert "warning" in json.loads(done.stderr) and found["token"] not in done.stderr
    refused = laptop.run("provision", "--output", "json", "--name", "x", "--ttl", "2d")
    assert refused.exit_code == 2 and json.loads(refused.stderr)["error"] == "usage"


def test_listed_and_withdrawn(laptop: Laptop) -> None:
    assert laptop.json("provision", "--list") == {"tokens": []}
    assert "There are no bootstrap tokens" in laptop.run("provision", "--list").stdout
    made = [laptop.json("provision", "--name", name, "--no-wait", "--relay", RELAY) for name in ("a", "b", "c")]
    store = TokenStore(laptop.path)
    other = EphemeralDevice().identity
    store.use(made[1]["jti"], other.public_key, store.read()[0].issued_at)
    withdrawn = laptop.run("provision", "--withdraw", made[0]["jti"][:12])
    assert withdrawn.exit_code == 0 and "No device can enroll with it" in withdrawn.stdout
    listed = {token["name"]: token for token in laptop.json("provision", "--list")["tokens"]}
    assert {name: token["state"] for name, token in listed.items()} == {"a": "withdrawn", "b": "used", "c": "open"}
    assert listed["b"]["usedBy"] == other.device_id
    shown = laptop.run("provision", "--list").stdout
    assert other.device_id in shown and "open until" in shown and "withdrawn 2" in shown
    for token in made:
        assert token["token"] not in shown and token["token"].split(".")[2] not in shown
    late = laptop.run("provision", "--withdraw", made[1]["jti"], "--json")
    assert late.exit_code == 1 and json.loads(late.stderr)["error"] == "token_already_used"
    unknown = laptop.run("provision", "--withdraw", "bt_zz", "--json")
    assert json.loads(unknown.stderr)["error"] == "token_not_found"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--ttl", "1h"],
        ["--name", "x", "--ttl", "1"],
        ["--name", "x", "--ttl", "", "--no-wait"],
        ["--name", "x", "--ttl", "25h"],
        ["--name", "x", "--resume"],
        ["--list", "--resume"],
        ["--list", "--withdraw", "bt_1"],
        ["--resume", "--no-wait"],
        ["--list", "--v1"],
        ["--name", "x", "--no-wait", "--v1"],
        ["--name", "x", "--output", "yaml"],
    ],
)
def test_what_does_not_go_together(laptop: Laptop, words: list[str]) -> None:
    done = laptop.run("provision", *words)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert not (laptop.path / "tokens.json").exists()


@pytest.mark.parametrize(("words", "code"), [(["--name", "\x1b[2J"], "invalid_input"),
                                             (["--name", "x", "--relay", "https://x"], "invalid_relay_url")])  # fmt: skip
def test_what_makes_no_token(laptop: Laptop, words: list[str], code: str) -> None:
    done = laptop.run("provision", *words, "--json")
    assert done.exit_code == 1 and json.loads(done.stderr)["error"] == code
    assert not (laptop.path / "tokens.json").exists()


def test_bootstrap_without_a_token_and_with_an_identity(laptop: Laptop, tmp_path: Path) -> None:
    empty = ["--dir", str(tmp_path / "new")]
    for words in ([], ["--no-wait", "--timeout", "3"], ["--timeout", "-1"], ["--timeout", "nan"]):
        assert invoke([*empty, "bootstrap", *words]).exit_code == 2
    gone = invoke([*empty, "bootstrap", "--token-file", str(tmp_path / "none"), "--json"])
    assert gone.exit_code == 1 and json.loads(gone.stderr)["error"] == "os_error"
    junk = invoke([*empty, "bootstrap", "--token-file", "-", "--json"], "amesh-bt-v1.secret.b.c")
    assert json.loads(junk.stderr)["error"] == "invalid_token_format" and "secret" not in junk.output
    assert not (tmp_path / "new").exists()
    before = {path.name: path.read_bytes() for path in laptop.path.iterdir() if path.is_file()}
    done = laptop.run("bootstrap", AMESH_BOOTSTRAP_TOKEN="amesh-bt-v1.nonsense")
    assert done.exit_code == 0 and "ignored" in done.stderr and "nonsense" not in done.output
    assert laptop.json("bootstrap")["enrolled"] is False
    assert {path.name: path.read_bytes() for path in laptop.path.iterdir() if path.is_file()} == before


def test_a_token_is_no_argument(laptop: Laptop) -> None:
    assert laptop.run("bootstrap", "amesh-bt-v1.a.b.c").exit_code == 2


def test_which_relays_are_allowed(laptop: Laptop) -> None:
    assert allowed_relays({}) is None and allowed_relays({"AMESH_BOOTSTRAP_RELAYS": ""}) is None
    assert allowed_relays({"AMESH_BOOTSTRAP_RELAYS": " "}) == []
    assert allowed_relays({"AMESH_BOOTSTRAP_RELAYS": f"{RELAY}, ws://b/ws,"}) == [RELAY, "ws://b/ws"]
    assert same_relay(RELAY, "wss://RELAY.example:443/ws") and same_relay("ws://x:80", "WS://x/")
    for other in ("ws://relay.example/ws", "wss://relay.example/", "wss://relay.example/ws?a=1", "wss://relay.example:444/ws",
                  "wss://relay.example.evil/ws", "wss://relay.example/WS", "wss://relay.example:x/ws", ""):  # fmt: skip
        assert not same_relay(RELAY, other)


def test_the_setting_that_pins_relays(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    from amesh_django.server import pinned_relays

    monkeypatch.setenv("AMESH_BOOTSTRAP_RELAYS", "wss://env.example/ws")
    for value, expected in ((None, ["wss://env.example/ws"]), ([], []), ([RELAY], [RELAY])):
        with override_settings(AMESH={"BOOTSTRAP_RELAYS": value}):
            assert not conf.problems()
            assert pinned_relays() == expected
    for wrong in (RELAY, ["https://relay.example"], [5], 5, [""]):
        with override_settings(AMESH={"BOOTSTRAP_RELAYS": wrong}):
            ((kind, sentence),) = conf.problems()
            assert kind == "value" and "wss://relay.example/ws" in sentence


def test_an_identity_that_is_there_ignores_the_token_with_one_warning(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from authmesh.client import default_device, forget_devices

    monkeypatch.setenv("AUTH_MESH_DIR", str(laptop.path))
    monkeypatch.setenv("AMESH_BOOTSTRAP_TOKEN", "amesh-bt-v1.nonsense")
    for _ in range(3):
        forget_devices()
        assert default_device().identity == laptop.device.identity
    forget_devices()
    (record,) = [record for record in caplog.records if "AMESH_BOOTSTRAP_TOKEN" in record.getMessage()]
    assert "nonsense" not in record.getMessage()


def test_a_clock_that_is_set_after_the_first_request(
    laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a machine that boots may be years behind until a time server answers."""
    monkeypatch.setattr(first, "PAUSE_SECONDS", -1.0)
    text = laptop.json("provision", "--name", "web", "--no-wait", "--relay", RELAY)["token"]
    clock = Clock(-400)
    target = Target(tmp_path / "t", clock=clock, relays=[])

    def ask() -> None:
        first.ensure_identity(
            lambda: target.enrolment, target.path, patience=60, environ={"AMESH_BOOTSTRAP_TOKEN": text}
        )

    with pytest.raises(BootstrapPending, match="NTP"):
        ask()
    clock.ahead = 0
    with pytest.raises(BootstrapFailed, match="not among the relays allowed"):
        ask()

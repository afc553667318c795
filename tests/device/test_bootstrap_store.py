"""The tokens that a device has made: their states, their file, and many processes at once."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.terminal.console import UsageProblem
from authmesh.commands.tokens.provision import parse_ttl
from authmesh.device.tokens import REMEMBERED_SECONDS, TokenStore
from authmesh.protocol.errors import DirectoryError
from authmesh.protocol.pairing.token import BootstrapToken
from authmesh.protocol.pairing.token_errors import TokenAlreadyUsed, TokenExpired, TokenNotFound, TokenWithdrawn
from tests.support.services import ROOT

NOW = 1_900_000_000
ME, A, B = (EphemeralDevice().identity for _ in range(3))


def token(number: int = 0, *, life: int = 3600) -> BootstrapToken:
    jti = f"bt_{number:032x}"
    return BootstrapToken(ME.device_id, ME.public_key, NOW, NOW + life, jti, "web", "wss://relay.example/ws", b"k" * 32)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path)


def test_a_token_is_used_once_and_its_secret_is_gone(store: TokenStore, tmp_path: Path) -> None:
    kept = store.add(token(), NOW)
    assert kept.state(NOW) == "open" and kept.is_awaited(NOW)
    path = tmp_path / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "key" in json.loads(path.read_text())["tokens"][0]
    assert "kkkk" not in repr(kept) and "a2tr" not in repr(kept)
    used = store.use(kept.jti, A.public_key, NOW + 5)
    assert (used.state(NOW), used.used_by, used.changed_at, used.key) == ("used", A.device_id, NOW + 5, None)
    assert "a2tr" not in path.read_text() and '"key"' not in path.read_text()
    # Only the same device may use it again, to get its answer.
    assert store.use(kept.jti, A.public_key, NOW + 9) == used
    assert used.is_awaited(NOW + 9)
    with pytest.raises(TokenAlreadyUsed):
        store.use(kept.jti, B.public_key, NOW + 9)
    store.answered(kept.jti, NOW + 9)
    assert not store.get(kept.jti).is_awaited(NOW + 9)
    for device in (A, B):
        with pytest.raises(TokenAlreadyUsed):
            store.use(kept.jti, device.public_key, NOW + 9)
    with pytest.raises(TokenAlreadyUsed) as caught:
        store.withdraw(kept.jti, NOW)
    assert A.device_id in str(caught.value)


def test_withdrawn_and_expired(store: TokenStore, tmp_path: Path) -> None:
    store.add(token(1), NOW)
    store.add(token(2, life=60), NOW)
    assert store.withdraw(token(1).jti, NOW + 1).state(NOW) == "withdrawn"
    assert store.withdraw(token(1).jti, NOW + 2).changed_at == NOW + 1
    with pytest.raises(TokenWithdrawn):
        store.use(token(1).jti, A.public_key, NOW + 2)
    assert store.get(token(2).jti).state(NOW + 59) == "open"
    assert store.get(token(2).jti).state(NOW + 60) == "expired"
    for act in (
        lambda: store.use(token(2).jti, A.public_key, NOW + 60),
        lambda: store.withdraw(token(2).jti, NOW + 60),
    ):
        with pytest.raises(TokenExpired):
            act()
    assert '"key"' in (tmp_path / "tokens.json").read_text()
    assert [t.state(NOW + 60) for t in store.tidy(NOW + 60)] == ["withdrawn", "expired"]
    assert '"key"' not in (tmp_path / "tokens.json").read_text()
    assert len(store.tidy(NOW + 60 + REMEMBERED_SECONDS - 1)) == 2
    assert [t.jti for t in store.tidy(NOW + 60 + REMEMBERED_SECONDS)] == [token(1).jti]
    assert store.tidy(NOW + 3600 + REMEMBERED_SECONDS) == store.read() == []


def test_a_number_may_be_shortened_while_it_is_unique(store: TokenStore) -> None:
    for number in (0x11 << 120, 0x12 << 120):
        store.add(token(number), NOW)
    assert store.match("bt_11").jti == store.match(" 11 ").jti == token(0x11 << 120).jti
    assert store.match(token(0x12 << 120).jti).jti == token(0x12 << 120).jti
    for prefix in ("bt_1", "1", "", "bt_", "zz", "bt_110000000000000000000000000000000000000"):
        with pytest.raises(TokenNotFound):
            store.match(prefix)
    with pytest.raises(TokenNotFound):
        store.get("bt_x\udcff")


@pytest.mark.parametrize(
    "text",
    ["", "null", "{}", '{"tokens": 5}', '{"tokens": [5]}', '{"tokens": [{"jti": 5}]}', "\udcff",
     '{"tokens": [{"jti":"b","name":"n","relay":"r","state":"new","issuedAt":1,"expiresAt":2}]}',
     '{"tokens": [{"jti":"b","name":"n","relay":"r","state":"open","issuedAt":true,"expiresAt":2}]}',
     '{"tokens": [{"jti":"b","name":"n","relay":"r","state":"open","issuedAt":1,"expiresAt":2,"key":"AA"}]}'],
)  # fmt: skip
def test_a_damaged_file_is_no_empty_one(store: TokenStore, tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for act in (store.read, lambda: store.add(token(), NOW), lambda: store.use("b", A.public_key, NOW)):
        with pytest.raises(DirectoryError) as caught:
            act()
        assert "tokens.json" in str(caught.value)
    assert (tmp_path / "tokens.json").read_bytes() == text.encode("utf-8", "surrogateescape")


@pytest.mark.process
def test_many_processes_use_a_token_once_and_lose_none(store: TokenStore, tmp_path: Path) -> None:
    store.add(token(0), NOW)
    code = f"""
import sys
from pathlib import Path
from authmesh.device.tokens import TokenStore
from authmesh.protocol.errors import AmeshError
from amesh_django.test.devices import EphemeralDevice
from tests.device.test_bootstrap_store import token
store, number = TokenStore(Path({str(tmp_path)!r})), int(sys.argv[1])
key = EphemeralDevice().identity.public_key
sys.stdin.read(1)
store.add(token(number), {NOW})
try:
    store.use({token(0).jti!r}, key, {NOW})
    print("mine")
except AmeshError as error:
    print(error.code)
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(1, 7)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in running]
    assert sorted(answers) == ["mine", *["token_already_used"] * 5]
    assert sorted(t.jti for t in store.read()) == sorted(token(number).jti for number in range(7))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("24h", 86400), ("1440m", 86400), ("86400s", 86400), (" 1s ", 1)],
)
def test_how_long_a_token_lives(text: str, seconds: int) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "1", "h", "0s", "-1h", "25h", "86401s", "1d", "1.5h", "1 h", "1H", "\u0661h", "1h30m", "999999s", "1h\n2h"],
)
def test_how_long_no_token_lives(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_ttl(text)
    assert "24h" in str(caught.value)

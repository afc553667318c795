"""``import authmesh``: what is public, and what it costs."""

from __future__ import annotations

import ast
import datetime as dt
import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest

import authmesh
from tests.support.services import run

#: Libraries that a program must not pay for before it uses what needs them.
HEAVY = {"anyio", "argon2", "asyncio", "cryptography", "filelock", "httpx", "requests", "ssl"}


def loaded(code: str) -> set[str]:
    """Run code in a new interpreter and return the top-level modules that it loaded."""
    return set(
        run([sys.executable, "-c", f"{code}\nimport sys\nprint(*{{n.partition('.')[0] for n in sys.modules}})"]).split()
    )


def imported_for_type_checkers() -> dict[str, str]:
    """Return each name that the face imports under TYPE_CHECKING, with the module that it comes from."""
    tree = ast.parse(Path(inspect.getsourcefile(authmesh) or "").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        alias.name: f"authmesh.{statement.module}"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@pytest.mark.process
def test_importing_it_loads_nothing_heavy() -> None:
    assert not loaded("import authmesh; dir(authmesh); authmesh.__all__") & HEAVY
    assert not loaded("from authmesh import protocol") & {"argon2", "filelock", "httpx"}


@pytest.mark.process
@pytest.mark.parametrize("name", ["sign", "canonical_string", "shared_secret", "AmeshError", "InMemoryNonceStore"])
def test_what_needs_no_network_loads_none(name: str) -> None:
    assert not loaded(f"from authmesh import {name}") & {"anyio", "argon2", "asyncio", "httpx", "requests"}


@pytest.mark.process
def test_a_device_loads_no_http_client() -> None:
    assert not loaded("from authmesh import LocalDevice, init_device, FileAllowList") & {"anyio", "httpx", "requests"}


def test_each_name_is_the_one_of_its_room() -> None:
    rooms = imported_for_type_checkers()
    assert sorted(rooms) == sorted(authmesh.__all__), "the imports for type checkers and __all__ differ"
    for name, room in rooms.items():
        assert getattr(authmesh, name) is getattr(import_module(room), name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'authmesh' has no attribute 'nothing'"):
        authmesh.nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from authmesh import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_dir_lists_what_is_public() -> None:
    assert set(authmesh.__all__) <= set(dir(authmesh))


def test_a_session_at_the_prompt() -> None:
    """What a person tries first: a key, a signature, a key agreement, a nonce."""
    private, other = authmesh.generate_private_key(), authmesh.generate_private_key()
    public = authmesh.public_key_bytes(authmesh.load_private_key(private))
    theirs = authmesh.public_key_bytes(authmesh.load_private_key(other))
    assert authmesh.device_id(public).startswith("am_")
    assert authmesh.decode_public_key(authmesh.encode_public_key(public)) == public

    message = authmesh.canonical_string("post", "/notes?b=2&a=1", 1_700_000_000, "n" * 22, b"milk")
    assert message.splitlines()[:3] == ["AMv1", "POST", "/notes?a=1&b=2"]
    signature = authmesh.sign(private, message.encode())
    assert authmesh.verify_signature(public, message.encode(), signature)
    assert not authmesh.verify_signature(theirs, message.encode(), signature)

    shared = authmesh.shared_secret(private, theirs)
    assert shared == authmesh.shared_secret(other, public)
    assert len(authmesh.session_key(shared)) == 32

    nonces = authmesh.InMemoryNonceStore(clock=lambda: 0)
    assert nonces.record(authmesh.device_id(public), "n", 61)
    assert not nonces.record(authmesh.device_id(public), "n", 61)


def test_a_device_and_its_list(tmp_path: Path) -> None:
    identity = authmesh.init_device(tmp_path / "device", "laptop", now=dt.datetime.now(dt.UTC))
    device = authmesh.LocalDevice(tmp_path / "device")
    assert device.identity == identity
    trusted = authmesh.FileAllowList(device)
    key = authmesh.public_key_bytes(authmesh.load_private_key(authmesh.generate_private_key()))
    assert trusted.read() == []
    header = authmesh.authorization_header("GET", "/notes", device=device)
    assert header.startswith('AuthMesh v="1"')
    with pytest.raises(authmesh.AmeshError):
        trusted.revoke(authmesh.device_id(key))
    with pytest.raises(authmesh.IdentityMissing):
        authmesh.LocalDevice(tmp_path / "nowhere")

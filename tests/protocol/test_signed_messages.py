"""Every message that a key of a device signs has a prefix of its own, so that no signature passes for one with another purpose."""

from __future__ import annotations

import ast
import datetime as dt
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from amesh_django.audit.checkpoints import Checkpoint
from authmesh.keystore.macos import store as macos_store
from authmesh.keystore.tpm import store as tpm_store
from authmesh.protocol import enrollment, rotation
from authmesh.protocol.fleet import feed, pull
from authmesh.protocol.keys import load_private_key, public_key_bytes
from authmesh.protocol.pairing import v1, v2
from authmesh.protocol.pairing.token import acknowledgement_message, build_token, init_message
from authmesh.protocol.schemes.registry import SCHEMES
from tests.support.services import ROOT

NOW = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
#: The beginning of each message, by the place that signs it: file, and the argument of the call. The docs/design.md names them too.
PREFIXES = {
    ("client/signing.py", "message"): "AMv1\n",
    (
        "protocol/pairing/v1.py",
        "self_signature_message(key, name, timestamp)",
    ): "A[g-z0-9+/]",  # the device's own key in base64
    ("protocol/pairing/v2.py", "self_signature_message(role, key, timestamp, name, h)"): "amesh-pair-v2/identity\n",
    ("protocol/pairing/token.py", "signed.encode('ascii')"): "eyJ0eXAiOi",  # {"typ": in base64url
    ("pairing/bootstrap/target.py", "init_message(public_key, token.jti)"): "amesh-bootstrap-init-v2\n",
    ("pairing/bootstrap/controller.py", "acknowledgement_message(public_key, token.jti)"): "amesh-bootstrap-ack-v1\n",
    ("protocol/enrollment.py", "request"): "amesh-enroll-v1\n",
    ("protocol/enrollment.py", "answer"): "amesh-enrolled-v1\n",
    ("protocol/rotation.py", "rotation"): "amesh-rotate-v1\n",
    ("protocol/rotation.py", "rotated"): "amesh-rotated-v1\n",
    ("protocol/fleet/feed.py", "acknowledged"): "amesh-feed-ack-v1\n",
    ("audit/checkpoints.py", "checkpoint.message"): "amesh-audit-checkpoint-v1\n",
    ("fleet/signed_list.py", "signed.encode('ascii')"): "eyJhbGciOi",  # {"alg": in base64url
    ("protocol/fleet/pull.py", "answered"): "amesh-feed-pull-v1\n",
    ("commands/identity.py", "message"): "amesh sign-test ",
    ("commands/doctor/device.py", "message"): "amesh doctor ",
    ("keystore/tpm/store.py", "_FIRST"): "amesh: the first signature of a new key",
    ("keystore/macos/store.py", "_FIRST"): "amesh: the first signature of a new key",
}
#: Functions that pass a message on to a key, and do not make one.
PASSING_ON = ("sign", "sign_digest")


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield each call in a module, with the name of the function around it."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            yield inside, node
        yield from calls(node, inside)


def signing_places() -> set[tuple[str, str]]:
    """Return each place in the code that has a message signed: its file, and the message as it stands in the call."""
    found = set()
    for package in (ROOT / "cli" / "authmesh", ROOT / "amesh_django"):
        for path in package.rglob("*.py"):
            for function, call in calls(ast.parse(path.read_text("utf-8"))):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                if name == "sign" and function not in PASSING_ON:
                    found.add((str(path.relative_to(package)), ast.unparse(call.args[-1])))
    return found


def test_each_place_that_signs_is_known() -> None:
    assert signing_places() == PREFIXES.keys(), (
        "A new signed message needs a prefix of its own, here and in docs/design.md."
    )


def test_no_prefix_is_the_beginning_of_another() -> None:
    second = "ghijklmnopqrstuvwxyz0123456789+/"
    plain = {prefix for prefix in PREFIXES.values() if "[" not in prefix} | {f"A{letter}" for letter in second}
    for one, other in itertools.permutations(plain, 2):
        assert not one.startswith(other)
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for prefix in set(PREFIXES.values()):
        assert f"`{prefix.strip()}`" in design or "[" in prefix, f"docs/design.md does not name {prefix!r}"


def message_signed(make: Callable[[Callable[[bytes], bytes]], object]) -> bytes:
    """Return the message for which a function asks for a signature."""
    signed: list[bytes] = []

    def sign(message: bytes) -> bytes:
        signed.append(message)
        return bytes(64)

    make(sign)
    (message,) = signed
    return message


def begins(file: str, message: bytes) -> bool:
    prefixes = {prefix for (place, _), prefix in PREFIXES.items() if place == file}
    patterns = [prefix if "[" in prefix else re.escape(prefix) for prefix in prefixes]
    return any(re.match(pattern.encode(), message) for pattern in patterns)


@given(
    scalar=st.integers(1, 2**250),
    name=st.text(st.characters(codec="utf-8"), max_size=40),
    method=st.sampled_from(["GET", "AMESH"]),
)
def test_messages_begin_with_their_prefix(scalar: int, name: str, method: str) -> None:
    key = public_key_bytes(load_private_key(scalar.to_bytes(32, "big")))
    for scheme in SCHEMES.values():
        request = scheme.signed_message(method=method, target="/", timestamp="1", nonce="n", body_hash="0" * 64)
        assert begins("client/signing.py", request)
    assert begins("protocol/pairing/v1.py", message_signed(lambda sign: v1.build_identity(key, name, NOW, sign)))
    for role in ("controller", "target"):
        introduce = message_signed(lambda sign, role=role: v2.build_identity(role, key, name, NOW, bytes(32), sign))  # type: ignore[misc]
        assert begins("protocol/pairing/v2.py", introduce)
    token = message_signed(
        lambda sign: build_token(public_key=key, name=name, relay="wss://x/ws", issued_at=1, lifetime=60, sign=sign)
    )
    assert begins("protocol/pairing/token.py", token)
    assert begins("pairing/bootstrap/target.py", init_message(key, name))
    assert begins("pairing/bootstrap/controller.py", acknowledgement_message(key, name))
    enroll = enrollment.enrollment_message(jti="et_", public_key=key, friendly_name=name, issued_at=1, issuer="am_")
    enrolled = enrollment.answer_message(jti="et_", public_key=key, state="active")
    rotate = rotation.rotation_message(old_device_id="am_", new_public_key=key, audience="am_", issued_at=1)
    rotated = rotation.rotated_message(old_device_id="am_", new_public_key=key, audience="am_")
    assert begins("protocol/enrollment.py", enroll) and begins("protocol/enrollment.py", enrolled)
    ack = feed.ack_message(issuer="am_", audience="am_", epoch="e", applied=1, nonce=name)
    assert begins("protocol/fleet/feed.py", ack)
    assert begins("protocol/fleet/pull.py", pull._message(name.encode(), "am_", "am_", "n"))
    checkpoint = Checkpoint(1, "f" * 64, 1, "2026-03-28T10:05:00.000Z", "am_", name)
    assert begins("audit/checkpoints.py", checkpoint.message)
    assert begins("protocol/rotation.py", rotate) and begins("protocol/rotation.py", rotated)


def test_messages_about_nothing() -> None:
    """A key signs them to show that it works, and their signatures are never sent."""
    assert begins("keystore/tpm/store.py", tpm_store._FIRST)
    assert begins("keystore/macos/store.py", macos_store._FIRST)
    for file in ("commands/identity.py", "commands/doctor/device.py"):
        (made,) = re.findall(
            r'message = b"([^"]*)" \+ os\.urandom', Path(ROOT / "cli/authmesh" / file).read_text("utf-8")
        )
        assert begins(file, made.encode())

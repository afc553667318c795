"""Enrollment tokens and rotation as pure functions: what is made is accepted, and whatever is changed is rejected."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol import enrollment, rotation
from authmesh.protocol.display import without_tokens
from authmesh.protocol.enrollment import EnrollmentToken
from authmesh.protocol.enrollment_errors import (
    InvalidEnrollmentToken,
    MalformedEnrollment,
    NotAnEnrollmentToken,
    UnverifiedAnswer,
)
from authmesh.protocol.errors import AmeshError, InvalidInput

SERVER, MACHINE, OTHER = EphemeralDevice("server"), EphemeralDevice("machine"), EphemeralDevice("other")
JTI = "et_" + "0123456789abcdef" * 2
URL = "https://api.example/amesh/"
NOW = 1_764_316_800
SECRET = enrollment.token_secret(b"k" * 32, JTI)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def token_text(**changes: Any) -> str:
    members = {
        "url": URL,
        "public_key": SERVER.identity.public_key,
        "jti": JTI,
        "expires_at": NOW + 60,
        "secret": SECRET,
        "name": "sensors",
    }
    return enrollment.build_token(**{**members, **changes})


def token() -> EnrollmentToken:
    return enrollment.parse_token(token_text())


def request(name: str = "m-1") -> dict[str, Any]:
    public_key = MACHINE.identity.public_key
    return enrollment.build_request(token(), public_key=public_key, friendly_name=name, now=NOW, sign=MACHINE.sign)


def check(value: Any) -> enrollment.EnrollmentRequest:
    """Check a request as the server does."""
    found = enrollment.parse_request(value)
    issuer = SERVER.identity.device_id
    enrollment.verify_proof(found, secret=enrollment.token_secret(b"k" * 32, found.jti), issuer=issuer)
    enrollment.verify_key(found, issuer=issuer)
    return found


@given(
    host=st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,5})?(:[1-9][0-9]{0,3})?", fullmatch=True),
    path=st.from_regex(r"(/[a-z0-9._~-]{1,8}){0,3}/", fullmatch=True),
    expires_at=st.integers(0, 1 << 40),
    secret=st.binary(min_size=32, max_size=32),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_a_token_is_read_as_it_was_made(host: str, path: str, expires_at: int, secret: bytes, name: str | None) -> None:
    text = token_text(url=f"https://{host}{path}", expires_at=expires_at, secret=secret, name=name)
    found = enrollment.parse_token(f" {text}\r\n")
    assert found == EnrollmentToken(
        f"https://{host}{path}", SERVER.identity.device_id, SERVER.identity.public_key, JTI, expires_at, secret, name
    )
    assert secret.hex() not in repr(found) and repr(secret) not in repr(found)
    assert without_tokens(f"x {text}") == "x amesh-et-v1.…"


@given(JSON, st.sampled_from(["url", "iss", "pub", "jti", "exp", "name", ""]))
def test_a_wrong_member_is_no_token(value: Any, name: str) -> None:
    head, _, secret = token_text().rpartition(".")
    members = json.loads(base64.urlsafe_b64decode(head.removeprefix(enrollment.PREFIX) + "=="))
    members = {**members, name: value} if name else value
    text = base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()
    try:
        found = enrollment.parse_token(f"{enrollment.PREFIX}{text}.{secret}")
    except NotAnEnrollmentToken:
        return
    assert name in ("name", "exp")  # any text is a name, and any number from 0 a time
    assert isinstance(found.name, str | None) and isinstance(found.expires_at, int)


@pytest.mark.parametrize(
    "text",
    ["", "amesh-et-v1.", "amesh-et-v1.e30.AAAA", "amesh-bt-v1.e30.e30.AAAA", "x" * 9000, "amesh-et-v1.\udcff.e30"],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(NotAnEnrollmentToken):
        enrollment.parse_token(text)


@pytest.mark.parametrize(
    "url",
    ["", "api.example/amesh/", "https://api.example/amesh", "ftp://x/", "https://u:p@x/", "https://x/?a/", "https:///", "https://x:0/", "https://x/ä/"],
)  # fmt: skip
def test_a_token_names_an_address(url: str) -> None:
    with pytest.raises(InvalidInput):
        token_text(url=url)
    with pytest.raises(InvalidInput):
        token_text(jti="et_" + "0" * 31)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128).filter(str.strip))
def test_a_request_is_accepted_as_it_was_made(name: str) -> None:
    found = check(request(name))
    assert (found.jti, found.public_key, found.friendly_name) == (JTI, MACHINE.identity.public_key, name)
    assert found.issued_at == NOW


@given(
    st.sampled_from(sorted(request())), JSON | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode())
)
def test_whatever_is_changed_in_a_request_is_rejected(name: str, value: Any) -> None:
    changed = {**request(), name: value}
    if changed == request():
        return
    with pytest.raises((InvalidEnrollmentToken, MalformedEnrollment)):
        check(changed)


@given(JSON)
def test_any_json_is_at_worst_malformed(value: Any) -> None:
    for parse in (enrollment.parse_request, rotation.parse_rotation):
        with pytest.raises(MalformedEnrollment):
            parse(value)
    with pytest.raises(UnverifiedAnswer):
        enrollment.verify_answer(token(), public_key=MACHINE.identity.public_key, value=value)
    with pytest.raises(UnverifiedAnswer):
        rotation.verify_rotated(
            value,
            old_device_id=MACHINE.identity.device_id,
            new_public_key=OTHER.identity.public_key,
            server_key=SERVER.identity.public_key,
            audience=SERVER.identity.device_id,
        )


def test_a_proof_is_good_for_one_key_one_server_and_one_token() -> None:
    public_key, issuer = OTHER.identity.public_key, SERVER.identity.device_id
    stolen = {**request(), "publicKey": base64.b64encode(public_key).decode()}
    found = enrollment.parse_request(stolen)
    with pytest.raises(InvalidEnrollmentToken, match="token"):  # the proof of another key
        enrollment.verify_proof(found, secret=SECRET, issuer=issuer)
    genuine = enrollment.parse_request(request())
    with pytest.raises(InvalidEnrollmentToken):
        enrollment.verify_proof(genuine, secret=SECRET, issuer=OTHER.identity.device_id)
    with pytest.raises(InvalidEnrollmentToken):
        enrollment.verify_proof(genuine, secret=enrollment.token_secret(b"other" * 7, JTI), issuer=issuer)
    own_signature = {**request(), "sig": base64.b64encode(OTHER.sign(genuine.message(issuer))).decode()}
    with pytest.raises(InvalidEnrollmentToken):  # a key that the sender does not have
        enrollment.verify_key(enrollment.parse_request(own_signature), issuer=issuer)


def answer(state: str = "active", sign: Any = SERVER.sign) -> dict[str, Any]:
    found = enrollment.parse_request(request())
    return enrollment.build_answer(
        found, state=state, server_key=SERVER.identity.public_key, server_name="api", sign=sign
    )


@pytest.mark.parametrize("state", enrollment.STATES)
def test_an_answer_is_verified_with_the_key_in_the_token(state: str) -> None:
    found = enrollment.verify_answer(token(), public_key=MACHINE.identity.public_key, value=answer(state))
    assert found == enrollment.EnrollmentAnswer(MACHINE.identity.device_id, state, "api")
    forged = answer(state, OTHER.sign)
    own = copy.deepcopy(forged)
    own["server"]["publicKey"] = base64.b64encode(OTHER.identity.public_key).decode()
    for wrong in (forged, own, {**answer(state), "state": "pending" if state == "active" else "active"}):
        with pytest.raises(UnverifiedAnswer):
            enrollment.verify_answer(token(), public_key=MACHINE.identity.public_key, value=wrong)
    with pytest.raises(UnverifiedAnswer):  # the answer to another machine
        enrollment.verify_answer(token(), public_key=OTHER.identity.public_key, value=answer(state))


# --- rotation -------------------------------------------------------------------------------------------------------


def rotate() -> dict[str, Any]:
    return rotation.build_rotation(
        old_device_id=MACHINE.identity.device_id,
        new_public_key=OTHER.identity.public_key,
        audience=SERVER.identity.device_id,
        now=NOW,
        sign=OTHER.sign,
    )


def verify(value: Any) -> rotation.RotationRequest:
    found = rotation.parse_rotation(value)
    rotation.verify_rotation(found, old_public_key=MACHINE.identity.public_key, audience=SERVER.identity.device_id)
    return found


@given(st.sampled_from(sorted(rotate())), JSON | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode()))
def test_whatever_is_changed_in_a_rotation_is_rejected(name: str, value: Any) -> None:
    assert verify(rotate()).new_public_key == OTHER.identity.public_key
    changed = {**rotate(), name: value}
    if changed != rotate():
        with pytest.raises(AmeshError):
            verify(changed)


def test_a_rotation_is_for_one_server_and_to_another_key() -> None:
    found = rotation.parse_rotation(rotate())
    with pytest.raises(rotation.WrongAudience):
        rotation.verify_rotation(found, old_public_key=MACHINE.identity.public_key, audience=MACHINE.identity.device_id)
    with pytest.raises(rotation.InvalidNewKey):  # the request of another device
        rotation.verify_rotation(found, old_public_key=SERVER.identity.public_key, audience=SERVER.identity.device_id)
    same = rotation.build_rotation(
        old_device_id=MACHINE.identity.device_id,
        new_public_key=MACHINE.identity.public_key,
        audience=SERVER.identity.device_id,
        now=NOW,
        sign=MACHINE.sign,
    )
    verify(same)  # not a rotation: the device asks whether the server has accepted its key already


def test_the_answer_to_a_rotation_is_signed_by_the_server() -> None:
    found = verify(rotate())

    def answered(sign: Any) -> int | None:
        return rotation.verify_rotated(
            rotation.build_rotated(found, old_device_id=MACHINE.identity.device_id, overlap=600, sign=sign),
            old_device_id=MACHINE.identity.device_id,
            new_public_key=OTHER.identity.public_key,
            server_key=SERVER.identity.public_key,
            audience=SERVER.identity.device_id,
        )

    assert answered(SERVER.sign) == 600
    with pytest.raises(UnverifiedAnswer):
        answered(OTHER.sign)

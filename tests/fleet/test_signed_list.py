"""The signed list of a hub: what it contains, and which lists a server accepts."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from django.db import connection

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import signed_list
from amesh_django.models import Device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.fleet.errors import UnverifiedMessage
from authmesh.protocol.fleet.events import key_hash

NOW = 1_800_000_000.0

Trust = Callable[..., EphemeralDevice]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    signed_list.reset()


def part(value: Any) -> str:
    return b64url_encode(json.dumps(value).encode())


def claims(hub: EphemeralDevice, **more: Any) -> dict[str, Any]:
    return {
        "iss": hub.identity.device_id,
        "sub": "https://hub.example/amesh/",
        "iat": int(NOW),
        "exp": int(NOW) + 3600,
        "ttl": 60,
        "epoch": "e1",
        "serial": 9,
        "revoked": [{"key": b64url_encode(bytes(32)), "serial": 4, "at": "2026-11-28T10:05:00.000Z"}],
        **more,
    }


def jws(signer: EphemeralDevice, payload: Any, **header: Any) -> str:
    signed = f"{part({'alg': 'ES256', 'typ': signed_list.TYPE, **header})}.{part(payload)}"
    return f"{signed}.{b64url_encode(signer.sign(signed.encode()))}"


def verified(text: str, hub: EphemeralDevice, *, now: float = NOW, newest: tuple[str, int] = ("", 0)) -> Any:
    identity = hub.identity
    return signed_list.verify(text, issuer=identity.device_id, issuer_key=identity.public_key, now=now, newest=newest)


# --- at the hub ---


def test_the_list_has_each_key_that_was_revoked(amesh_server: LocalDevice, amesh_trust: Trust) -> None:
    """Also one that was purged; neither one that was trusted again since, nor one that is only suspended."""
    names = ("active", "revoked", "purged", "back", "suspended")
    devices = {name: amesh_trust(EphemeralDevice(name)) for name in names}
    ids = {name: device.identity.device_id for name, device in devices.items()}
    trusted = DatabaseAllowList(by="tests")
    for name in ("revoked", "purged", "back"):
        trusted.revoke(ids[name], reason="lost")
    trusted.purge(ids["purged"])
    trusted.purge(ids["back"])
    amesh_trust(devices["back"])
    trusted.suspend([ids["suspended"]], reason="holidays")

    text = signed_list.build(NOW)

    own = amesh_server.identity
    found = signed_list.verify(text, issuer=own.device_id, issuer_key=own.public_key, now=NOW)
    row = current_list().read_seal()
    assert row is not None
    assert (found.issuer, found.epoch, found.serial) == (own.device_id, row.epoch, row.revision)
    assert signed_list.issuer_of(text) == own.device_id
    assert found.expires_at == NOW + signed_list.LIFE_SECONDS
    keys = {one.key: one for one in found.revoked}
    assert keys.keys() == {key_hash(devices[name].identity.public_key) for name in ("revoked", "purged")}
    kept = Device.objects.get(device_id=ids["revoked"])
    one = keys[key_hash(devices["revoked"].identity.public_key)]
    assert kept.revoked_at is not None
    assert one.serial == kept.revision and abs((one.at - kept.revoked_at).total_seconds()) < 0.001
    assert jwt.get_unverified_header(text) == {"alg": "ES256", "typ": "amesh-revocations+jwt"}


def test_a_list_is_made_again_when_the_allow_list_was_changed(amesh_trust: Trust) -> None:
    device = amesh_trust()
    first = signed_list.build(NOW)
    assert signed_list.build(NOW + 5) is first
    assert signed_list.build(NOW + 20) != first  # a key that was replaced is revoked by the clock
    first = signed_list.build(NOW + 20)
    DatabaseAllowList(by="tests").revoke(device.identity.device_id, reason="lost")
    assert signed_list.build(NOW + 21, max_age=10) is first
    assert signed_list.build(NOW + 21) != first


def test_a_list_that_does_not_match_its_seal_still_tells_of_revocations(
    amesh_server: LocalDevice, amesh_trust: Trust
) -> None:
    """A row that was marked as revoked outside Django is no revocation, and one that was made valid again stays revoked."""
    forged, lost = amesh_trust(EphemeralDevice("forged")), amesh_trust(EphemeralDevice("lost"))
    DatabaseAllowList(by="tests").revoke(lost.identity.device_id, reason="lost")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET revoked_at = NULL WHERE device_id = %s", [lost.identity.device_id])
        cursor.execute(
            "UPDATE amesh_device SET revoked_at = added_at WHERE device_id = %s", [forged.identity.device_id]
        )
    with pytest.raises(AllowListIntegrityFailure):
        current_list().snapshot()
    own = amesh_server.identity
    found = signed_list.verify(signed_list.build(NOW), issuer=own.device_id, issuer_key=own.public_key, now=NOW)
    assert [one.key for one in found.revoked] == [key_hash(lost.identity.public_key)]


def test_there_is_no_list_without_an_allow_list(db: None, amesh_server: LocalDevice) -> None:
    with pytest.raises(signed_list.NothingToSign):
        signed_list.build(NOW)


# --- at a server ---


def test_a_list_of_the_hub_is_accepted() -> None:
    hub = EphemeralDevice("hub")
    found = verified(jws(hub, claims(hub)), hub, newest=("e1", 9))
    assert (found.url, found.epoch, found.serial) == ("https://hub.example/amesh/", "e1", 9)
    assert [(one.key, one.serial) for one in found.revoked] == [(bytes(32), 4)]
    assert verified(jws(hub, claims(hub)), hub, newest=("e0", 100)).serial == 9  # serials of two epochs


ATTACKS: dict[str, Callable[[EphemeralDevice, EphemeralDevice], str]] = {
    "no signature": lambda hub, other: f"{part({'alg': 'none', 'typ': signed_list.TYPE})}.{part(claims(hub))}.",
    "alg none with a signature": lambda hub, other: jws(hub, claims(hub), alg="none"),
    "the public key as secret of an HMAC": lambda hub, other: with_hmac(hub),
    "another curve": lambda hub, other: jws(hub, claims(hub), alg="ES384"),
    "another key": lambda hub, other: jws(other, claims(hub)),
    "the key of the attacker in the header": lambda hub, other: jws(
        other, claims(hub), jwk={"kty": "EC", "crv": "P-256"}, kid="hub"
    ),
    "another type": lambda hub, other: jws(hub, claims(hub), typ="JWT"),
    "an extension that must be understood": lambda hub, other: jws(hub, claims(hub), crit=["x"], x=1),
    "another hub": lambda hub, other: jws(hub, claims(other)),
    "older": lambda hub, other: jws(hub, claims(hub, serial=8)),
    "expired": lambda hub, other: jws(hub, claims(hub, exp=int(NOW))),
    "without an end": lambda hub, other: jws(hub, {**claims(hub), "exp": None}),
    "of the future": lambda hub, other: jws(hub, claims(hub, iat=int(NOW) + 61)),
    "cut off": lambda hub, other: jws(hub, claims(hub))[:-40],
    "changed": lambda hub, other: jws(hub, claims(hub)).replace(part(claims(hub)), part(claims(hub, serial=10))),
    "no epoch": lambda hub, other: jws(hub, claims(hub, epoch="")),
    "a serial above its own": lambda hub, other: jws(
        hub, claims(hub, revoked=[{"key": b64url_encode(bytes(32)), "serial": 10, "at": "2026-11-28T10:05:00.000Z"}])
    ),
    "a short hash": lambda hub, other: jws(
        hub, claims(hub, revoked=[{"key": "AAAA", "serial": 1, "at": "2026-11-28T10:05:00.000Z"}])
    ),
    "entries that are none": lambda hub, other: jws(hub, claims(hub, revoked=[None])),
    "deep": lambda hub, other: jws(hub, []).replace(part([]), b64url_encode(b"[" * 200_000)),
    "no object": lambda hub, other: jws(hub, ["revoked"]),
    "no JWS": lambda hub, other: "revoked",
    "nothing": lambda hub, other: "",
}


def with_hmac(hub: EphemeralDevice) -> str:
    signed = f"{part({'alg': 'HS256', 'typ': signed_list.TYPE})}.{part(claims(hub))}"
    return f"{signed}.{b64url_encode(hmac.digest(hub.identity.public_key, signed.encode(), hashlib.sha256))}"


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_other_list_is_accepted(attack: str) -> None:
    hub, other = EphemeralDevice("hub"), EphemeralDevice("other")
    with pytest.raises(UnverifiedMessage):
        verified(ATTACKS[attack](hub, other), hub, newest=("e1", 9))


@pytest.mark.slow
def test_a_list_of_a_hundred_thousand_keys_is_verified_in_time() -> None:
    hub = EphemeralDevice("hub")
    revoked = [
        {"key": b64url_encode(hashlib.sha256(str(n).encode()).digest()), "serial": n, "at": "2026-11-28T10:05:00.000Z"}
        for n in range(100_000)
    ]
    text = jws(hub, claims(hub, serial=100_000, revoked=revoked))
    start = time.process_time()
    found = verified(text, hub)
    assert time.process_time() - start < 3
    assert len(found.revoked) == 100_000


def test_without_pyjwt_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_list, "jwt", None)
    hub = EphemeralDevice("hub")
    with pytest.raises(signed_list.FleetPartMissing, match="PyJWT") as raised:
        verified(jws(hub, claims(hub)), hub)
    assert "amesh-django[django]" in raised.value.text()

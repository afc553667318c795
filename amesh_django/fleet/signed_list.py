"""The signed list of a hub: all keys that it has revoked, as a JWS (RFC 7515), which a server verifies by itself (docs/fleet.md).

It is for servers that cannot reach the hub, and for those that are too far behind for single events. It never adds a device.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

try:
    import jwt
except ModuleNotFoundError:  # the extra [django], which a project that has Django may not have installed
    jwt = None  # type: ignore[assignment]

from amesh_django.conf import amesh_settings
from amesh_django.kinds import EventKind
from amesh_django.models import Device
from amesh_django.server import server_device
from amesh_django.states import ROTATED
from amesh_django.trust import SealedList, current_list
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import UNREADABLE
from amesh_django.trust.sealing import SealRow
from amesh_django.trust.verified import Snapshot
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.encoding import b64url_decode, b64url_encode, format_time, parse_time
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError, InvalidInput, RequestError
from authmesh.protocol.fleet.errors import MalformedFeed, UnverifiedMessage
from authmesh.protocol.fleet.events import epoch, key_hash, serial, text
from authmesh.protocol.fleet.feed import MAX_MESSAGE_BYTES
from authmesh.protocol.keys import decode_public_key, load_public_key

#: ``typ`` and ``alg`` of the header. No other ones are accepted.
TYPE: Final = "amesh-revocations+jwt"
ALGORITHM: Final = "ES256"
MEDIA_TYPE: Final = f"application/{TYPE}"
#: Seconds for which a list is accepted, and after which a newer one should be fetched.
LIFE_SECONDS: Final = 7 * 24 * 3600
TTL_SECONDS: Final = 60
#: Seconds for which a list that was made is handed out again while the allow list is the same. Keys expire by the clock, too.
_KEEP_SECONDS = 10
#: Largest difference between the clocks of hub and server, in seconds.
_MAX_SKEW_SECONDS = 60
_HASH_BYTES = 32


class FleetPartMissing(RequestError):
    """PyJWT is not installed."""

    code = "extra_missing"
    status = 503
    default_message = (
        "The signed list of the hub cannot be verified, because PyJWT is not installed. Nothing was changed."
    )
    default_hint = "Run: pip install 'amesh-django[django]'. Then restart the server."


class NothingToSign(AmeshError):
    """There is no allow list yet."""

    code = "no_allow_list"
    default_message = "This server has no sealed allow list yet, so there is nothing to sign."
    default_hint = "Trust a device first."


class Revoked(NamedTuple):
    """A key that the hub has revoked.

    Attributes:
        key: SHA-256 of the public key, 32 bytes.
        serial: revision of the hub's list.
        at: time at the hub.
        next: device ID of the key that has replaced it; empty if it was revoked for another reason.
    """

    key: bytes
    serial: int
    at: dt.datetime
    next: str = ""


class SignedList(NamedTuple):
    """A list that was verified.

    Attributes:
        issuer: device ID of the hub.
        url: address of the hub's ``amesh/``; empty if it has none.
        epoch: epoch of the hub's list.
        serial: its revision.
        issued_at: Unix seconds at the hub.
        expires_at: Unix seconds from which it is not accepted.
        revoked: the keys.
    """

    issuer: str
    url: str
    epoch: str
    serial: int
    issued_at: int
    expires_at: int
    revoked: Sequence[Revoked]


# --- at the hub ---


class _Made(NamedTuple):
    """The newest list that this process has made, with the seal that it was made from."""

    row: SealRow
    at: float
    jws: str


_lock = ForkSafeLock()
_made: _Made | None = None


def build(now: float, *, max_age: float = 0) -> str:
    """Return the signed list of all keys that this server has revoked, also of those that were purged.

    Args:
        now: Unix seconds.
        max_age: seconds for which a list is good enough although the allow list has changed since.

    Raises:
        NothingToSign: there is no allow list.
        AllowListIntegrityFailure: the seal is missing or forged, or an older list was restored.
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: this server cannot sign, or its keys cannot be used.
    """
    global _made
    with _lock:  # it is read by anyone: the work of one is for all
        if _made is not None and 0 <= now - _made.at < max_age:
            return _made.jws
        sealed = current_list()
        row, read = _sealed(sealed, now)
        if _made is None or _made.row != row or not 0 <= now - _made.at < _KEEP_SECONDS:
            _made = _Made(row, now, _signed(row, read(), now))
        return _made.jws


def _signed(row: SealRow, revoked: Iterator[Revoked], now: float) -> str:
    device = server_device()
    claims = {
        "iss": device.identity.device_id,
        "sub": amesh_settings().URL or "",
        "iat": int(now),
        "exp": int(now) + LIFE_SECONDS,
        "ttl": TTL_SECONDS,
        "epoch": row.epoch,
        "serial": row.revision,
        "revoked": [
            # A row may have been changed since the seal was read.
            {"key": b64url_encode(one.key), "serial": min(one.serial, row.revision), "at": format_time(one.at)}
            | ({"next": one.next} if one.next else {})
            for one in revoked
        ],
    }
    # PyJWT signs with keys in memory only, and ours may be in a TPM.
    signed = f"{_part({'alg': ALGORITHM, 'typ': TYPE})}.{_part(claims)}"
    return f"{signed}.{b64url_encode(device.sign(signed.encode('ascii')))}"


def _part(value: Any) -> str:
    return b64url_encode(json.dumps(value, separators=(",", ":")).encode())


def _sealed(sealed: SealedList, now: float) -> tuple[SealRow, Callable[[], Iterator[Revoked]]]:
    """Return the seal, and what reads the revoked keys of the list that it seals.

    Raises:
        NothingToSign, AllowListIntegrityFailure, AllowListUnavailable: as for :func:`build`.
    """
    try:
        known = sealed.snapshot()
    except AllowListIntegrityFailure as error:
        if error.reason != "rows_mismatch":
            raise
        row = sealed.read_seal()
        if row is None or not sealed.is_genuine(row):
            raise
        row, _is_mark = sealed.check_age(row)
        if row is None or not row.epoch:
            raise NothingToSign() from None
        # A device can be revoked in such a list, too. What its rows were is in the audit log.
        return row, lambda: _of_rows(sealed, sealed.sealed_devices(), now)
    if known.row is None or not known.row.epoch:
        raise NothingToSign()
    return known.row, lambda: _of_list(sealed, known, now)


def _of_list(sealed: SealedList, known: Snapshot, now: float) -> Iterator[Revoked]:
    rows = Device.objects.using(sealed.using).filter(revoked_at__isnull=False).order_by()
    devices = sealed.verified(lambda: list(rows.iterator()), _has_all_revoked)
    return _of_rows(sealed, devices, now, {device.device_id for device in known.by_key.values()})


def _of_rows(
    sealed: SealedList, devices: Sequence[Device], now: float, there: Collection[str] = ()
) -> Iterator[Revoked]:
    """Yield the revoked keys of devices, and of those that were purged.

    Args:
        sealed: the allow list.
        devices: the devices.
        now: Unix seconds.
        there: device IDs of all devices. Defaults to those of *devices*.
    """
    found = dict(_of_devices(devices, now))
    purged = {}
    for change in sealed.events(kind=EventKind.PURGE):
        if change is not None and sealed.is_genuine_event(change):
            purged[change.device_id] = data_of(change).get("row")
    there = there or {device.device_id for device in devices}
    for change in sealed.events(kind=EventKind.REVOKE, data__contains='"publicKey"'):
        if change is not None and change.device_id not in there and sealed.is_genuine_event(change):
            key = data_of(change).get("publicKey")
            if isinstance(key, str):  # of a device that the list never had
                hashed = key_hash(decode_public_key(key))
                found[change.device_id] = Revoked(hashed, change.revision or 0, change.at.astimezone(dt.UTC))
    for device_id, texts in purged.items():
        one = _of_texts(texts) if device_id not in there and isinstance(texts, dict) else None
        if one is not None:
            found[device_id] = one
    yield from _with_successors(found)


def _with_successors(found: dict[str, Revoked]) -> Iterator[Revoked]:
    """Yield keys by device ID. One whose last successor was revoked is revoked with it: elsewhere, it may be the only key of the device."""
    for one in found.values():
        last, seen = one, {one.key}
        while last.next in found and found[last.next].key not in seen:
            last = found[last.next]
            seen.add(last.key)
        yield one if last.next else one._replace(serial=max(one.serial, last.serial), at=last.at, next="")


def _has_all_revoked(known: Snapshot, devices: Sequence[Device]) -> bool:
    return len(devices) == sum(device.standing.revoked_from is not None for device in known.by_key.values())


def _of_devices(devices: Sequence[Device], now: float) -> Iterator[tuple[str, Revoked]]:
    for device in devices:
        # A key that was replaced is revoked from a time on.
        if device.revoked_at is not None and (device.standing.revoked_from or 0) <= now:
            key = key_hash(decode_public_key(device.public_key))
            newer = _next(device.revoked_by, device.revoke_reason)
            yield device.device_id, Revoked(key, device.revision, device.revoked_at.astimezone(dt.UTC), newer)


def _of_texts(texts: dict[str, Any]) -> Revoked | None:
    """Return what the audit log says about a device that was purged."""
    try:
        moment = dt.datetime.fromisoformat(texts["revoked_at"])
        aware = moment if moment.tzinfo is not None else moment.astimezone()
        key = key_hash(decode_public_key(texts["public_key"]))
        newer = _next(texts["revoked_by"], texts["revoke_reason"])
        return Revoked(key, int(texts["revision"]), aware.astimezone(dt.UTC), newer)
    except (*UNREADABLE, KeyError):
        return None  # only a revoked device is purged


def _next(by: str, reason: str) -> str:
    """Return the device ID of the key that has replaced one, from the columns of its revocation."""
    return by if reason == ROTATED and by.startswith("am_") else ""


def tag_of(jws: str) -> str:
    """Return the entity tag (RFC 9110 §8.8.3) of a list that this process has made. Other processes make the same one.

    A list that was made in another hour has another one, so that a program that fetches it gets a new one before it expires.
    """
    found = json.loads(b64url_decode(jws.split(".", 2)[1]))
    return f'W/"{found["epoch"]}-{found["serial"]}-{len(found["revoked"])}-{found["iat"] // 3600}"'


# --- at a server ---


def can_verify() -> bool:
    """Return True if PyJWT is installed."""
    return jwt is not None


def issuer_of(jws: str) -> str:
    """Return the device ID of the hub that a list says it is from. Nothing is verified.

    Raises:
        UnverifiedMessage: it is not such a list.
        FleetPartMissing: PyJWT is not installed.
    """
    return text(_claims(jws, None), "iss")


def verify(jws: str, *, issuer: str, issuer_key: bytes, now: float, newest: tuple[str, int] = ("", 0)) -> SignedList:
    """Return the list in a JWS, after its signature was verified.

    Args:
        jws: the text, in compact serialization.
        issuer: device ID of the hub.
        issuer_key: public key of the hub, 33 bytes.
        now: Unix seconds.
        newest: epoch and serial of the newest list of this hub that was accepted. Serials of two epochs cannot be compared.

    Raises:
        UnverifiedMessage: the hub did not sign it, it has expired or is not valid yet, or it is older than *newest*.
        FleetPartMissing: PyJWT is not installed.
    """
    claims = _claims(jws, issuer_key)
    try:
        found = _list(claims)
    except (InvalidInput, MalformedFeed):
        raise UnverifiedMessage("The signed list of the hub is malformed. Nothing was changed.") from None
    if found.issuer != issuer:
        raise UnverifiedMessage("The signed list is that of another hub. Nothing was changed.")
    if now >= found.expires_at:
        raise UnverifiedMessage(
            "The signed list of the hub has expired. Nothing was changed.",
            hint="Export a new one at the hub, and check the clock of this server.",
        )
    if now < found.issued_at - _MAX_SKEW_SECONDS:
        raise UnverifiedMessage(
            "The signed list of the hub is not valid yet. Nothing was changed.",
            hint="Synchronize the clocks of hub and server with NTP.",
        )
    if found.epoch == newest[0] and found.serial < newest[1]:
        raise UnverifiedMessage(
            "The signed list of the hub is older than one that this server has accepted. Nothing was changed.",
            hint="Export a new one at the hub.",
        )
    return found


def _claims(jws: str, issuer_key: bytes | None) -> dict[str, Any]:
    """Return the claims of a list. Its signature is verified if the key of the hub is known.

    Raises:
        UnverifiedMessage, FleetPartMissing: as for :func:`verify`.
    """
    if jwt is None:
        raise FleetPartMissing()
    if len(jws) > MAX_MESSAGE_BYTES:
        raise UnverifiedMessage("The signed list of the hub is too large. Nothing was changed.")
    try:
        # Times and names are checked by verify(), with the time that it was given.
        found = jwt.decode_complete(
            jws,
            key=load_public_key(issuer_key) if issuer_key is not None else "",
            algorithms=[ALGORITHM],
            options={
                "verify_signature": issuer_key is not None,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_aud": False,
                "verify_iss": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except (jwt.PyJWTError, InvalidInput, RecursionError):
        raise UnverifiedMessage() from None
    if found["header"].get("typ") != TYPE:
        raise UnverifiedMessage("This is not the signed list of a hub. Nothing was changed.")
    claims: dict[str, Any] = found["payload"]
    return claims


def _list(claims: dict[str, Any]) -> SignedList:
    raw, name, newest = claims.get("revoked"), epoch(claims), serial(claims, "serial")
    if not isinstance(raw, list) or not name:
        raise MalformedFeed()
    revoked = []
    for one in raw:
        if not isinstance(one, dict):
            raise MalformedFeed()
        key = b64url_decode(text(one, "key"))
        if len(key) != _HASH_BYTES or serial(one, "serial") > newest:
            raise MalformedFeed()
        revoked.append(Revoked(key, one["serial"], parse_time(text(one, "at")), text(one, "next")[:32]))
    issuer, url = text(claims, "iss"), text(claims, "sub")
    return SignedList(issuer, url, name, newest, serial(claims, "iat"), serial(claims, "exp"), revoked)


def reset() -> None:
    """Forget the list that this process has made."""
    global _made
    with _lock:
        _made = None

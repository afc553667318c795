"""What a worker can be asked for. Every function here runs in a process with Django; times are returned in microseconds."""

from __future__ import annotations

import datetime as dt
import functools
import gc
import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import placing
from amesh_django.audit.recording import record
from amesh_django.models import AuditEvent
from amesh_django.states import Standing
from amesh_django.trust import current_list
from amesh_django.trust.chain import ChainedRows
from amesh_django.trust.keys import SealKeys, seal_keys
from amesh_django.trust.sealing import LogEnd
from amesh_django.verification import Verifier
from amesh_django.verification import verifier as module
from amesh_django.verification.lookup import database_lookup
from amesh_django.verification.nonces import store_for
from amesh_django.verification.types import NonceStore
from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol import (
    CONTROLLER,
    Authorization,
    DeviceEntry,
    parse_authorization,
    public_key_bytes,
    verify_signature,
)
from authmesh.protocol.canonical import target_ambiguity
from authmesh.protocol.encoding import b64decode_any
from authmesh.protocol.keys import decode_public_key, load_public_key
from authmesh.protocol.schemes.registry import SCHEMES
from tests.bench.figures import percentile
from tests.bench.signing import BODY, BODY_HASH, METHOD, TARGET, Signed, read_signers, signature_to_der, signed

T = TypeVar("T")

#: As many devices sign at every size of the list, so that only the size of the list differs.
SIGNING = 10

#: The verifier of devices with scopes, groups, and expiry.
SCOPED = "without I/O, scoped"
_SCOPES = frozenset({"orders:read", "stock:*"})

_numbers = itertools.count()


def _times(
    work: Callable[[T], Any], items: Iterable[T], clock: Callable[[], int] = time.perf_counter_ns
) -> list[float]:
    """Microseconds of each call, less what measuring takes."""
    empty, found = _empty(clock), []
    for item in items:
        start = clock()
        work(item)
        found.append((clock() - start) / 1000 - empty)
    return found


def _timed(work: Callable[[T], Any], items: Iterable[T]) -> float:
    """Microseconds of a call: the median, so that what else runs on the machine disturbs a few calls and not the figure."""
    return statistics.median(_times(work, items))


@functools.cache
def _empty(clock: Callable[[], int]) -> float:
    found = []
    for _ in range(2000):
        start = clock()
        _nothing(None)
        found.append((clock() - start) / 1000)
    return statistics.median(found)


def _nothing(item: None) -> None:
    pass


@functools.cache
def _signers(count: int = SIGNING) -> Any:
    return read_signers(Path(os.environ["BENCH_SIGNERS"]), count)


def fill(count: int) -> float:
    """Trust *count* controllers, the signing ones first. Seconds."""
    keys = [signer.public_key for signer in _signers(count)]
    curve = ec.SECP256R1()
    keys += [public_key_bytes(ec.generate_private_key(curve)) for _ in range(count - len(keys))]
    moment = dt.datetime.now(dt.UTC)
    entries = [DeviceEntry.new(key, f"Device {n}", CONTROLLER, added_at=moment) for n, key in enumerate(keys)]
    start = time.perf_counter()
    DatabaseAllowList(by="bench").add_all(entries)
    connection.close()
    return time.perf_counter() - start


def _body_hash() -> str:
    return hashlib.sha256(BODY).hexdigest()


@functools.cache
def _verifiers() -> dict[str, Verifier]:
    known = current_list().snapshot().by_key
    # As the snapshot holds a device with an expiry, scopes of its own, and a group.
    richer = {
        signer.public_key: known[signer.public_key]._replace(
            standing=Standing(expires_from=time.time() + 86_400), scopes=_SCOPES, groups_json='["store"]'
        )
        for signer in _signers()
    }
    return {
        "without I/O": Verifier(lookup=known.get, nonces=InMemoryNonceStore()),
        SCOPED: Verifier(lookup=richer.get, nonces=InMemoryNonceStore()),
        "local nonces": Verifier(lookup=database_lookup, nonces=InMemoryNonceStore()),
        "Redis nonces": Verifier(lookup=database_lookup, nonces=store_for("default")),
    }


@functools.cache
def _nonces() -> dict[str, Any]:
    return {"nonce, local": InMemoryNonceStore(), "nonce, Redis": store_for("default")}


@functools.cache
def _loaded(public_key: bytes) -> ec.EllipticCurvePublicKey:
    return load_public_key(public_key)


def _accept(chosen: Verifier) -> Callable[[Signed], Any]:
    return lambda request: chosen.verify(METHOD, TARGET, request.header, _body_hash)


def _accept_scoped(chosen: Verifier) -> Callable[[Signed], Any]:
    return lambda request: chosen.verify(METHOD, TARGET, request.header, _body_hash).has_scope("stock:read")


def _record(store: NonceStore) -> Callable[[Signed], Any]:
    return lambda request: store.record("am_0123456789abcdef", request.nonce, 61)


def _raw(requests: Iterable[Signed]) -> list[tuple[ec.EllipticCurvePublicKey, bytes, bytes]]:
    """Loaded key, signature as OpenSSL takes it, message."""
    return [(_loaded(item.public_key), signature_to_der(item.signature), item.message) for item in requests]


def verifier(count: int) -> dict[str, float]:
    """One round: accepted requests by each verifier, one raw verification, and the parts of ours."""
    requests = signed(_signers(), count)
    parsed = [parse_authorization(request.header) for request in requests]
    algorithm, scheme = ec.ECDSA(hashes.SHA256()), SCHEMES["1"]

    def parse(request: Signed) -> None:
        decode_public_key(parse_authorization(request.header).id)

    def canonical(request: Signed) -> None:
        target_ambiguity(TARGET)
        scheme.signed_message(
            method=METHOD, target=TARGET, timestamp=request.timestamp, nonce=request.nonce, body_hash=BODY_HASH
        )

    def signature(pair: tuple[Signed, Authorization]) -> None:
        verify_signature(_loaded(pair[0].public_key), pair[0].message, b64decode_any(pair[1].sig))

    measures: dict[str, Callable[[], float]] = {
        "raw": lambda: _timed(lambda item: item[0].verify(item[1], item[2], algorithm), _raw(requests)),
        "parse": lambda: _timed(parse, requests),
        "canonical string": lambda: _timed(canonical, requests),
        "hash": lambda: _timed(lambda request: _body_hash(), requests),
        "signature": lambda: _timed(signature, list(zip(requests, parsed, strict=True))),
        "seal check": lambda: _timed(lambda request: database_lookup(request.public_key), requests),
    }
    for name, chosen in _verifiers().items():
        accept = _accept_scoped(chosen) if name == SCOPED else _accept(chosen)
        measures[name] = functools.partial(_timed, accept, requests)
    for name, store in _nonces().items():
        measures[name] = functools.partial(_timed, _record(store), requests)
    names = list(measures)
    start = next(_numbers) % len(names)
    return {name: measures[name]() for name in names[start:] + names[:start]}


def slowest(count: int) -> float:
    """What 99 of 100 requests stay within, processor time: garbage collection and throwing old nonces away included."""
    work = _accept(_verifiers()["local nonces"])
    return percentile(_times(work, signed(_signers(), count), time.thread_time_ns), 0.99)


def strangers(count: int) -> float:
    """A request from each of *count* devices, none of which this process has seen before: their keys are not loaded."""
    requests = signed(_signers(count), count)
    module._loaded_key.cache_clear()
    return _timed(_accept(_verifiers()["local nonces"]), requests)


def trips(count: int) -> dict[str, float]:
    """Statements in the database, and commands and reads that Redis served, for each accepted request."""
    from django_redis import get_redis_connection

    redis = get_redis_connection("default")
    requests = signed(_signers(), count)
    chosen = _verifiers()["Redis nonces"]
    before = redis.info("stats")
    with _Statements() as statements:
        for request in requests:
            chosen.verify(METHOD, TARGET, request.header, _body_hash)
    after = redis.info("stats")
    served = {
        name: (after[name] - before[name] - 1) / count for name in ("total_commands_processed", "total_reads_processed")
    }
    return {
        "statements": statements.count / count,
        "commands": served["total_commands_processed"],
        "round trips": served["total_reads_processed"],
    }


class _Statements:
    """Counts what goes to the database inside the block."""

    count = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.count += 1
        return execute(sql, params, many, context)

    def __enter__(self) -> _Statements:
        self._installed = connection.execute_wrapper(self)
        self._installed.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._installed.__exit__(*error)


def change() -> float:
    """One change of the list: a device's permissions."""
    number = next(_numbers)
    known = current_list().snapshot().by_key[_signers()[number % SIGNING].public_key]
    allow_list = DatabaseAllowList(by="bench")
    return _timed(
        lambda device_id: allow_list.set_permissions(device_id, {"shell": number % 20 < 10}), [known.device_id]
    )


def change_without_log() -> float:
    """The same with its event written as a line of a journal was: without a place in a chain."""

    def write(self: ChainedRows, keys: SealKeys, events: Sequence[AuditEvent], known: LogEnd) -> LogEnd:
        AuditEvent.objects.using(self.using).bulk_create(events)
        return known

    append, ChainedRows.append = ChainedRows.append, write  # type: ignore[method-assign]
    try:
        return change()
    finally:
        ChainedRows.append = append  # type: ignore[method-assign]


def write_events(writers: int, seconds: float) -> int:
    """Write events that are not changes, as many in a second as there are writers, and place them. Return how many were written."""
    count = 0
    start = time.monotonic()
    while (past := time.monotonic() - start) < seconds:
        if count < writers * past:
            record("export", by="bench")
            count += 1
        else:
            time.sleep(0.001)
        if count % writers == 0:
            placing.place_all(current_list())
    placing.place_all(current_list())
    return count


def first() -> float:
    """The next request that this process verifies."""
    return _timed(_accept(_verifiers()["local nonces"]), signed(_signers(), 1))


def cold() -> dict[str, float]:
    """From a process that has just started to its first verified request: seconds, and MiB that stay."""
    requests = signed(_signers(), 1)
    connection.ensure_connection()
    gc.collect()
    memory = _resident()
    start = time.perf_counter()
    seal_keys()
    unlocked = time.perf_counter()
    Verifier(lookup=database_lookup, nonces=InMemoryNonceStore()).verify(METHOD, TARGET, requests[0].header, _body_hash)
    done = time.perf_counter()
    gc.collect()
    return {"unlock": unlocked - start, "rows": done - unlocked, "all": done - start, "memory": _resident() - memory}


def _resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def credentials() -> dict[str, dict[str, str]]:
    """Make a user with a token, a JWT and an API key. Peer → the headers that it wants."""
    from rest_framework.authtoken.models import Token
    from rest_framework_api_key.models import APIKey
    from rest_framework_simplejwt.tokens import AccessToken

    user = get_user_model()._default_manager.create(username="bench")
    token = Token.objects.create(user=user)
    _, key = APIKey.objects.create_key(name="bench")
    connection.close()
    return {
        "open": {},
        "token": {"Authorization": f"Token {token.key}"},
        "jwt": {"Authorization": f"Bearer {AccessToken.for_user(user)}"},
        "api-key": {"Authorization": f"Api-Key {key}"},
    }


def statements(peer: str, headers: dict[str, str], count: int) -> float:
    """Statements in the database for each whole request to a peer's view, all that it sets off included."""
    client = Client()
    path = TARGET.replace("/amesh/", f"/{peer}/")
    fresh = [request.header for request in signed(_signers(), count)]
    with _Statements() as counted:
        for header in fresh:
            sent = {"Authorization": header} if peer == "amesh" else headers
            response = client.post(path, data=BODY, content_type="application/json", headers=sent)
            assert response.status_code == 200, response.content
    return counted.count / count

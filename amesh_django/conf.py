"""The settings of the app: one dict, ``AMESH``, read lazily; each key with a default, a type and a meaning."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from authmesh.protocol.pairing.token import is_relay_address


@dataclass(frozen=True, slots=True)
class AmeshSettings:
    """The keys of ``AMESH``.

    Attributes:
        DIR: device directory of this server; None means ``AUTH_MESH_DIR``, else ``~/.amesh``.
        SEAL_KEY_FILE: file with the seal secret (32 random bytes as 64 hex characters) that several hosts in front of one
            database share; None means that the secret comes from this server's own key.
        NONCE_CACHE: name of the Django cache that holds nonces.
        CLOCK_SKEW_SECONDS: how far the clock of a device may be off, either way.
        NONCE_WINDOW_SECONDS: how long a nonce is remembered; at least twice the clock skew.
        MAX_BODY_BYTES: largest body that is verified; a larger one is refused with 413.
        PROTECT: path prefixes that the middleware protects. The default is every path.
        EXEMPT: paths, each with what lies below it, that the middleware lets through in spite of PROTECT.
        LAST_SEEN_SECONDS: how often "last seen" of a device is written, per process; 0 never.
        MAX_CONTROLLERS: how many controllers may be trusted; None means ``maxControllers`` of the identity.
        PROXY_STRIPPED_PREFIX: what a proxy takes off the path before this server sees it (``/api`` where a client signed
            ``/api/x`` and ``/x`` arrives).
        PROXY_ADDED_PREFIX: what a proxy puts before the path.
        BOOTSTRAP_RELAYS: relays that a bootstrap token of this server may name, such as ``wss://relay.example/ws``; None means the
            variable ``AMESH_BOOTSTRAP_RELAYS``, and without it any relay.
        RELAY: the keys of :class:`RelaySettings` that are not to have their defaults; None means all defaults.
    """

    DIR: str | None = None
    SEAL_KEY_FILE: str | None = None
    NONCE_CACHE: str = "default"
    CLOCK_SKEW_SECONDS: int = 30
    NONCE_WINDOW_SECONDS: int = 60
    MAX_BODY_BYTES: int = 256 * 1024 * 1024
    PROTECT: Sequence[str] = ("/",)
    EXEMPT: Sequence[str] = ()
    LAST_SEEN_SECONDS: int = 60
    MAX_CONTROLLERS: int | None = None
    PROXY_STRIPPED_PREFIX: str = ""
    PROXY_ADDED_PREFIX: str = ""
    BOOTSTRAP_RELAYS: Sequence[str] | None = None
    RELAY: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """The keys of ``AMESH["RELAY"]``. Numbers hold for all processes of a relay together, unless it says "a process".

    Attributes:
        REDIS_URL: Redis through which several processes are one relay; None means the variable ``REDIS_URL``; "" (or None
            without the variable) means that this process is a relay of its own and keeps everything in memory.
        REDIS_PREFIX: what all its names in Redis begin with. Two relays that share a Redis need two.
        TRUSTED_PROXIES: how many proxies stand in front and add to X-Forwarded-For; 0 takes the address of the socket. None
            means the variable ``AMESH_TRUST_PROXY``: 1, true or yes is one proxy, a number is so many, anything else none.
        ALLOWED_ORIGINS: web pages that may connect, such as ``https://example.com``, or ``*``. Programs send no Origin and are
            always let in.
        MAX_MESSAGE_BYTES: longest message; a longer one closes the connection (1009).
        MAX_SESSION_BYTES: how much the two sides of a pairing may send together.
        MATCH_SECONDS: how long a one-time code lives unless somebody comes with it.
        FINISH_SECONDS: how long the two sides have once they are matched, and a target with a token for its answer.
        TRIES_PER_MINUTE: how many listen and connect an address may send in a minute.
        TRIES_PER_CODE: how many failed tries burn a one-time code.
        BURNT_SECONDS: how long failed tries on a code are remembered, and a burnt code is refused, from the last try on.
        WATCHES_PER_MINUTE: how many bootstrap_watch an address may send in a minute.
        WATCH_SECONDS: how long a watch lasts unless it is renewed.
        WATCHES_PER_CONNECTION: how many tokens a connection may watch for at a time.
        USED_TOKEN_SECONDS: how long a bootstrap token that was used is remembered.
        MAX_USED_TOKENS: how many used tokens there may be in that time; beyond it none is taken, for to forget one would let it
            be used twice.
        MAX_SESSIONS: how many pairings there may be at a time, and as many watches.
        MAX_CONNECTIONS: how many connections there may be at a time; one more is closed (1013).
        CONNECTIONS_PER_ADDRESS: how many connections of one address a process holds at a time; 0 sets no limit.
        IDLE_SECONDS: how long a connection may do nothing: no session, no watch, no token.
        MAX_ERRORS: how many messages of a connection may be refused in a minute before it is closed.
        UNSENT_SECONDS: how long a connection may read nothing of what waits for it before it is closed.
        MAX_UNSENT_BYTES: how much a process keeps for a connection that reads too slowly before it closes it; one message is
            always kept.
        MAX_UNSENT_BYTES_IN_ALL: the same for all its connections together.
    """

    REDIS_URL: str | None = None
    REDIS_PREFIX: str = "amesh-relay"
    TRUSTED_PROXIES: int | None = None
    ALLOWED_ORIGINS: Sequence[str] = ()
    MAX_MESSAGE_BYTES: int = 64 * 1024
    MAX_SESSION_BYTES: int = 5 * 1024 * 1024
    MATCH_SECONDS: int = 60
    FINISH_SECONDS: int = 180
    TRIES_PER_MINUTE: int = 5
    TRIES_PER_CODE: int = 5
    BURNT_SECONDS: int = 600
    WATCHES_PER_MINUTE: int = 10
    WATCH_SECONDS: int = 300
    WATCHES_PER_CONNECTION: int = 100
    USED_TOKEN_SECONDS: int = 25 * 3600
    MAX_USED_TOKENS: int = 200_000
    MAX_SESSIONS: int = 50_000
    MAX_CONNECTIONS: int = 10_000
    CONNECTIONS_PER_ADDRESS: int = 200
    IDLE_SECONDS: int = 90
    MAX_ERRORS: int = 50
    UNSENT_SECONDS: int = 10
    MAX_UNSENT_BYTES: int = 1024 * 1024
    MAX_UNSENT_BYTES_IN_ALL: int = 64 * 1024 * 1024


#: Least values; 1 where nothing stands here.
_MINIMUM = {
    "MAX_BODY_BYTES": 0,
    "LAST_SEEN_SECONDS": 0,
    "TRUSTED_PROXIES": 0,
    "CONNECTIONS_PER_ADDRESS": 0,
    "MAX_MESSAGE_BYTES": 1024,
    "MAX_UNSENT_BYTES": 1024,
    "MAX_UNSENT_BYTES_IN_ALL": 1024,
}
REDIS_SCHEMES = ("redis", "rediss", "unix")


def _wrong(settings: type, name: str, value: Any) -> str | None:
    hint = get_type_hints(settings)[name]
    if value is None:
        return None if type(None) in getattr(hint, "__args__", ()) else "must not be None"
    if hint in (str, str | None):
        return None if isinstance(value, str | os.PathLike) else "must be text"
    if hint in (int, int | None):
        least = _MINIMUM.get(name, 1)
        if type(value) is not int or value < least:
            return f"must be a whole number from {least}"
        return None
    if hint == Mapping[str, Any] | None:
        return None if isinstance(value, Mapping) else "must be a dict"
    if name == "BOOTSTRAP_RELAYS":
        return None if _are_relays(value) else "must be a list of addresses such as wss://relay.example/ws"
    what = "origins such as https://example.com" if name == "ALLOWED_ORIGINS" else "paths"
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(p, str) for p in value):
        return f"must be a list of {what}"
    if name == "ALLOWED_ORIGINS":
        return None if all(origin == "*" or "://" in origin for origin in value) else f"must be a list of {what}"
    return None if all(path.startswith("/") for path in value) else "must be a list of paths that begin with /"


def _are_relays(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(address, str) and is_relay_address(address) for address in value)


def _relay_problems(raw: Any) -> list[tuple[str, str]]:
    if not isinstance(raw, Mapping):
        return []
    known = [field.name for field in fields(RelaySettings)]
    found = [
        ("unknown", f"AMESH['RELAY'][{name!r}] is not a setting. Known: {', '.join(known)}.")
        for name in raw
        if name not in known
    ]
    for name in known:
        why = _wrong(RelaySettings, name, raw[name]) if name in raw else None
        if why:
            found.append(("value", f"AMESH['RELAY'][{name!r}] {why}; it is {raw[name]!r}."))
    if not found:
        found += [("value", sentence) for sentence in _unfit(RelaySettings(**raw))]
    return found


def _unfit(relay: RelaySettings) -> list[str]:
    """What no single value of the relay shows."""
    found = []
    # Not the variable REDIS_URL: it may be there for others, and a project without a relay must not stumble over it.
    if relay.REDIS_URL and urlsplit(relay.REDIS_URL).scheme not in REDIS_SCHEMES:
        found.append("AMESH['RELAY']['REDIS_URL'] must begin with redis://, rediss:// or unix://.")
    if not relay.REDIS_PREFIX:
        found.append("AMESH['RELAY']['REDIS_PREFIX'] must not be empty.")
    return found


def problems() -> list[tuple[str, str]]:
    """What is wrong with ``AMESH``: pairs of a kind (``unknown``, ``value``, ``window``) and a sentence with the fix."""
    raw = getattr(django_settings, "AMESH", {})
    if not isinstance(raw, dict):
        return [("value", "AMESH must be a dict. Write AMESH = {} for the defaults.")]
    known = [field.name for field in fields(AmeshSettings)]
    found = [
        ("unknown", f"AMESH[{name!r}] is not a setting. Known: {', '.join(known)}.")
        for name in raw
        if name not in known
    ]
    for name in known:
        why = _wrong(AmeshSettings, name, raw[name]) if name in raw else None
        if why:
            found.append(("value", f"AMESH[{name!r}] {why}; it is {raw[name]!r}."))
    found += _relay_problems(raw.get("RELAY"))
    if not found:
        merged = AmeshSettings(**raw)
        skew, window = merged.CLOCK_SKEW_SECONDS, merged.NONCE_WINDOW_SECONDS
        if window < 2 * skew:
            found.append(
                (
                    "window",
                    f"AMESH['NONCE_WINDOW_SECONDS'] ({window}) is shorter than twice AMESH['CLOCK_SKEW_SECONDS'] ({skew}): a "
                    f"request could be replayed. Set it to {2 * skew} at least.",
                )
            )
    return found


@functools.cache
def amesh_settings() -> AmeshSettings:
    """The settings in force.

    Raises:
        ImproperlyConfigured: one of :func:`problems`.
    """
    found = problems()
    if found:
        raise ImproperlyConfigured(" ".join(sentence for _, sentence in found))
    raw = getattr(django_settings, "AMESH", {})
    paths = {name: str(raw[name]) for name in ("DIR", "SEAL_KEY_FILE") if raw.get(name) is not None}
    return AmeshSettings(**{**raw, **paths})


def relay_settings() -> RelaySettings:
    """The settings of the relay in force.

    Raises:
        ImproperlyConfigured: one of :func:`problems`.
    """
    return RelaySettings(**(amesh_settings().RELAY or {}))


def redis_url(relay: RelaySettings) -> str:
    """Where the processes of a relay meet; "" where there is one process only."""
    return os.environ.get("REDIS_URL", "") if relay.REDIS_URL is None else relay.REDIS_URL


def trusted_proxies(relay: RelaySettings) -> int:
    """How many proxies in front of a relay are to be believed."""
    if relay.TRUSTED_PROXIES is not None:
        return relay.TRUSTED_PROXIES
    said = os.environ.get("AMESH_TRUST_PROXY", "").strip().lower()
    if said in ("true", "yes"):
        return 1
    return int(said) if said.isascii() and said.isdigit() and len(said) < 3 else 0

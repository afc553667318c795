"""The settings of the app: one dict, ``AMESH``, read lazily. Each key has a default, a type and a meaning."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, get_type_hints

from django.conf import settings as django_settings
from django.core.cache import DEFAULT_CACHE_ALIAS
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import Promise

from authmesh.protocol.enrollment import is_server_url
from authmesh.protocol.pairing.token import is_relay_address
from authmesh.protocol.scopes import is_grantable, is_scope

__all__ = ["AmeshDict"]


#: An entry of PROTECT: a prefix, or a pair of a prefix and the scopes that it requires.
Protected = str | tuple[str, Sequence[str]]
#: What a name in SCOPES or PERMISSIONS allows: a sentence, or a dict with ``text`` and ``permission``.
Explained = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AmeshSettings:
    """The keys of ``AMESH``.

    Attributes:
        DIR: device directory of this server. Defaults to ``AMESH_DIR`` or ``AUTH_MESH_DIR``, or ``~/.amesh`` if neither is set.
        SEAL_KEY_FILE: file with the seal secret (32 random bytes as 64 hex characters) that several hosts with one database
            share. By default, the secret is derived from the key of this server.
        SEAL_KEY_FILES: used in place of SEAL_KEY_FILE while the secret is being replaced: the new file, then the old one. None
            stands for the secret that is derived from the key of this server.
        NONCE_CACHE: name of the Django cache that stores nonces, see :func:`nonce_cache`. Defaults to ``amesh`` if CACHES has it,
            or ``default``.
        CLOCK_SKEW_SECONDS: maximum difference between the clock of a device and the clock of this server.
        NONCE_WINDOW_SECONDS: time for which a nonce is remembered; at least twice the clock skew.
        MAX_BODY_BYTES: maximum size of a body that is verified; a larger one is rejected with 413.
        PROTECT: path prefixes that the middleware protects. Defaults to every path. A pair of a prefix and a list of scopes accepts
            only devices that have all of them.
        EXEMPT: paths that the middleware does not protect, each with all paths below it, although PROTECT covers them.
        LAST_SEEN_SECONDS: minimum time between two writes of "last seen" of a device, per process; 0 turns them off.
        COUNT_REQUESTS: True counts signed requests by device, for the pages of the admin.
        MAX_CONTROLLERS: maximum number of trusted controllers. Defaults to ``maxControllers`` of the identity.
        PROXY_STRIPPED_PREFIX: prefix that a proxy strips from the path before the request reaches this server: ``/api`` if a
            client signs ``/api/x`` and ``/x`` arrives.
        PROXY_ADDED_PREFIX: prefix that a proxy adds to the path.
        REQUIRE_USER: True makes REST framework reject devices that are not mapped to a Django user (403 ``user_required``).
        DEVICES_ARE_USERS: True makes ``is_authenticated`` of a device that is not mapped to a Django user True, so that
            ``IsAuthenticated`` accepts it. By default, only views that name devices do.
        METRICS: True counts requests, and serves ``amesh/metrics`` for Prometheus. Needs the extra ``metrics``.
        BOOTSTRAP_RELAYS: relays that a bootstrap token of this server may name, such as ``wss://relay.example/ws``. Defaults to
            ``AMESH_BOOTSTRAP_RELAYS``, or any relay if it is not set.
        ROTATE_OVERLAP_SECONDS: time for which the old key of a device is still valid after the device has replaced it, at most 3,600.
        URL: public address of ``amesh_django.urls`` on this server, such as ``https://api.example/amesh/``. Enrollment tokens name it.
        SCOPES: the scopes that may be granted: name → a sentence, or ``{"text": …, "permission": …}`` with the Django permission that
            a person needs to grant it. None allows every name.
        PERMISSIONS: the permissions of devices that may be granted, in the same form.
        REQUIRE_APPROVAL: True makes new controllers wait for the approval of a person. Turning it off approves none that waits.
        MAX_KEY_AGE_DAYS: days after which a new controller expires. Defaults to no limit.
        HUB_MAY_GRANT: permissions and scopes that a hub with the permission ``enroll`` may give the devices that it adds here. Defaults to
            none.
        HUB_MAX_PER_MINUTE: devices whose state one hub may change here in a minute. What is beyond waits, and is reported.
        HUB_FRESH_SECONDS: age of the newest message of a hub from which this server asks it for changes by itself.
        HUB_MAX_STALE_SECONDS: that age from which WHEN_STALE decides.
        WHEN_STALE: ``allow`` accepts requests although a hub has been silent for so long, ``refuse`` rejects them (503
            ``trust_is_stale``).
        APPROVAL_MAIL: with REQUIRE_APPROVAL, send a mail to those who may approve, at most every five minutes.
        ADMIN_URL: address of the index page of the admin, for links in mails. None leaves them out.
        ADMIN_BASE: dotted path of the class that the model admins are derived from, such as ``unfold.admin.ModelAdmin``. Defaults to
            that of Django.
        RELAY_URL: relay over which people pair devices in the admin, such as ``wss://relay.example/ws``. Defaults to
            ``AMESH_RELAY_URL``, or the public relay if it is not set.
        PAIRING_TASK: True runs each pairing of the admin in a worker of Celery, as the task ``amesh.pair``. By default, it runs in a
            thread of the process that answered the request.
        RELAY: the settings of the relay, see :class:`amesh_django.relay.conf.RelaySettings`. Defaults to the defaults there.
    """

    DIR: str | None = None
    SEAL_KEY_FILE: str | None = None
    SEAL_KEY_FILES: Sequence[str | None] | None = None
    NONCE_CACHE: str | None = None
    CLOCK_SKEW_SECONDS: int = 30
    NONCE_WINDOW_SECONDS: int = 60
    MAX_BODY_BYTES: int = 32 * 1024 * 1024
    PROTECT: Sequence[Protected] = ("/",)
    EXEMPT: Sequence[str] = ()
    LAST_SEEN_SECONDS: int = 60
    COUNT_REQUESTS: bool = True
    MAX_CONTROLLERS: int | None = None
    PROXY_STRIPPED_PREFIX: str = ""
    PROXY_ADDED_PREFIX: str = ""
    REQUIRE_USER: bool = False
    DEVICES_ARE_USERS: bool = False
    METRICS: bool = False
    BOOTSTRAP_RELAYS: Sequence[str] | None = None
    ROTATE_OVERLAP_SECONDS: int = 600
    URL: str | None = None
    SCOPES: Mapping[str, Explained] | None = None
    PERMISSIONS: Mapping[str, Explained] | None = None
    REQUIRE_APPROVAL: bool = False
    MAX_KEY_AGE_DAYS: int | None = None
    HUB_MAY_GRANT: Sequence[str] = ()
    HUB_MAX_PER_MINUTE: int = 1000
    HUB_FRESH_SECONDS: int = 90
    HUB_MAX_STALE_SECONDS: int = 300
    WHEN_STALE: str = "allow"
    APPROVAL_MAIL: bool = True
    ADMIN_URL: str | None = None
    ADMIN_BASE: str | None = None
    RELAY_URL: str | None = None
    PAIRING_TASK: bool = False
    RELAY: Mapping[str, Any] | None = None

    @property
    def protected(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """PROTECT as pairs of a prefix and the scopes that it requires."""
        return tuple((entry, ()) if isinstance(entry, str) else (entry[0], tuple(entry[1])) for entry in self.PROTECT)

    @property
    def seal_secrets(self) -> tuple[str | None, ...]:
        """The files with the secret of the seal, the new one first. None stands for the key of this server."""
        return tuple(self.SEAL_KEY_FILES) if self.SEAL_KEY_FILES is not None else (self.SEAL_KEY_FILE,)


class AmeshDict(TypedDict, total=False):
    """The type of ``AMESH``: the keys of :class:`AmeshSettings`, each of which may be missing."""

    DIR: str | os.PathLike[str] | None
    SEAL_KEY_FILE: str | os.PathLike[str] | None
    SEAL_KEY_FILES: Sequence[str | None] | None
    NONCE_CACHE: str | None
    CLOCK_SKEW_SECONDS: int
    NONCE_WINDOW_SECONDS: int
    MAX_BODY_BYTES: int
    PROTECT: Sequence[Protected]
    EXEMPT: Sequence[str]
    LAST_SEEN_SECONDS: int
    COUNT_REQUESTS: bool
    MAX_CONTROLLERS: int | None
    PROXY_STRIPPED_PREFIX: str
    PROXY_ADDED_PREFIX: str
    REQUIRE_USER: bool
    DEVICES_ARE_USERS: bool
    METRICS: bool
    BOOTSTRAP_RELAYS: Sequence[str] | None
    ROTATE_OVERLAP_SECONDS: int
    URL: str | None
    SCOPES: Mapping[str, Explained] | None
    PERMISSIONS: Mapping[str, Explained] | None
    REQUIRE_APPROVAL: bool
    MAX_KEY_AGE_DAYS: int | None
    HUB_MAY_GRANT: Sequence[str]
    HUB_MAX_PER_MINUTE: int
    HUB_FRESH_SECONDS: int
    HUB_MAX_STALE_SECONDS: int
    WHEN_STALE: str
    APPROVAL_MAIL: bool
    ADMIN_URL: str | None
    ADMIN_BASE: str | None
    RELAY_URL: str | None
    PAIRING_TASK: bool
    RELAY: Mapping[str, Any] | None


#: Permissions that a hub never gives a device that it adds.
NEVER_BY_HUB = ("revoke", "enroll", "shell")

#: Minimum values of the integer settings whose minimum is not 1.
_MINIMUM = {"MAX_BODY_BYTES": 0, "LAST_SEEN_SECONDS": 0, "ROTATE_OVERLAP_SECONDS": 0}
_MAX_OVERLAP_SECONDS = 3600


def key_problems(
    settings: type, raw: Mapping[str, Any], label: str, value_problem: Callable[[str, Any], str | None]
) -> list[tuple[str, str]]:
    """Return the problems of one dict of settings, as :func:`problems` does.

    Args:
        settings: the dataclass whose fields are the known keys.
        raw: the dict.
        label: how a message refers to the dict, such as ``AMESH``.
        value_problem: returns what is wrong with the value of a known key, or None.
    """
    known = [field.name for field in fields(settings)]
    found = [
        ("unknown", f"{label}[{name!r}] is not a setting. Known: {', '.join(known)}.")
        for name in raw
        if name not in known
    ]
    for name in known:
        why = value_problem(name, raw[name]) if name in raw else None
        if why:
            found.append(("value", f"{label}[{name!r}] {why}; it is {raw[name]!r}."))
    return found


def type_problem(settings: type, name: str, value: Any, minimum: int) -> str | None:
    """Return what is wrong with a value by the type of its field (text, integer, boolean, not None), or None.

    Args:
        settings: the dataclass of the settings.
        name: the field.
        value: the value.
        minimum: the minimum of an integer.
    """
    hint = get_type_hints(settings)[name]
    if value is None:
        return None if type(None) in getattr(hint, "__args__", ()) else "must not be None"
    if hint in (str, str | None):
        return None if isinstance(value, str | os.PathLike) else "must be text"
    if hint is bool:
        return None if isinstance(value, bool) else "must be True or False"
    if hint in (int, int | None):
        if type(value) is not int or value < minimum:
            return f"must be an integer greater than or equal to {minimum}"
    return None


def _value_problem(name: str, value: Any) -> str | None:
    why = type_problem(AmeshSettings, name, value, _MINIMUM.get(name, 1))
    if why or value is None:
        return why
    if name == "ROTATE_OVERLAP_SECONDS":
        return f"must be at most {_MAX_OVERLAP_SECONDS}" if value > _MAX_OVERLAP_SECONDS else None
    if name == "BOOTSTRAP_RELAYS":
        return None if _are_relays(value) else "must be a list of addresses such as wss://relay.example/ws"
    if name == "SEAL_KEY_FILES":
        return (
            None if _are_files(value) else "must be a list of paths, the new file first; None is the key of this server"
        )
    if name == "RELAY_URL":
        return None if is_relay_address(str(value)) else "must be an address such as wss://relay.example/ws"
    if name == "URL":
        return (
            None
            if is_server_url(str(value))
            else "must be an address that ends with /, such as https://api.example/amesh/"
        )
    if name == "ADMIN_URL":
        return (
            None
            if is_server_url(str(value))
            else "must be an address that ends with /, such as https://api.example/admin/"
        )
    if name == "PROTECT":
        return None if _are_protected(value) else f"{_PATHS}, or pairs of such a path and a list of scopes"
    if name == "HUB_MAY_GRANT":
        if not _is_list(value) or not all(_is_name(one) for one in value):
            return "must be a list of names"
        forbidden = [one for one in NEVER_BY_HUB if one in value]
        return f"must not have {', '.join(forbidden)}: no hub grants that" if forbidden else None
    if name == "WHEN_STALE":
        return None if value in ("allow", "refuse") else "must be 'allow' or 'refuse'"
    if name == "EXEMPT":
        return None if _are_paths(value) else _PATHS
    if name == "SCOPES":
        return None if _are_explained(value, is_grantable) else f"{_EXPLAINED}. A name is written like orders:read"
    if name == "PERMISSIONS":
        return None if _are_explained(value, _is_name) else _EXPLAINED
    return None  # the relay validates RELAY


_PATHS = "must be a list of paths that begin with /"
_EXPLAINED = "must be a dict of names, each with a sentence, or with a dict of 'text' and 'permission' ('app.codename')"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _are_paths(value: Any) -> bool:
    return _is_list(value) and all(isinstance(path, str) and path.startswith("/") for path in value)


def _are_protected(value: Any) -> bool:
    return _is_list(value) and all(_are_paths([entry]) or _is_scoped_path(entry) for entry in value)


def _is_scoped_path(entry: Any) -> bool:
    if not _is_list(entry) or len(entry) != 2 or not _are_paths(entry[:1]):
        return False
    return _is_list(entry[1]) and all(is_scope(scope) for scope in entry[1])


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.strip() != ""


def _are_explained(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(is_valid(name) and _is_explained(found) for name, found in value.items())


def _is_explained(found: Any) -> bool:
    if isinstance(found, str | Promise):
        return True
    if not isinstance(found, Mapping) or not {"text"} <= set(found) <= {"text", "permission"}:
        return False
    permission = found.get("permission", "app.any")
    return isinstance(found["text"], str | Promise) and isinstance(permission, str) and permission.count(".") == 1


def _are_relays(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(address, str) and is_relay_address(address) for address in value)


def _are_files(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return False
    return all(path is None or isinstance(path, str | os.PathLike) for path in value)


def problems() -> list[tuple[str, str]]:
    """Return the problems of ``AMESH``: pairs of a kind (``unknown``, ``value``, ``window``) and a sentence with the fix."""
    raw = getattr(django_settings, "AMESH", {})
    if not isinstance(raw, dict):
        return [("value", "AMESH must be a dict. Write AMESH = {} for the defaults.")]
    found = key_problems(AmeshSettings, raw, "AMESH", _value_problem)
    if raw.get("SEAL_KEY_FILE") is not None and raw.get("SEAL_KEY_FILES") is not None:
        found.append(("value", "AMESH['SEAL_KEY_FILE'] and AMESH['SEAL_KEY_FILES'] are both set. Remove one of them."))
    if not found:
        merged = AmeshSettings(**raw)
        skew, window = merged.CLOCK_SKEW_SECONDS, merged.NONCE_WINDOW_SECONDS
        if window < 2 * skew:
            found.append(
                (
                    "window",
                    f"AMESH['NONCE_WINDOW_SECONDS'] ({window}) is shorter than twice AMESH['CLOCK_SKEW_SECONDS'] ({skew}): a "
                    f"request could be replayed. Set it to {2 * skew} or more.",
                )
            )
    return found


@functools.cache
def amesh_settings() -> AmeshSettings:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: the settings have :func:`problems`.
    """
    found = problems()
    if found:
        raise ImproperlyConfigured(" ".join(sentence for _, sentence in found))
    raw = getattr(django_settings, "AMESH", {})
    paths: dict[str, Any] = {name: str(raw[name]) for name in ("DIR", "SEAL_KEY_FILE") if raw.get(name) is not None}
    if raw.get("SEAL_KEY_FILES") is not None:
        paths["SEAL_KEY_FILES"] = tuple(None if path is None else str(path) for path in raw["SEAL_KEY_FILES"])
    return AmeshSettings(**{**raw, **paths})


#: The cache that stores nonces if the settings name none and CACHES has it: a cache for nonces alone.
OWN_CACHE = "amesh"


def nonce_cache() -> str:
    """Return the name of the Django cache that stores nonces.

    Raises:
        ImproperlyConfigured: as for :func:`amesh_settings`.
    """
    return amesh_settings().NONCE_CACHE or (OWN_CACHE if OWN_CACHE in django_settings.CACHES else DEFAULT_CACHE_ALIAS)

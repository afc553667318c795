"""System checks. Their ids (``amesh.E001``, ``amesh.W001``, …) are stable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import django
from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.memcached import BaseMemcachedCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.urls import URLResolver, get_resolver

from amesh_django.relay import conf as relay_conf
from amesh_django.spelling import manage_py
from amesh_django.trust import current_list, keys
from amesh_django.trust.database import database
from amesh_django.trust.verified import other_secret
from authmesh.device import default_directory, permission_problems, read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.storage import expanded
from authmesh.pairing.bootstrap import background as bootstrap_first
from authmesh.protocol.errors import AmeshError, Run, spelled

from . import conf, metrics
from .middleware import has_middleware
from .models import AllowListSeal, Device
from .trust import triggers
from .verification import nonces
from .verification.eviction import eviction, forgets, forgetting

__all__ = [
    "SUPPORTED_DJANGO",
    "check_connections",
    "check_default_authentication",
    "check_directory",
    "check_django",
    "check_metrics",
    "check_middleware",
    "check_nonce_cache",
    "check_nonce_eviction",
    "check_seal_secret",
    "check_settings",
    "check_triggers",
]

_REJECTED = "Until this is fixed, all signed requests are rejected."
_KINDS = {"unknown": "amesh.E001", "value": "amesh.E002", "window": "amesh.E003"}
#: The oldest version of Django that this app supports, and the first one that it does not support yet. As in pyproject.toml.
SUPPORTED_DJANGO = ((5, 2, 19), (6, 2))
#: Maximum number of views that a message names.
_SHOWN_VIEWS = 10
#: Minimum of ``MAX_ENTRIES`` of a database cache. A cache with fewer entries may delete live nonces.
_MIN_ENTRIES = 100_000


@register(Tags.security)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check ``AMESH``.

    - ``amesh.E001``: a key is not a setting.
    - ``amesh.E002``: a value is wrong.
    - ``amesh.E003``: the nonce window is shorter than twice the clock skew.
    """
    found = [*conf.problems(), *relay_conf.problems()]
    return [Error(sentence, id=_KINDS[kind]) for kind, sentence in found]


@register(Tags.security)
def check_nonce_cache(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the cache for nonces.

    - ``amesh.E004``: there is no such cache.
    - ``amesh.E005``: it is a dummy cache.
    - ``amesh.E006``: it is a file cache.
    - ``amesh.W001``: it is a local-memory cache, and DEBUG is False.
    - ``amesh.W002``: it deletes entries when it is full.
    - ``amesh.W007``: it is the default cache, because the settings name none, and DEBUG is False.
    - ``amesh.W018``: it is in a database with ATOMIC_REQUESTS.
    """
    if conf.problems():
        return []
    alias, redis = conf.nonce_cache(), nonces.USE_REDIS
    try:
        cache = caches[alias]
    except (InvalidCacheBackendError, ImportError) as error:
        hint = f"{redis} To install the package, run pip install 'amesh-django[redis]'."
        return [Error(f"AMESH['NONCE_CACHE'] is {alias!r}, which cannot be used: {error}", hint=hint, id="amesh.E004")]
    if isinstance(cache, DummyCache):
        return [Error(nonces.DUMMY, hint=redis, id="amesh.E005")]
    if isinstance(cache, FileBasedCache):
        return [Error(nonces.FILE, hint=redis, id="amesh.E006")]
    if isinstance(cache, LocMemCache) and not django_settings.DEBUG:
        return [Warning(nonces.LOCAL_MEMORY, hint=redis, id="amesh.W001")]
    is_small = isinstance(cache, DatabaseCache) and cache._max_entries < _MIN_ENTRIES
    if is_small or isinstance(cache, BaseMemcachedCache):
        return [
            Warning(
                f"The nonce store {alias!r} deletes entries when it is full, even live nonces: a request could be replayed.",
                hint=f"{redis} With a database cache, you can set OPTIONS['MAX_ENTRIES'] to {_MIN_ENTRIES} or more instead.",
                id="amesh.W002",
            )
        ]
    if isinstance(cache, DatabaseCache) and connections[nonces.database_of(cache)].settings_dict["ATOMIC_REQUESTS"]:
        rejected = "Requests that the decorator or REST framework verifies are rejected; the middleware runs before the transaction."
        return [Warning(f"{nonces.ROLLED_BACK} {rejected}", hint=nonces.LEAVE_TRANSACTION, id="amesh.W018")]
    if conf.amesh_settings().NONCE_CACHE is None and alias != conf.OWN_CACHE and not django_settings.DEBUG:
        return [
            Warning(
                f"Nonces are in the cache {alias!r}, which the project uses for other things, too: cache.clear() and another "
                "KEY_PREFIX or VERSION make it forget live nonces, and a request could be replayed.",
                hint=f"Add a cache {conf.OWN_CACHE!r} to CACHES for nonces alone, with another database of Redis. To keep using the "
                f"cache {alias!r}, set AMESH['NONCE_CACHE'] to its name.",
                id="amesh.W007",
            )
        ]
    return []


@register(Tags.security)
def check_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that ``AMESH["PROTECT"]`` has an effect.

    - ``amesh.W019``: it is set, and MIDDLEWARE does not have the middleware.
    """
    if conf.problems() or not {"PROTECT", "EXEMPT"} & getattr(django_settings, "AMESH", {}).keys() or has_middleware():
        return []
    message = (
        "AMESH names paths to protect, and MIDDLEWARE does not have AmeshMiddleware: nothing protects these paths."
    )
    hint = 'Add "amesh_django.middleware.AmeshMiddleware" to MIDDLEWARE, or remove PROTECT and EXEMPT from AMESH.'
    return [Warning(message, hint=hint, id="amesh.W019")]


@register(Tags.security, deploy=True)
def check_nonce_eviction(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Ask the Redis of the nonces whether it deletes or forgets entries. Runs with ``check --deploy``, because it needs Redis.

    - ``amesh.W008``: it deletes entries when its memory is full.
    - ``amesh.W009``: it does not tell, because CONFIG and INFO are forbidden.
    - ``amesh.W014``: it forgets them when it ends.
    """
    if conf.problems():
        return []
    alias = conf.nonce_cache()
    try:
        found, is_forgetful = eviction(alias, caches[alias]), forgets(caches[alias])
    except Exception:  # there is no such cache (amesh.E004), or Redis cannot be reached: doctor reports that
        return []
    messages: list[CheckMessage] = []
    if found is not None:
        check_id = "amesh.W009" if found.policy is None else "amesh.W008"
        messages.append(Warning(found.message, hint=found.hint, id=check_id))
    if is_forgetful:
        message, hint = forgetting(alias)
        messages.append(Warning(message, hint=hint, id="amesh.W014"))
    return messages


@register(Tags.security, deploy=True)
def check_connections(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the connections to PostgreSQL. Runs with ``check --deploy``, and does not connect.

    - ``amesh.W015``: each request makes a new one.
    """
    using = database()
    options = connections[using].settings_dict
    if connections[using].vendor != "postgresql" or options["CONN_MAX_AGE"] != 0 or options["OPTIONS"].get("pool"):
        return []
    return [
        Warning(
            f"Each request makes a new connection to the database {using!r}, because it has neither persistent connections nor a pool.",
            hint="For a WSGI server such as gunicorn, set CONN_MAX_AGE to 60 and CONN_HEALTH_CHECKS to True in DATABASES. For an ASGI "
            "server, leave CONN_MAX_AGE at 0, and set OPTIONS['pool'].",
            id="amesh.W015",
        )
    ]


@register(Tags.database)
def check_directory(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check the device directory of this server. Runs with ``check --database`` and ``migrate``: a build has neither it nor the list.

    - ``amesh.W003``: it has no identity, or cannot be read.
    - ``amesh.W004``: other users can read it or write to it.
    - ``amesh.W006``: a file of ``AMESH["SEAL_KEY_FILE"]`` or ``AMESH["SEAL_KEY_FILES"]`` cannot be used.
    """
    if conf.problems() or database() not in (databases or ()):
        return []
    for shared in filter(None, conf.amesh_settings().seal_secrets):
        try:
            keys.read_seal_key_file(expanded(shared))
        except AmeshError as error:
            return [_failure(error, "amesh.W006")]
    configured = conf.amesh_settings().DIR
    path = None
    try:
        path = expanded(configured) if configured else default_directory()
        read_identity(path)
    except AmeshError as error:
        if path is None or not bootstrap_first.is_due(path):
            return [_failure(error, "amesh.W003")]
        command = manage_py(Run("bootstrap"))
        return [
            Warning(
                f"{error.message} {_REJECTED}",
                hint=f"The first request enrolls this server with the token in {TOKEN_VARIABLE}. To do that now, run {command}.",
                id="amesh.W003",
            )
        ]
    return [
        Warning(found.message, hint=spelled(found.hint, manage_py), id="amesh.W004")
        for found in permission_problems(path)
    ]


def _failure(error: AmeshError, check_id: str) -> CheckMessage:
    hint = spelled(error.hint, manage_py)
    return Warning(f"{error.message} {_REJECTED}", hint=hint or None, id=check_id)


@register(Tags.compatibility)
def check_metrics(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the library for ``AMESH["METRICS"]`` is there.

    - ``amesh.E008``: it is not installed.
    """
    if conf.problems() or not conf.amesh_settings().METRICS or metrics.is_installed():
        return []
    return [
        Error(
            "AMESH['METRICS'] is True, and prometheus_client is not installed: nothing is counted.",
            hint="Run: pip install 'amesh-django[metrics]'",
            id="amesh.E008",
        )
    ]


@register(Tags.database)
def check_triggers(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check the triggers of the database. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W005``: the triggers that report changes made outside Django are missing.
    """
    using = database()
    if using not in (databases or ()):
        return []
    try:
        tables = set(connections[using].introspection.table_names())
        missing = {Device._meta.db_table, AllowListSeal._meta.db_table} <= tables and not triggers.installed(using)
    except DatabaseError:
        return []
    if not missing:
        return []
    return [
        Warning(
            f"The database {using!r} does not have the triggers that report at once when a device is changed outside Django. "
            "Without them, such a change has no effect, and is found only when a process starts or amesh_integrity runs.",
            hint="Grant the database user the privilege TRIGGER (for MySQL with a binary log, set log_bin_trust_function_creators), "
            "then run manage.py migrate.",
            id="amesh.W005",
        )
    ]


@register(Tags.security)
def check_default_authentication(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Name the views of REST framework that accept devices although they do not name devices.

    - ``amesh.W010``: the class is in DEFAULT_AUTHENTICATION_CLASSES, and DEVICES_ARE_USERS is True.
    """
    if conf.problems() or not conf.amesh_settings().DEVICES_ARE_USERS:
        return []
    try:
        views = sorted(set(_open_to_devices(get_resolver().url_patterns)))
    except (ImportError, ImproperlyConfigured):
        return []  # no REST framework; Django's own checks report URLs that cannot be loaded
    if not views:
        return []
    more = len(views) - _SHOWN_VIEWS
    shown = ", ".join(views[:_SHOWN_VIEWS]) + (f", and {more} more" if more > 0 else "")
    return [
        Warning(
            "AmeshAuthentication is in DEFAULT_AUTHENTICATION_CLASSES and AMESH['DEVICES_ARE_USERS'] is True, so every "
            f"trusted device counts as logged in for these views, which do not name devices: {shown}.",
            hint="Set AMESH['DEVICES_ARE_USERS'] to False, and add IsTrustedDevice or HasDevicePermission to the views for "
            "devices.",
            id="amesh.W010",
        )
    ]


def _open_to_devices(patterns: Sequence[Any]) -> Iterator[str]:
    """Yield the views that use the default authentication, with our class in it, and whose permissions ask for a login.

    Raises:
        ImportError: REST framework is not installed.
    """
    from rest_framework.permissions import (
        DjangoModelPermissions,
        IsAdminUser,
        IsAuthenticated,
        IsAuthenticatedOrReadOnly,
    )
    from rest_framework.views import APIView

    from .drf import AmeshAuthentication, IsTrustedDevice

    login = (IsAuthenticated, IsAuthenticatedOrReadOnly, DjangoModelPermissions)
    default = APIView.authentication_classes
    if not any(issubclass(found, AmeshAuthentication) for found in default):
        return
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _open_to_devices(pattern.url_patterns)
            continue
        view = getattr(pattern.callback, "cls", None)
        if not isinstance(view, type) or not issubclass(view, APIView):
            continue
        options = getattr(pattern.callback, "initkwargs", {})
        if options.get("authentication_classes", view.authentication_classes) is not default:
            continue  # the view chose its classes itself
        permissions = options.get("permission_classes", view.permission_classes)
        parts = [part for permission in permissions for part in _parts(permission)]
        if (
            any(issubclass(part, login) for part in parts)
            and not any(issubclass(part, IsTrustedDevice) for part in parts)
            and IsAdminUser not in permissions
        ):
            yield f"{view.__module__}.{view.__name__}"


def _parts(permission: Any) -> Iterator[type]:
    """Yield the classes that a member of ``permission_classes``, such as ``A | B``, consists of."""
    operands = [getattr(permission, name) for name in ("op1_class", "op2_class") if hasattr(permission, name)]
    for operand in operands:
        yield from _parts(operand)
    if isinstance(permission, type):
        yield permission


@register(Tags.database)
def check_seal_secret(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check whether this server has the secret of the seal. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W016``: the allow list was sealed with another secret.
    """
    using = database()
    if using not in (databases or ()) or conf.problems():
        return []
    try:
        sealed = current_list(using)
        row = sealed.read_seal()
        if row is None or sealed.is_genuine(row):
            return []
    except (AmeshError, DatabaseError):  # reported by amesh.W003 and amesh.W006, or not migrated
        return []
    return [
        Warning(
            f"The allow list in the database {using!r} was sealed with another secret than this server has: another host that uses "
            f"the database sealed it, or this server has another identity than before. {_REJECTED}",
            hint=f"{other_secret()} If this is the only host, restore the right device directory (AMESH['DIR']) or seal key file.",
            id="amesh.W016",
        )
    ]


@register(Tags.compatibility)
def check_django(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the version of Django.

    - ``amesh.E007``: this version of the app does not support it.
    """
    oldest, too_new = SUPPORTED_DJANGO
    if oldest <= django.VERSION[:3] < too_new:
        return []
    supported = f"{'.'.join(map(str, oldest))} or newer, and older than {'.'.join(map(str, too_new))}"
    return [
        Error(
            f"amesh_django does not support Django {django.get_version()}. It supports Django {supported}.",
            hint="Install a supported version: pip install 'amesh-django[django]'",
            id="amesh.E007",
        )
    ]

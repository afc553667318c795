"""What ``manage.py amesh_doctor`` looks at besides: settings, system checks, migrations, the nonce cache, the check address."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage
from django.core.checks.messages import ERROR
from django.core.checks.registry import registry
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse

from amesh_django import checks, conf
from amesh_django.conf import amesh_settings
from amesh_django.models import Device
from amesh_django.trust.database import database
from amesh_django.verification.nonces import CacheNonceStore
from authmesh.commands.doctor.command import Further
from authmesh.commands.doctor.findings import Finding, of_sentence
from authmesh.protocol.errors import NonceStoreUnavailable

#: What other checks of doctor say: settings, identity, permissions.
_SAID = frozenset({"amesh.E001", "amesh.E002", "amesh.E003", "amesh.W003", "amesh.W004"})


def lend_connections() -> Callable[[], None]:
    """What gives another thread this thread's database connections, which were made fit for that before."""
    lent: list[BaseDatabaseWrapper] = list(connections.all())

    def take_over() -> None:
        for connection in lent:
            connections[connection.alias] = connection

    return take_over


def settings() -> Iterator[Finding]:
    """Is ``AMESH`` in order?"""
    problems = conf.problems()
    for _, sentence in problems:
        yield of_sentence("settings", sentence)
    if not problems:
        yield Finding("settings", "ok", "AMESH is in order.")


def system_checks() -> Iterator[Finding]:
    """What ``manage.py check`` says of amesh."""
    messages: list[CheckMessage] = []
    for check in registry.get_checks():
        if check.__module__ == checks.__name__:
            messages += check(app_configs=None, databases=[database()])
    told = [message for message in messages if message.id not in _SAID]
    for message in told:
        found = of_sentence("system-checks", str(message.msg), "problem" if message.level >= ERROR else "warning")
        hint = message.hint or ""
        if found.advice and hint and found.advice[-1] not in ".!?":  # a command, to which no stop is to stick
            hint = f"({hint})"
        advice = " ".join(part for part in (found.advice, hint) if part)
        yield Finding(found.id, found.status, f"{message.id}: {found.message}", advice)
    if not told:
        yield Finding("system-checks", "ok", "manage.py check has nothing to say of amesh.")


def migrations() -> Iterator[Finding]:
    """Are the tables what this version wants?"""
    connection = connections[database()]
    label = Device._meta.app_label
    executor = MigrationExecutor(connection)
    leaves = [node for node in executor.loader.graph.leaf_nodes() if node[0] == label]
    missing = [migration.name for migration, _ in executor.migration_plan(leaves) if migration.app_label == label]
    if missing:
        yield Finding("migrations", "problem", f"The database lacks {', '.join(missing)}.", "Run: manage.py migrate")
    else:
        yield Finding("migrations", "ok", f"The database ({connection.vendor}) is migrated.")


def nonce_cache() -> Iterator[Finding]:
    """Does the cache remember a nonce, and do all processes share it?"""
    alias = amesh_settings().NONCE_CACHE
    cache = caches[alias]
    if isinstance(cache, LocMemCache):
        yield Finding(
            "nonce-cache",
            "ok",
            "Nonces lie in the memory of each process: right for one process, and not shared by several.",
        )
        return
    nonce = secrets.token_urlsafe(16)
    store = CacheNonceStore(cache)
    try:
        answers = [store.record("amesh-doctor", nonce, 10) for _ in range(2)]
    except NonceStoreUnavailable as error:
        yield Finding(
            "nonce-cache",
            "problem",
            f"The cache {alias!r} can't be reached ({error.reason}): every signed request is refused.",
            "Bring it back, or correct CACHES.",
        )
        return
    if answers == [True, False]:
        yield Finding("nonce-cache", "ok", f"The cache {alias!r} remembers nonces, for all processes that use it.")
    else:
        yield Finding(
            "nonce-cache",
            "problem",
            f"The cache {alias!r} forgets at once what it is to remember: a request could be replayed.",
            "Use Redis: CACHES with django_redis.cache.RedisCache, and its name in AMESH['NONCE_CACHE'].",
        )


def check_address() -> Iterator[Finding]:
    """Does this project offer the address that ``doctor URL`` asks?"""
    try:
        yield Finding("check-address", "ok", f"Devices ask at {reverse('amesh_django:check')} whether they are known.")
    except NoReverseMatch:
        yield Finding(
            "check-address",
            "skipped",
            "This project offers no check address.",
            "For doctor URL on your devices: path('', include('amesh_django.urls')) in the URLs of the project.",
        )


FURTHER = (
    Further("settings", "", settings),
    Further("system-checks", "database", system_checks),
    Further("migrations", "database", migrations),
    Further("nonce-cache", "", nonce_cache),
    Further("check-address", "", check_address),
)

"""The checks of ``manage.py amesh_doctor`` that only a server has: settings, system checks, migrations, nonce cache, check address."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage
from django.core.checks.messages import ERROR
from django.core.checks.registry import registry
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse

from amesh_django import checks, conf
from amesh_django.fleet import freshness
from amesh_django.models import Device, Hub, HubEntry
from amesh_django.relay import conf as relay_conf
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.verification.eviction import eviction, forgets, forgetting
from amesh_django.verification.nonces import CacheNonceStore
from authmesh.commands.doctor.command import Further
from authmesh.commands.doctor.findings import Finding, Status
from authmesh.protocol.errors import AmeshError, NonceStoreUnavailable

#: System checks about settings, identity and permissions, which other checks of doctor report.
_REPORTED_OTHERWISE = frozenset({"amesh.E001", "amesh.E002", "amesh.E003", "amesh.W003", "amesh.W004"})

#: What follows if a hub has been silent for too long: ``WHEN_STALE`` → in words, and how bad that is.
_EFFECTS: dict[str, tuple[str, Status]] = {
    "allow": ("A device that was revoked there may still be accepted", "warning"),
    "refuse": ("All signed requests are rejected", "problem"),
}


def settings() -> Iterator[Finding]:
    """Examine whether ``AMESH`` is valid."""
    problems = [*conf.problems(), *relay_conf.problems()]
    for _, text in problems:
        yield Finding("settings", "problem", text)
    if not problems:
        yield Finding("settings", "ok", "AMESH is valid.")


def system_checks() -> Iterator[Finding]:
    """Examine what ``manage.py check`` reports about amesh."""
    messages: list[CheckMessage] = []
    for check in registry.get_checks():
        if check.__module__.startswith(f"{checks.__name__}."):
            messages += check(app_configs=None, databases=[database()])
    reported = [message for message in messages if message.id not in _REPORTED_OTHERWISE]
    for message in reported:
        status: Status = "problem" if message.level >= ERROR else "warning"
        yield Finding("system-checks", status, f"{message.id}: {message.msg}", str(message.hint or ""))
    if not reported:
        yield Finding("system-checks", "ok", "manage.py check reports nothing else about amesh.")


def migrations() -> Iterator[Finding]:
    """Examine whether the database has the tables of this version."""
    connection = connections[database()]
    label = Device._meta.app_label
    executor = MigrationExecutor(connection)
    leaves = [node for node in executor.loader.graph.leaf_nodes() if node[0] == label]
    missing = [migration.name for migration, _ in executor.migration_plan(leaves) if migration.app_label == label]
    if missing:
        message = f"The database lacks the migrations {', '.join(missing)}."
        yield Finding("migrations", "problem", message, "Run manage.py migrate.")
    else:
        yield Finding("migrations", "ok", f"The database ({connection.vendor}) is migrated.")


def nonce_cache() -> Iterator[Finding]:
    """Examine whether the cache stores nonces, and whether all processes share it."""
    alias = conf.nonce_cache()
    cache = caches[alias]
    if isinstance(cache, LocMemCache):
        message = "Nonces are stored in the memory of each process. This is correct for one process, but several do not share them."
        yield Finding("nonce-cache", "ok", message)
        return
    nonce = secrets.token_urlsafe(16)
    store = CacheNonceStore(cache)
    try:
        answers = [store.record("amesh-doctor", nonce, 10) for _ in range(2)]
    except NonceStoreUnavailable as error:
        yield Finding(
            "nonce-cache",
            "problem",
            f"The cache {alias!r} cannot be reached ({error.reason}): all signed requests are rejected.",
            "Start the cache server, or correct CACHES.",
        )
        return
    if answers == [True, False]:
        try:
            found, is_forgetful = eviction(alias, cache), forgets(cache)
        except Exception as error:  # each client raises errors of its own
            message = f"The cache {alias!r} did not tell its configuration: {type(error).__name__}."
            yield Finding("nonce-cache", "warning", message, "Run doctor again.")
            return
        if found is not None:
            status: Status = "warning" if found.policy is None else "problem"
            yield Finding("nonce-cache", status, found.message, found.hint)
            return
        if is_forgetful:
            yield Finding("nonce-cache", "warning", *forgetting(alias))
            return
        yield Finding("nonce-cache", "ok", f"The cache {alias!r} stores nonces, for all processes that use it.")
    else:
        yield Finding(
            "nonce-cache",
            "problem",
            f"The cache {alias!r} does not keep what it stores: a request could be replayed.",
            "Use Redis: CACHES with django_redis.cache.RedisCache, and the name of that cache in AMESH['NONCE_CACHE'].",
        )


def hub_words() -> Iterator[Finding]:
    """Examine whether the rows that hold what hubs have said are those that amesh wrote."""
    if not Hub.objects.using(database()).exists() and not HubEntry.objects.using(database()).exists():
        yield Finding("hubs", "ok", "No hub has sent anything to this server.")
        return
    problems = current_list().hub_problems()
    for text in problems:
        hint = "Run manage.py amesh_integrity, and find out who changed the rows."
        yield Finding("hubs", "problem", f"What a hub has said was changed outside Django: {text}", hint)
    if not problems:
        yield Finding("hubs", "ok", "What hubs have said is as amesh wrote it.")


def silent_hubs() -> Iterator[Finding]:
    """Examine whether this server has heard its hubs. A list that is rejected is reported by another check."""
    when_stale = conf.amesh_settings().WHEN_STALE
    effect, status = _EFFECTS[when_stale]
    try:
        silent = freshness.stale_hubs()
    except AmeshError:
        return
    for one in silent:
        message = f"The hub {one.device_id} was heard last at {one.heard}. {effect}, because AMESH['WHEN_STALE'] is '{when_stale}'."
        hint = "Check that the hub runs, and that this server and the hub reach each other: manage.py amesh_hubs."
        yield Finding("hubs", status, message, hint)


def hubs() -> Iterator[Finding]:
    """Examine what this server has from its hubs."""
    yield from hub_words()
    yield from silent_hubs()


def check_address() -> Iterator[Finding]:
    """Examine whether this project has the check address that ``doctor URL`` queries."""
    try:
        address = reverse("amesh_django:check")
    except NoReverseMatch:
        yield Finding(
            "check-address",
            "skipped",
            "This project has no check address.",
            "If devices should run doctor with the URL of this server, add path('', include('amesh_django.urls')) to the URLs of the project.",
        )
    else:
        yield Finding("check-address", "ok", f"Devices can ask at {address} whether they are known.")


FURTHER = (
    Further("settings", "", settings),
    Further("system-checks", "database", system_checks),
    Further("migrations", "database", migrations),
    Further("nonce-cache", "", nonce_cache),
    Further("hubs", "database", hubs),
    Further("check-address", "", check_address),
)

"""Checks of a hub: what carries changes to its servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import DatabaseError

from amesh_django import conf
from amesh_django.fleet import servers, sweeping
from amesh_django.models import Server
from amesh_django.trust.database import database
from authmesh.protocol.errors import AmeshError

#: Age of the newest pass of the sweeper, in seconds, from which it counts as gone.
_MAX_AGE_SECONDS = 60


@register(Tags.database)
def check_fleet(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check a hub that has servers. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W011``: servers lack changes, and the sweeper has not run for a minute.
    - ``amesh.W012``: the tasks of amesh share a queue with others.
    - ``amesh.W013``: Celery runs tasks where they are sent, and DEBUG is False.
    - ``amesh.W017``: the servers cannot know the address of this hub.
    - ``amesh.W023``: pairings share a queue with the changes for servers.
    - ``amesh.W022``: servers have changes that the list of this hub has lost.
    """
    if database() not in (databases or ()) or conf.problems():
        return []
    try:
        rows = servers.every()
        return list(_problems(rows)) if rows else []
    except (AmeshError, DatabaseError):  # reported by others, or not migrated
        return []


def _problems(rows: Sequence[Server]) -> Iterator[CheckMessage]:
    if conf.amesh_settings().URL is None:
        yield Warning(
            "This hub has servers, and AMESH['URL'] is not set: a server that was away cannot ask for what it has missed.",
            hint="Set AMESH['URL'] to the public address of amesh_django.urls on this hub, such as https://hub.example/amesh/.",
            id="amesh.W017",
        )
    yield from _celery_problems()
    head = servers.head()
    ahead = [row.device_id for row in rows if servers.is_ahead(row, head)]
    if ahead:
        yield Warning(
            f"Servers of this hub have changes that its allow list has lost ({', '.join(ahead[:5])}): an older list was restored here. They may "
            "not know what was changed since, so a device that was revoked here may still be accepted there.",
            hint="Find out why, then run manage.py amesh_integrity --reseal: the servers then get all of it.",
            id="amesh.W022",
        )
    dirty = sum(row.enabled and servers.is_dirty(row, head) for row in rows)
    age = sweeping.seconds_since()
    if dirty and (age is None or age > _MAX_AGE_SECONDS):
        since = f"for {age:.0f} seconds" if age is not None else "yet"
        yield Warning(
            f"{dirty} of the servers of this hub lack changes, and the sweeper has not run {since}: a device that was revoked may still be "
            "accepted there.",
            hint="Start Celery beat and a worker for the queue of amesh, or manage.py amesh_propagate --watch.",
            id="amesh.W011",
        )


def _celery_problems() -> Iterator[CheckMessage]:
    if "celery" not in sys.modules:  # the project has not made an app of Celery
        return
    from amesh_django import tasks

    if not tasks.is_configured():
        return
    if tasks.is_eager() and not django_settings.DEBUG:
        yield Warning(
            "CELERY_TASK_ALWAYS_EAGER is on: changes are carried to the servers in the process that makes them, and nothing sweeps.",
            hint="Set it only for tests, or start manage.py amesh_propagate --watch.",
            id="amesh.W013",
        )
    if conf.amesh_settings().PAIRING_TASK and tasks.shares_queue():
        yield Warning(
            "AMESH['PAIRING_TASK'] is on, and pairings wait in the same queue as the changes for servers: people take minutes to pair, and a "
            "revocation may have to wait for them.",
            hint="Route amesh.pair to a queue of its own with CELERY_TASK_ROUTES, and start a worker for it: celery worker -Q amesh-pair.",
            id="amesh.W023",
        )
    queue = tasks.queue_problem()
    if queue:
        yield Warning(
            f"The tasks of amesh are in the queue {queue!r} with other tasks: a revocation waits until those before it are done.",
            hint="Route amesh.* to a queue of its own with CELERY_TASK_ROUTES, and start a worker for it: celery worker -Q amesh.",
            id="amesh.W012",
        )

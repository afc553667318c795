"""Checks of a server that follows hubs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import DatabaseError

from amesh_django import conf
from amesh_django.fleet import following, signed_list
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from authmesh.protocol.errors import AmeshError


@register(Tags.database)
def check_hubs(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check a server that follows hubs. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W020``: requests are accepted however long a hub has been silent.
    - ``amesh.W021``: PyJWT is not installed.
    """
    if database() not in (databases or ()) or conf.problems():
        return []
    try:
        hubs = following.follows(current_list().snapshot(), time.time())
    except (AmeshError, DatabaseError):  # reported by others, or not migrated
        return []
    found: list[CheckMessage] = []
    if hubs and conf.amesh_settings().WHEN_STALE == "allow":
        found.append(
            Warning(
                "This server follows a hub, and AMESH['WHEN_STALE'] is 'allow': if the hub cannot be reached, a device that was revoked there is "
                "still accepted here.",
                hint="Set WHEN_STALE to 'refuse' to reject requests in that case. If that is worse for you, silence the check with "
                "SILENCED_SYSTEM_CHECKS.",
                id="amesh.W020",
            )
        )
    if hubs and not signed_list.can_verify():
        found.append(
            Warning(
                "This server follows a hub, and PyJWT is not installed: it cannot verify the signed list of revocations, with which a hub begins "
                "and catches up.",
                hint="Run: pip install 'amesh-django[django]'",
                id="amesh.W021",
            )
        )
    return found

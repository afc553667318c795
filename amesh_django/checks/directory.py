"""Checks of the device directory of this server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags, Warning, register

from amesh_django import conf
from amesh_django.spelling import manage_py
from amesh_django.trust import keys
from amesh_django.trust.database import database
from authmesh.device import default_directory, permission_problems, read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.storage import expanded
from authmesh.pairing.bootstrap import background as bootstrap_first
from authmesh.protocol.errors import AmeshError, Run, spelled

REJECTED = "Until this is fixed, all signed requests are rejected."


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
                f"{error.message} {REJECTED}",
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
    return Warning(f"{error.message} {REJECTED}", hint=hint or None, id=check_id)

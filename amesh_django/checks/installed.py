"""Checks of the versions and libraries that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import django
from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register

from amesh_django import conf, metrics

#: The oldest version of Django that this app supports, and the first one that it does not support yet. As in pyproject.toml.
SUPPORTED_DJANGO = ((5, 2, 19), (6, 2))


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

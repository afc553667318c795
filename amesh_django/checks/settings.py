"""Checks of the values of ``AMESH``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register

from amesh_django import conf
from amesh_django.relay import conf as relay_conf

_KINDS = {"unknown": "amesh.E001", "value": "amesh.E002", "window": "amesh.E003"}


@register(Tags.security)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check ``AMESH``.

    - ``amesh.E001``: a key is not a setting.
    - ``amesh.E002``: a value is wrong.
    - ``amesh.E003``: the nonce window is shorter than twice the clock skew.
    """
    found = [*conf.problems(), *relay_conf.problems()]
    return [Error(sentence, id=_KINDS[kind]) for kind, sentence in found]

"""Checks of the values of ``AMESH``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.utils.module_loading import import_string

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
    messages: list[CheckMessage] = [Error(sentence, id=_KINDS[kind]) for kind, sentence in found]
    name = getattr(settings, "AMESH", {}).get("ADMIN_BASE") if not found else None
    if name and apps.is_installed("django.contrib.admin") and not _is_model_admin(name):
        sentence = f"AMESH['ADMIN_BASE'] must be the path of a class derived from ModelAdmin; it is {name!r}."
        messages.append(Error(sentence, id="amesh.E002"))
    return messages


def _is_model_admin(name: Any) -> bool:
    from django.contrib.admin import ModelAdmin

    try:
        found = import_string(str(name))
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, ModelAdmin)

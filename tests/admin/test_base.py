"""The base of the model admins."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin import ModelAdmin
from django.core.checks import run_checks

from amesh_django.admin.base import base_class


class House(ModelAdmin):  # type: ignore[type-arg]
    """A base as a theme has it."""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (None, ModelAdmin),
        ("tests.admin.test_base.House", House),
        ("tests.admin.test_base.Nowhere", ModelAdmin),
        ("nowhere", ModelAdmin),
        ("pathlib.Path", ModelAdmin),
    ],
)
def test_the_base_is_what_the_settings_name(settings: Any, name: str | None, found: type) -> None:
    settings.AMESH = {"ADMIN_BASE": name}
    assert base_class() is found
    wrong = name is not None and found is ModelAdmin
    assert any("ADMIN_BASE" in message.msg for message in run_checks(tags=["security"])) == wrong

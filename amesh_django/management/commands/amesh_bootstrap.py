"""``manage.py amesh_bootstrap``: the controller goes into the sealed list of the database."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from amesh_django import lifecycle
from amesh_django.management.base import AmeshCommand
from authmesh import commands


def _bootstrap(context: commands.Context, **options: Any) -> None:
    try:
        commands.BOOTSTRAP.run(context, **options)
    finally:
        lifecycle.reset()


class Command(AmeshCommand):
    """See :mod:`authmesh.commands`."""

    spec: ClassVar[commands.Command] = dataclasses.replace(commands.BOOTSTRAP, run=_bootstrap)

"""``manage.py amesh_bootstrap``: the controller goes into the sealed list of the database."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from amesh_django import server
from amesh_django.device import commands
from amesh_django.management.base import AmeshCommand


def _bootstrap(context: commands.Context, **options: Any) -> None:
    try:
        commands.BOOTSTRAP.run(context, **options)
    finally:
        server.reset()


class Command(AmeshCommand):
    """See :mod:`amesh_django.device.commands`."""

    spec: ClassVar[commands.Command] = dataclasses.replace(commands.BOOTSTRAP, run=_bootstrap)

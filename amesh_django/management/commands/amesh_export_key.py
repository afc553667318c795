"""``manage.py amesh_export_key``."""

from __future__ import annotations

from typing import ClassVar

from amesh_django.management.base import AmeshCommand
from authmesh import commands


class Command(AmeshCommand):
    """See :mod:`authmesh.commands`."""

    spec: ClassVar[commands.Command] = commands.EXPORT_KEY

"""``manage.py amesh_invite``."""

from __future__ import annotations

from typing import ClassVar

from amesh_django.device import commands
from amesh_django.management.base import AmeshCommand


class Command(AmeshCommand):
    """See :mod:`amesh_django.device.commands`."""

    spec: ClassVar[commands.Command] = commands.INVITE

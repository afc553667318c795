"""``manage.py amesh_rotate``: replace the key with which this server calls others."""

from typing import Any

from amesh_django import lifecycle
from amesh_django.management.base import AmeshCommand
from authmesh.commands.context import Context
from authmesh.commands.rotate import ROTATE


class Command(AmeshCommand):
    spec = ROTATE

    def run(self, context: Context, **options: Any) -> None:
        try:
            super().run(context, **options)
        finally:
            lifecycle.reset()

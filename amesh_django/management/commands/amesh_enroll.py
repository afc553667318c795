"""``manage.py amesh_enroll``: this server becomes a controller of another one."""

from typing import Any

from amesh_django import lifecycle
from amesh_django.management.base import AmeshCommand
from authmesh.commands.context import Context
from authmesh.commands.tokens.enroll import ENROLL


class Command(AmeshCommand):
    spec = ENROLL

    def run(self, context: Context, **options: Any) -> None:
        try:
            super().run(context, **options)
        finally:
            lifecycle.reset()

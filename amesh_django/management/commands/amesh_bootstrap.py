"""``manage.py amesh_bootstrap``: the controller is stored in the sealed list of the database."""

from typing import Any

from amesh_django import lifecycle
from amesh_django.management.base import AmeshCommand
from authmesh.commands.context import Context
from authmesh.commands.tokens.bootstrap import BOOTSTRAP


class Command(AmeshCommand):
    spec = BOOTSTRAP

    def run(self, context: Context, **options: Any) -> None:
        try:
            super().run(context, **options)
        finally:
            lifecycle.reset()

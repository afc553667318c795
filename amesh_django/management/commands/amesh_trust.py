"""``manage.py amesh_trust``."""

from typing import Any

from django.core.management.base import CommandParser

from amesh_django.management.base import AmeshCommand
from amesh_django.management.home import DatabaseHome
from authmesh.commands.trust import TRUST


class Command(AmeshCommand):
    spec = TRUST
    _approved = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--approve", action="store_true", help="Approve the devices at once, if AMESH['REQUIRE_APPROVAL'] is True."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._approved = options["approve"]
        super().handle(*args, **options)

    def home(self) -> DatabaseHome:
        return DatabaseHome(self.actor(), approved=self._approved)

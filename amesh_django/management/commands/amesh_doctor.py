"""``manage.py amesh_doctor``: the checks of ``amesh doctor``, and those of a server."""

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from amesh_django.management import doctor
from amesh_django.management.base import AmeshCommand
from amesh_django.management.errors import explain
from amesh_django.management.home import UnconfiguredHome
from amesh_django.management.worker import lend_connections
from authmesh.commands.context import Context
from authmesh.commands.doctor.command import DOCTOR, FrontEnd, examine
from authmesh.commands.home import Home
from authmesh.device import default_directory
from authmesh.files.storage import expanded


class Command(AmeshCommand):
    spec = DOCTOR

    def home(self) -> Home:
        """Return the home of this server. Settings that are not valid are reported, and do not stop the command."""
        try:
            return super().home()
        except ImproperlyConfigured as error:
            raw = getattr(settings, "AMESH", None)
            configured = raw.get("DIR") if isinstance(raw, dict) else None
            directory = expanded(configured) if isinstance(configured, str) else default_directory()
            return UnconfiguredHome(directory, str(error))

    def run(self, context: Context, **options: Any) -> None:
        examine(context, FrontEnd(doctor.FURTHER, "database", explain, lend_connections()), **options)

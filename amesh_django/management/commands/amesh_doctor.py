"""``manage.py amesh_doctor``: what ``amesh doctor`` looks at, and what a server needs besides."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from amesh_django.management import doctor
from amesh_django.management.base import AmeshCommand, Misconfigured, call_of, explain
from amesh_django.management.console import DjangoConsole
from authmesh import commands
from authmesh.commands.doctor.command import FrontEnd, examine
from authmesh.device import default_directory
from authmesh.pairing import Blocking


def _doctor(context: commands.Context, **options: Any) -> None:
    front_end = FrontEnd(doctor.FURTHER, "database", explain, doctor.lend_connections())
    examine(context, front_end, **options)


class Command(AmeshCommand):
    """See :mod:`authmesh.commands`."""

    spec: ClassVar[commands.Command] = dataclasses.replace(commands.DOCTOR, run=_doctor)

    def context(self, console: DjangoConsole, blocking: Blocking) -> commands.Context:
        """As of other commands. Settings that are wrong are something to report, and no reason to stop."""
        try:
            return super().context(console, blocking)
        except ImproperlyConfigured as error:
            why = str(error)

        def refused() -> Any:
            raise Misconfigured(why)

        raw = getattr(settings, "AMESH", None)
        named = raw.get("DIR") if isinstance(raw, dict) else None
        return commands.Context(
            console=console,
            directory=default_directory({"AUTH_MESH_DIR": named}) if isinstance(named, str) else default_directory(),
            device=refused,
            allow_list=refused,
            command=call_of,
        )

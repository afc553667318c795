"""``manage.py amesh_export``."""

from typing import Any

from amesh_django.audit.recording import record
from amesh_django.management.base import AmeshCommand
from amesh_django.models import AuditEvent
from authmesh.commands.context import Context
from authmesh.commands.transfer import EXPORT


class Command(AmeshCommand):
    spec = EXPORT

    def run(self, context: Context, **options: Any) -> None:
        """Export the list, and note that in the audit log."""
        super().run(context, **options)
        record(AuditEvent.Kind.EXPORT, by=context.home.actor, subject="allow list")

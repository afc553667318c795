"""The common part of the commands that pair: the audit log has the beginning of a pairing, and its failure."""

from __future__ import annotations

from typing import Any

from amesh_django.audit.recording import record
from amesh_django.models import AuditEvent
from authmesh.commands.context import Context
from authmesh.protocol.errors import AmeshError

from .base import AmeshCommand


class PairingCommand(AmeshCommand):
    """A command that pairs this server with another device. A pairing that succeeds ends with an event of the device."""

    def run(self, context: Context, **options: Any) -> None:
        by, subject = context.home.actor, self.spec.name
        record(AuditEvent.Kind.PAIRING_BEGUN, by=by, subject=subject)
        try:
            self.pair(context, **options)
        except BaseException as error:
            code = error.code if isinstance(error, AmeshError) else type(error).__name__
            record(AuditEvent.Kind.PAIRING_FAILED, by=by, subject=subject, reason_code=code)
            raise

    def pair(self, context: Context, **options: Any) -> None:
        """Pair. A subclass can do more."""
        super().run(context, **options)

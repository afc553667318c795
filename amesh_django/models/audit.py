"""The audit log, and the row that says where it ends."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from amesh_django.kinds import EventKind, event_kinds
from authmesh.protocol.display import clean_line


class AuditEvent(models.Model):
    """One event of the audit log. Names are copied, and there are no foreign keys: an event outlives what it is about.

    An event with a revision is a change of the allow list. It is written with the change, and has its place in the chain at once. Any
    other event gets its place, ``seq`` and ``link``, when the log is sealed next.
    """

    Kind = EventKind

    #: Place in the log, from 1; None until the log is sealed next.
    seq = models.BigIntegerField(_("number"), null=True, db_index=True)
    at = models.DateTimeField(_("at"))
    kind = models.CharField(_("event"), max_length=32, choices=event_kinds)
    actor_type = models.CharField(_("kind of actor"), max_length=16, blank=True)
    actor = models.CharField(_("by"), max_length=150, blank=True)
    device_id = models.CharField(_("device ID"), max_length=32, blank=True, db_index=True)
    #: Name of what the event is about, as it was then.
    subject = models.TextField(_("name"), blank=True)
    address = models.CharField(_("address"), max_length=64, blank=True)
    reason_code = models.CharField(_("reason code"), max_length=64, blank=True)
    text = models.TextField(_("text"), blank=True)
    data = models.TextField(
        default="{}", help_text=_("JSON object. A change of a device has its row, as it was sealed.")
    )
    #: Revision of the allow list after a change of it; None for any other event.
    revision = models.BigIntegerField(_("revision"), null=True, db_index=True)
    mac = models.CharField(max_length=64)
    link = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("audit log")
        ordering: ClassVar[list[str]] = ["-id"]
        indexes: ClassVar[list[models.Index]] = [  # what the pages of the log are read by
            models.Index(fields=["at", "id"], name="amesh_events_by_time"),
            models.Index(fields=["kind", "at", "id"], name="amesh_events_by_kind"),
            models.Index(fields=["actor", "at", "id"], name="amesh_events_by_actor"),
            models.Index(fields=["device_id", "at", "id"], name="amesh_events_by_device"),
        ]
        default_permissions = ("view",)
        permissions: ClassVar[list[tuple[str, Any]]] = [("export_auditevent", "Can export and verify audit log")]

    def __str__(self) -> str:
        return f"{clean_line(str(self.get_kind_display()))} {clean_line(self.device_id)}".rstrip()


class AuditSeal(models.Model):
    """Places in the audit log. The first row says where the log ends; the seal of the list binds that as of its newest change, too.

    The others are those of :class:`amesh_django.trust.places.Place`. Each row has a MAC of its own.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    seq = models.BigIntegerField()
    link = models.CharField(max_length=64, blank=True)
    mac = models.CharField(max_length=64)

    class Meta:
        verbose_name = _("end of the audit log")
        verbose_name_plural = _("ends of the audit log")
        default_permissions = ()

    def __str__(self) -> str:
        return f"event {self.seq}"

"""What a hub knows of its servers, and a server of its hubs (docs/fleet.md).

All four tables are unsealed, because deliveries write them all the time. A MAC covers the columns that decide anything.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from authmesh.protocol.display import clean_line

from .names import names_in


class Server(models.Model):
    """A server that follows this hub. At the hub. The MAC covers device ID, URL, scope of events, groups, and whether it is enabled.

    The server is *dirty*, which means that it lacks changes, if ``epoch`` is not that of the list or ``acked`` is below its revision.
    """

    class ScopeOfEvents(models.TextChoices):
        """What the server is told."""

        REVOKE = "revoke", _("revocations and suspensions")
        ENROLL = "enroll", _("also which devices to trust")

    device_id = models.CharField(_("device ID"), max_length=32, unique=True)
    url = models.CharField(_("address"), max_length=500)
    scope_of_events = models.CharField(
        _("told of"), max_length=16, choices=ScopeOfEvents.choices, default=ScopeOfEvents.REVOKE
    )
    groups_json = models.TextField(
        _("groups"),
        default="[]",
        help_text=_("JSON list of groups whose devices it is told to trust; * for all devices."),
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    added_at = models.DateTimeField(_("added"))
    added_by = models.CharField(_("added by"), max_length=150, blank=True)
    mac = models.CharField(max_length=64)
    #: What the server has acknowledged: the epoch of the list, and the serial. A hint: the server says it again with each answer.
    epoch = models.CharField(max_length=32, blank=True)
    acked = models.BigIntegerField(_("acknowledged"), default=0)
    #: The epoch in which it had more changes than this hub, because an older list was restored here. It says so until the next epoch.
    ahead_epoch = models.CharField(max_length=32, blank=True)
    #: Attempts since the last answer; the time before which there is no other one.
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(_("next attempt"), null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    lease_by = models.CharField(max_length=64, blank=True)
    last_error = models.TextField(_("last error"), blank=True)
    last_ok_at = models.DateTimeField(_("last answer"), null=True, blank=True)
    last_sent_at = models.DateTimeField(_("last attempt"), null=True, blank=True)
    #: The newest refusals of the server: JSON list of ``{"serial", "device", "event", "why", "at"}``.
    refused_json = models.TextField(default="[]")

    class Meta:
        verbose_name = _("server")
        verbose_name_plural = _("servers")
        ordering: ClassVar[list[str]] = ["url", "id"]
        default_permissions = ("view",)
        permissions: ClassVar[list[tuple[str, Any]]] = [("manage_server", "Can add, pause and remove servers")]

    def __str__(self) -> str:
        return f"{clean_line(self.url)} ({clean_line(self.device_id)})"

    @property
    def groups(self) -> list[str]:
        """The groups whose devices the server is told to trust; ``*`` stands for all devices."""
        return names_in(self.groups_json)


class Hub(models.Model):
    """A hub that this server follows. At the server. The MAC covers every column but the primary key, the lease, and the rate.

    A device is a hub if the sealed list gives it the permission ``revoke`` or ``enroll``; the row is made with its first message.
    """

    device_id = models.CharField(_("device ID"), max_length=32, unique=True)
    url = models.CharField(_("address"), max_length=500, blank=True)
    #: What was applied here, in the hub's numbers, and the newest serial that the hub has named.
    epoch = models.CharField(max_length=32, blank=True)
    applied = models.BigIntegerField(_("applied"), default=0)
    head = models.BigIntegerField(_("newest"), default=0)
    #: Epochs before that one, the latest first: a list with such an epoch was restored.
    past = models.CharField(max_length=255, blank=True)
    #: Unix seconds at the hub of its newest message. A message that is older may have a smaller head.
    issued_at = models.BigIntegerField(default=0)
    #: Epoch and serial of the newest signed list.
    list_epoch = models.CharField(max_length=32, blank=True)
    list_serial = models.BigIntegerField(default=0)
    last_contact_at = models.DateTimeField(_("last contact"), null=True, blank=True)
    #: Number and masked multiset hash of the entries of this hub.
    entries = models.BigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    mask = models.CharField(max_length=64, blank=True)
    mac = models.CharField(max_length=64)
    #: The changes of the current minute, against AMESH["HUB_MAX_PER_MINUTE"].
    minute_at = models.DateTimeField(null=True, blank=True)
    minute_count = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    lease_by = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = _("hub")
        verbose_name_plural = _("hubs")
        ordering: ClassVar[list[str]] = ["device_id"]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{clean_line(self.device_id)}"


class HubEntry(models.Model):
    """The last word of a hub about a key. At the server. It outlives the device: purging and pairing again do not remove it.

    The MAC covers every other column but the primary key.
    """

    #: Device ID of the hub.
    hub = models.CharField(_("hub"), max_length=32)
    #: SHA-256 of the public key, in base64url.
    key = models.CharField(_("hash of the key"), max_length=43)
    device_id = models.CharField(_("device ID"), max_length=32, db_index=True)
    #: Epoch and serial of the event that was applied last, its kind, and the time that it names.
    epoch = models.CharField(max_length=32)
    serial = models.BigIntegerField()
    event = models.CharField(_("event"), max_length=16)
    at = models.DateTimeField(_("at"))
    reason = models.TextField(_("reason"), blank=True)
    #: The suspension by this hub. Other events than lifting it leave it as it is.
    suspended = models.BooleanField(_("suspended"), default=False)
    suspended_until = models.DateTimeField(_("suspended until"), null=True, blank=True)
    #: True if this hub has added the device, so that it may change it.
    added = models.BooleanField(_("added by the hub"), default=False)
    #: What this hub has given last to a device that it has added: the expiry, and a JSON object of permissions. The row has the same,
    #: but for what people of this server have decided.
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    given_json = models.TextField(_("given"), default="{}")
    #: What people have decided: the expiry that the hub may not put off, and names of permissions and scopes that it may not change.
    expiry_limit = models.DateTimeField(_("latest expiry"), null=True, blank=True)
    decided_json = models.TextField(_("decided by people"), default="{}")
    #: A person trusted the key in spite of the hub: what the hub says up to this serial of this epoch, or up to this time in another
    #: epoch, does not count.
    allowed_epoch = models.CharField(max_length=32, blank=True)
    allowed_serial = models.BigIntegerField(null=True, blank=True)
    allowed_at = models.DateTimeField(_("trusted in spite of it"), null=True, blank=True)
    mac = models.CharField(max_length=64)

    class Meta:
        verbose_name = _("word of a hub")
        verbose_name_plural = _("words of hubs")
        ordering: ClassVar[list[str]] = ["hub", "id"]
        default_permissions = ("view",)
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["hub", "key"], name="amesh_one_word_of_a_hub")
        ]

    def __str__(self) -> str:
        return f"{self.event} {clean_line(self.device_id)}"


class Sweep(models.Model):
    """The one row that says when the sweeper ran last. At the hub."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    swept_at = models.DateTimeField(_("last run"))

    class Meta:
        verbose_name = _("sweep")
        verbose_name_plural = _("sweeps")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.swept_at}"

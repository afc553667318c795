"""The devices and their groups, the seal over them, and the unsealed activity of devices."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import Any, ClassVar, NoReturn, TypeVar

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from amesh_django.states import Standing, State, standing, state_of
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time
from authmesh.protocol.keys import decode_public_key

from .names import names_in

_M = TypeVar("_M", bound=models.Model)


class SealedModelError(TypeError):
    """Raised by every attempt to change sealed devices other than through ``amesh_django.allow_list.DatabaseAllowList``."""


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise SealedModelError(
        "Devices and their groups are sealed and cannot be changed this way; nothing was changed. Call a method of "
        "amesh_django.allow_list.DatabaseAllowList (add, revoke, set_permissions, update_permissions, map_user, purge), or run a "
        "command such as manage.py amesh_revoke."
    )


class SealedQuerySet(models.QuerySet[_M]):
    """A query set that can only read. Methods that would write without the seal raise SealedModelError."""

    create = acreate = bulk_create = abulk_create = _refuse
    update = aupdate = bulk_update = abulk_update = _refuse
    delete = adelete = _refuse
    get_or_create = aget_or_create = update_or_create = aupdate_or_create = _refuse


class DeviceQuerySet(SealedQuerySet["Device"]):
    """The devices, which can only be read."""


class Device(models.Model):
    """A device that is or was trusted. Every column is sealed. A revoked device keeps its row."""

    class Role(models.TextChoices):
        """The direction in which the device authenticates."""

        CONTROLLER = CONTROLLER, _("controller")
        TARGET = TARGET, _("target")

    class AddedBy(models.TextChoices):
        """The way in which the device came to be trusted."""

        HANDSHAKE = "handshake", _("handshake")
        MANUAL = "manual", _("manual")

    device_id = models.CharField(_("device ID"), max_length=32, unique=True)
    public_key = models.CharField(
        _("public key"), max_length=44, unique=True, help_text=_("P-256, compressed, base64.")
    )
    friendly_name = models.TextField(_("name"))
    role = models.CharField(
        _("role"),
        max_length=16,
        choices=Role.choices,
        help_text=_("A controller may authenticate to this server; a target may not."),
    )
    permissions_json = models.TextField(_("permissions"), default="{}")
    added_at = models.DateTimeField(_("added"))
    added_by = models.CharField(_("added by"), max_length=16, choices=AddedBy.choices)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("mapped user"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="amesh_devices",
        help_text=_("In REST framework views, the device acts as this Django user."),
    )
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True)
    revoked_by = models.CharField(_("revoked by"), max_length=150, blank=True)
    revoke_reason = models.TextField(_("reason"), blank=True)
    revision = models.BigIntegerField(_("revision"), db_index=True, editable=False)
    # The columns below were added after version 0.1. A row in which all of them are empty is hashed as it was then.
    pending_since = models.DateTimeField(_("waits for approval since"), null=True, blank=True)
    denied_at = models.DateTimeField(_("denied"), null=True, blank=True)
    denied_by = models.CharField(_("denied by"), max_length=150, blank=True, default="", db_default="")
    deny_reason = models.TextField(_("reason of the denial"), blank=True, default="", db_default="")
    suspended_at = models.DateTimeField(_("suspended"), null=True, blank=True)
    suspended_until = models.DateTimeField(_("suspended until"), null=True, blank=True)
    suspended_by = models.CharField(_("suspended by"), max_length=150, blank=True, default="", db_default="")
    suspend_reason = models.TextField(_("reason of the suspension"), blank=True, default="", db_default="")
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    groups_json = models.TextField(
        _("groups"), blank=True, default="", db_default="", help_text=_("JSON list of names; empty for none.")
    )
    # The suspension by a person of this server, while that of a hub lasts longer. It always has an end.
    kept_until = models.DateTimeField(_("also suspended until"), null=True, blank=True)
    kept_by = models.CharField(_("also suspended by"), max_length=150, blank=True, default="", db_default="")
    kept_reason = models.TextField(_("reason of that suspension"), blank=True, default="", db_default="")
    # The end of a key that was replaced, and the key that has replaced it, while a hub has revoked both.
    replaced_until = models.DateTimeField(_("was replaced, with an end"), null=True, blank=True)
    replaced_by = models.CharField(_("was replaced by"), max_length=32, blank=True, default="", db_default="")
    #: What people note about the device, for other people.
    note = models.TextField(_("note"), blank=True, default="", db_default="")
    #: When a person asked the device to replace its key. The device is told with the answers to its requests.
    rotation_requested_at = models.DateTimeField(_("asked to replace its key"), null=True, blank=True)

    objects = DeviceQuerySet.as_manager()

    class Meta:
        verbose_name = _("device")
        verbose_name_plural = _("devices")
        ordering: ClassVar[list[str]] = ["added_at", "id"]
        base_manager_name = "objects"
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["-added_at", "-id"], name="amesh_newest_first"),
            models.Index(
                fields=["pending_since", "id"], name="amesh_waiting", condition=models.Q(pending_since__isnull=False)
            ),
        ]
        default_permissions = ("view", "change")
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("revoke_device", "Can revoke device"),
            ("approve_device", "Can approve and deny device"),
            ("suspend_device", "Can suspend and lift device"),
            ("reinstate_device", "Can reinstate device"),
            ("grant_device", "Can grant permissions, scopes and groups to device"),
            ("enroll_device", "Can add device by hand"),
            ("pair_device", "Can pair device"),
        ]

    save = asave = delete = adelete = _refuse

    def __str__(self) -> str:
        return f"{clean(self.friendly_name)} ({clean_line(self.device_id)})"

    @property
    def permissions(self) -> dict[str, Any]:
        """Name → value, such as ``{"shell": True}``."""
        try:
            found = json.loads(self.permissions_json)
        except (TypeError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def groups(self) -> list[str]:
        """The names of the groups that the device is in."""
        return names_in(self.groups_json)

    @property
    def is_revoked(self) -> bool:
        """True if the device was revoked."""
        return self.revoked_at is not None

    @property
    def standing(self) -> Standing:
        """The columns that the state follows from."""
        return standing(
            revoked_at=self.revoked_at,
            revoked_by=self.revoked_by,
            revoke_reason=self.revoke_reason,
            denied_at=self.denied_at,
            suspended_at=self.suspended_at,
            suspended_until=self.suspended_until,
            expires_at=self.expires_at,
            pending_since=self.pending_since,
        )

    @property
    def state(self) -> State:
        """The state of the device now. Only ``active`` is accepted."""
        return state_of(self.standing, time.time())

    def to_entry(self) -> DeviceEntry:
        """Return the entry of the allow list, as in the sealed file.

        Raises:
            InvalidInput: the row was damaged outside Django.
        """
        return DeviceEntry(
            device_id=self.device_id,
            public_key=decode_public_key(self.public_key),
            friendly_name=self.friendly_name,
            added_at=format_time(self.added_at.astimezone(dt.UTC)),
            added_by=self.added_by,  # type: ignore[arg-type]
            role=self.role,  # type: ignore[arg-type]
            permissions=self.permissions,
        )


class DeviceGroup(models.Model):
    """A group of devices: each of its members has its scopes. The seal covers the groups, and each device names its own."""

    name = models.CharField(_("name"), max_length=64, unique=True)
    scopes_json = models.TextField(_("scopes"), help_text=_("JSON list of names."))

    objects = SealedQuerySet.as_manager()

    class Meta:
        verbose_name = _("group of devices")
        verbose_name_plural = _("groups of devices")
        ordering: ClassVar[list[str]] = ["name"]
        base_manager_name = "objects"

    save = asave = delete = adelete = _refuse

    def __str__(self) -> str:
        return f"{clean_line(self.name)}"

    @property
    def scopes(self) -> list[str]:
        """The scopes that each member has."""
        return names_in(self.scopes_json)


class AllowListSeal(models.Model):
    """The one row that seals all devices and groups (design.md, decision 3)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    revision = models.BigIntegerField()
    digest = models.CharField(max_length=64)
    count = models.BigIntegerField()
    controllers = models.BigIntegerField()
    mask = models.CharField(max_length=64)
    hmac = models.CharField(max_length=64)
    #: The random name of this list, and those of the lists that it continues, the latest first. Empty in a list of version 0.1.
    epoch = models.CharField(max_length=32, default="", db_default="")
    continues = models.CharField(max_length=255, default="", db_default="")
    #: Digest of all groups. Empty if there is none, as in a list of version 0.1.
    groups = models.CharField(max_length=64, default="", db_default="")
    #: The end of the audit log as of the newest change: number and link of its event. 0 and empty in a list of version 0.1.
    audit_seq = models.BigIntegerField(default=0, db_default=0)
    audit_link = models.CharField(max_length=64, default="", db_default="")
    #: Incremented by database triggers when a device row changes, and set to 0 by each sealed change. A hint, not sealed.
    touched = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        verbose_name = _("seal")
        verbose_name_plural = _("seals")
        default_permissions = ()

    def __str__(self) -> str:
        return f"revision {self.revision}"


class DeviceActivity(models.Model):
    """The last accepted request of a device. Requests change it, so it is not sealed and has its own table."""

    device = models.OneToOneField(Device, primary_key=True, on_delete=models.CASCADE, related_name="activity")
    last_seen_at = models.DateTimeField(_("last seen"))
    address = models.CharField(_("address"), max_length=45, blank=True, default="", db_default="")
    #: The route of the view, such as ``orders/<int:pk>/``: a path may hold something secret.
    route = models.CharField(_("path"), max_length=200, blank=True, default="", db_default="")
    client = models.CharField(_("client"), max_length=100, blank=True, default="", db_default="")

    class Meta:
        verbose_name = _("activity")
        verbose_name_plural = _("activities")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.last_seen_at}"

"""The enrollment tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .names import names_in


class EnrollmentToken(models.Model):
    """A token with which machines enroll themselves here. The MAC covers every other column but the primary key.

    The secret of the token is not stored: it is derived from the key of the seal.
    """

    jti = models.CharField(_("number"), max_length=35, unique=True)
    name = models.TextField(_("name"))
    scopes_json = models.TextField(_("scopes"), default="[]")
    groups_json = models.TextField(_("groups"), default="[]")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("mapped user"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text=_("The machines that enroll act as this Django user."),
    )
    max_uses = models.PositiveIntegerField(_("uses allowed"), default=1)
    uses = models.PositiveIntegerField(_("uses"), default=0)
    created_at = models.DateTimeField(_("created"))
    created_by = models.CharField(_("created by"), max_length=150, blank=True)
    expires_at = models.DateTimeField(_("expires"))
    approved = models.BooleanField(_("approved"), default=False)
    withdrawn_at = models.DateTimeField(_("withdrawn"), null=True, blank=True)
    device_seconds = models.PositiveIntegerField(
        _("life of the keys"),
        null=True,
        blank=True,
        help_text=_("Seconds after which the key of a machine expires; empty for no such limit."),
    )
    #: Names the secret of the seal and the identity that the token was made with. With others, it can no longer be used.
    key_id = models.CharField(max_length=16)
    mac = models.CharField(max_length=64)

    class Meta:
        verbose_name = _("enrollment token")
        verbose_name_plural = _("enrollment tokens")
        ordering: ClassVar[list[str]] = ["-created_at", "-id"]
        default_permissions = ("view", "add")
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("withdraw_enrollmenttoken", "Can withdraw enrollment token"),
        ]

    def __str__(self) -> str:
        return f"{self.jti}"

    @property
    def scopes(self) -> list[str]:
        """The scopes that each machine gets."""
        return names_in(self.scopes_json)

    @property
    def groups(self) -> list[str]:
        """The groups that each machine joins."""
        return names_in(self.groups_json)

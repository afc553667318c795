"""The mail about devices that wait for approval."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class ApprovalMail(models.Model):
    """The one row that says when the last mail was begun, and what the last mail that was sent has told."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    tried_at = models.DateTimeField(_("last try"), null=True, blank=True)
    #: Revision of the list up to which devices were told of.
    told = models.BigIntegerField(default=0)

    class Meta:
        verbose_name = _("mail about approvals")
        verbose_name_plural = _("mails about approvals")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.tried_at}"

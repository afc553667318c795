"""The table of counted requests: how often each device was accepted or refused, by hour and by day."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from authmesh.protocol.display import clean_line


class RequestCount(models.Model):
    """Signed requests of one hour or one day that had the same device, view, and result. Requests change it, so it is not sealed."""

    class Period(models.TextChoices):
        """Time that a row covers."""

        HOUR = "hour", _("hour")
        DAY = "day", _("day")

    period = models.CharField(_("period"), max_length=4, choices=Period.choices)
    #: Its beginning, in UTC.
    start = models.DateTimeField(_("beginning"))
    #: Empty in a row that counts all devices, and if the device is not in the list.
    device_id = models.CharField(_("device ID"), max_length=32, blank=True)
    #: The route of the view, such as ``orders/<int:pk>/``: a path may hold something secret. Empty in a row that counts all views.
    route = models.CharField(_("path"), max_length=200, blank=True)
    #: Why the requests were refused, as in the log. Empty if they were accepted.
    reason = models.CharField(_("reason"), max_length=64, blank=True)
    times = models.PositiveBigIntegerField(_("times"), default=0)

    class Meta:
        verbose_name = _("count of requests")
        verbose_name_plural = _("counts of requests")
        default_permissions = ()
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["period", "device_id", "start", "route", "reason"], name="amesh_one_count_of_a_period"
            )
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["period", "start"], name="amesh_counts_by_time")]

    def __str__(self) -> str:
        return f"{clean_line(self.device_id)} {self.start}: {self.times}"

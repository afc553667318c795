"""The filters of the list of devices."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device


class StateFilter(admin.SimpleListFilter):
    """Filters by state: trusted or revoked."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("trusted", _("trusted")), ("revoked", _("revoked"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        if self.value() in ("trusted", "revoked"):
            return queryset.filter(revoked_at__isnull=self.value() == "trusted")
        return queryset


class UserFilter(admin.SimpleListFilter):
    """Filters by the mapped user: has one or none."""

    title = _("mapped user")
    parameter_name = "mapped"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("has one")), ("no", _("has none"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        if self.value() in ("yes", "no"):
            return queryset.filter(user__isnull=self.value() == "no")
        return queryset


_PERIODS = {"day": 1, "week": 7, "month": 30}


class LastSeenFilter(admin.SimpleListFilter):
    """Filters by the time when the device was last authenticated."""

    title = _("last seen")
    parameter_name = "seen"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("day", _("in the last 24 hours")),
            ("week", _("in the last 7 days")),
            ("month", _("in the last 30 days")),
            ("longer", _("longer ago")),
            ("never", _("never")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        value = self.value()
        if value in _PERIODS:
            since = timezone.now() - dt.timedelta(days=_PERIODS[value])
            return queryset.filter(activity__last_seen_at__gte=since)
        if value == "longer":
            since = timezone.now() - dt.timedelta(days=_PERIODS["month"])
            return queryset.filter(activity__last_seen_at__lt=since)
        if value == "never":
            return queryset.filter(activity__last_seen_at__isnull=True)
        return queryset

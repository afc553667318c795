"""The search and the filters of the list of devices."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import smart_split, unescape_string_literal
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, ROTATED, SUSPENDED, State

from .. import shown
from ..selecting import chosen

# Every public key starts with one of few characters: a short word must not find keys.
_MIN_KEY_PREFIX = 6


def search(term: str) -> Q:
    """Return the condition for a search: each word is in the name or username, or is the start of the device ID or public key.

    Args:
        term: words, or texts in quotes; a key in base64 or base64url.
    """
    found = Q()
    for word in smart_split(term):
        if word[0] in "\"'" and word[0] == word[-1] and len(word) > 1:
            word = unescape_string_literal(word)
        one = Q(friendly_name__icontains=word) | Q(device_id__startswith=word)
        one |= Q(**{f"user__{get_user_model().USERNAME_FIELD}__icontains": word})
        if len(word) >= _MIN_KEY_PREFIX:
            one |= Q(public_key__startswith=word.replace("-", "+").replace("_", "/"))
        found &= one
    return found


def in_state(state: State, now: dt.datetime) -> Q:
    """Return the condition for a state of devices, as :func:`amesh_django.states.state_of` decides it."""
    replaced = Q(revoke_reason=ROTATED, revoked_by__startswith="am_", revoked_at__gt=now)  # valid until then
    conditions = {
        REVOKED: Q(revoked_at__isnull=False) & ~replaced,
        DENIED: Q(denied_at__isnull=False),
        SUSPENDED: Q(suspended_at__isnull=False) & (Q(suspended_until__isnull=True) | Q(suspended_until__gt=now)),
        EXPIRED: Q(expires_at__lte=now),
        PENDING: Q(pending_since__isnull=False),
        ACTIVE: Q(),
    }
    found = Q()
    for name, condition in conditions.items():  # the first of them that holds is the state
        if name == state:
            return found & condition
        found &= ~condition
    raise ValueError(state)


#: Days within which a device that expires needs attention.
EXPIRING = (7, 30)
#: Days without an accepted request after which a device is quiet.
QUIET_DAYS = 30


def expiring(days: int, now: dt.datetime) -> Q:
    """Return the condition for trusted devices that expire within some days."""
    return Q(expires_at__lte=now + dt.timedelta(days=days)) & in_state(ACTIVE, now)


def quiet(now: dt.datetime) -> Q:
    """Return the condition for trusted controllers without an accepted request in the last days, but for those that are new."""
    since = now - dt.timedelta(days=QUIET_DAYS)
    silent = Q(activity__last_seen_at__lt=since) | Q(activity__isnull=True, added_at__lt=since)
    return Q(role=Device.Role.CONTROLLER) & silent & in_state(ACTIVE, now)


class StateFilter(admin.SimpleListFilter):
    """Filters by state."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("trusted" if name == ACTIVE else name, label) for name, label in shown.STATE_NAMES.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        value: Any = ACTIVE if self.value() == "trusted" else self.value()
        if value not in shown.STATE_NAMES:
            return queryset
        now = timezone.now()
        return chosen(request, queryset, in_state(value, now), lambda known: known.state(now.timestamp()) == value)


class RoleFilter(admin.SimpleListFilter):
    """Filters by role."""

    title = _("role")
    parameter_name = "role__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(Device.Role.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        value = self.value()
        if value not in Device.Role.values:
            return queryset
        return chosen(request, queryset, Q(role=value), lambda known: known.role == value)


class UserFilter(admin.SimpleListFilter):
    """Filters by the mapped user: has one or none."""

    title = _("mapped user")
    parameter_name = "mapped"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("has one")), ("no", _("has none"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        if self.value() in ("yes", "no"):
            has_none = self.value() == "no"
            none = Q(user__isnull=has_none)
            return chosen(request, queryset, none, lambda known: (known.user_id is None) == has_none)
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
            ("quiet", _("trusted, but quiet")),
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
        if value == "quiet":
            return queryset.filter(quiet(timezone.now()))
        return queryset


class ExpiryFilter(admin.SimpleListFilter):
    """Filters trusted devices by the time until they expire."""

    title = _("expiry")
    parameter_name = "expires"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("7", _("within 7 days")), ("30", _("within 30 days")), ("never", _("never"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        value, now = self.value(), timezone.now()
        for days in EXPIRING:
            if value == str(days):
                return queryset.filter(expiring(days, now))
        if value == "never":
            return queryset.filter(Q(expires_at__isnull=True) & in_state(ACTIVE, now))
        return queryset

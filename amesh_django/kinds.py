"""The kinds of events in the audit log."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _


class EventKind(models.TextChoices):
    """What happened: first what the allow list has, then the rest."""

    TRUST = "trust", _("trusted")
    APPROVE = "approve", _("approved")
    DENY = "deny", _("denied")
    CHANGE = "change", _("changed")
    GRANT = "grant", _("permissions changed")
    SCOPE = "scope", _("scopes changed")
    GROUP = "group", _("groups changed")
    MAP = "map", _("mapped to a user")
    EXPIRE = "expire", _("expiry changed")
    SUSPEND = "suspend", _("suspended")
    LIFT = "lift", _("suspension lifted")
    REVOKE = "revoke", _("revoked")
    REINSTATE = "reinstate", _("reinstated")
    ROTATE = "rotate", _("key replaced")
    PURGE = "purge", _("purged")
    BEGIN = "begin", _("log begun")
    RESEAL = "reseal", _("list resealed")
    REKEY = "rekey", _("list rekeyed")
    ARCHIVE = "archive", _("older events archived")
    TOKEN_MADE = "token_made", _("token made")
    TOKEN_USED = "token_used", _("token used")
    TOKEN_WITHDRAWN = "token_withdrawn", _("token withdrawn")
    PAIRING_BEGUN = "pairing_begun", _("pairing begun")
    PAIRING_FAILED = "pairing_failed", _("pairing failed")
    EXPORT = "export", _("exported")
    VERIFIED = "verified", _("log verified")
    CHECKPOINT = "checkpoint", _("checkpoint of the log")
    SETTING = "setting", _("setting changed")
    DELIVERY = "delivery", _("delivered to a server")
    DELIVERY_FAILED = "delivery_failed", _("delivery failed")
    FEED_REFUSED = "feed_refused", _("message of a hub refused")
    HUB_HELD = "hub_held", _("changes of a hub held back")
    HUB_FORGOTTEN = "hub_forgotten", _("words of a hub forgotten")
    SERVER = "server", _("server of the fleet changed")
    REFUSAL = "refusal", _("request refused")


def event_kinds() -> list[tuple[str, Any]]:
    """Return the kinds of events. A function, so that a new kind needs no migration."""
    return list(EventKind.choices)

"""Telling an event as a sentence: which of the sentences, and what its placeholders stand for.

The texts of an event are those of devices, hubs, and people: they are made harmless. Nothing of an event that amesh did not write is told
but the kind of event that it claims to be.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from amesh_django.audit.reading import UNREADABLE_KIND
from amesh_django.models import AuditEvent
from amesh_django.trust.chain import data_of
from authmesh.protocol.display import clean, clean_line

from .. import shown
from ..genuine import kind_of
from .sentences import DAMAGED, FORGED, OTHER, SENTENCES

Kind = AuditEvent.Kind
#: Maximum number of characters of a reason, or of another long text, within a sentence. The page of the event shows all of it.
MAX_TEXT: Final = 300
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")
#: Kinds whose subject is the name of the device.
_NAMED: Final = frozenset(
    {
        *(Kind.TRUST, Kind.APPROVE, Kind.DENY, Kind.CHANGE, Kind.GRANT, Kind.SCOPE, Kind.GROUP, Kind.MAP, Kind.EXPIRE),
        *(Kind.SUSPEND, Kind.LIFT, Kind.REVOKE, Kind.REINSTATE, Kind.ROTATE, Kind.PURGE),
    }
)
_ABOUT_SERVER: Final = frozenset({Kind.SERVER, Kind.DELIVERY, Kind.DELIVERY_FAILED})
#: Kinds whose reason is a code, and not a text.
_WITH_CODE: Final = frozenset({Kind.PAIRING_FAILED, Kind.FEED_REFUSED, Kind.REFUSAL})

#: Kind → the time in the row of its device, and the number in its data, that its sentence has.
_TIMES: Final[dict[str, str]] = {
    Kind.EXPIRE: "expires_at",
    Kind.SUSPEND: "suspended_until",
    Kind.ROTATE: "revoked_at",
}
_COUNTS: Final[dict[str, str]] = {Kind.VERIFIED: "events", Kind.REFUSAL: "times", Kind.HUB_HELD: "limit"}


@dataclass(frozen=True, slots=True)
class Told:
    """An event in words.

    Attributes:
        sentence: the sentence, with placeholders.
        values: placeholder → what it stands for, made harmless.
        links: placeholder → kind of what it stands for (``device``, ``server``, or ``token``), and its device ID or number.
        is_warning: True if a person should look at the event.
    """

    sentence: str
    values: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_warning: bool = False

    @property
    def text(self) -> str:
        """The sentence as plain text."""
        return _PLACEHOLDER.sub(lambda match: self.values.get(match[1], match[0]), self.sentence)

    def html(self, pages: Mapping[tuple[str, str], str]) -> SafeString:
        """Return the sentence as HTML: each name is isolated from the direction of the text around it, and is a link if it has a page.

        Args:
            pages: kind, and device ID or number → address of its page.
        """
        parts = {"": SafeString()}  # format_html wants one
        for name, value in self.values.items():
            url = pages.get(self.links.get(name, ("", "")), "")
            inner = format_html("<bdi>{}</bdi>", value)
            parts[name] = format_html('<a href="{}">{}</a>', url, inner) if url else inner
        sentence = self.sentence.replace("{", "{{").replace("}", "}}")
        return format_html(_PLACEHOLDER.sub(lambda match: f"{{{match[1]}}}", sentence), **parts)


def told(event: AuditEvent, genuine: bool | None, names: Mapping[str, str] | None = None) -> Told:
    """Return an event in words.

    Args:
        event: an event, read or readable.
        genuine: as :func:`~amesh_django.admin.genuine.is_genuine` returns it.
        names: device ID → name, for events that do not have the name of their device.
    """
    if event.kind == UNREADABLE_KIND:
        return Told(str(DAMAGED), is_warning=True)
    if genuine is False:
        return Told(str(FORGED), {"kind": kind_of(event)}, is_warning=True)
    data, author = data_of(event), _short(event.actor)
    variant = _variant(event, data)
    key = f"{event.kind} {variant}" if variant and f"{event.kind} {variant}" in SENTENCES else event.kind
    why = _short(event.reason_code if event.kind in _WITH_CODE else event.text)
    form = SENTENCES.get(key, OTHER).form(has_author=bool(author), has_reason=bool(why))
    values, links = _values(event, data, names or {})
    values |= {"by": author, "why": why or shown.NOTHING, "kind": kind_of(event)}
    is_warning = event.kind == Kind.VERIFIED and bool(event.text)
    return Told(str(form), values, links, is_warning)


def _variant(event: AuditEvent, data: Mapping[str, Any]) -> str:
    """Return what decides about the sentence of an event beside its kind; empty if nothing does."""
    row = _row(data)
    match event.kind:
        case Kind.TRUST:
            pending = "pending" if row.get("pending_since") else ""
            return f"token {pending}".strip() if event.actor_type == "token" else pending
        case Kind.GROUP:
            return "" if event.device_id else "removed" if data.get("removed") else "put"
        case Kind.MAP:
            return "removed" if row and not row.get("user_id") else ""
        case Kind.EXPIRE:
            return "removed" if not row.get("expires_at") else ""
        case Kind.SUSPEND:
            return "until" if row.get("suspended_until") else ""
        case Kind.ROTATE:
            return "old" if row.get("revoked_at") else ""
        case Kind.RESEAL:
            return "more" if "devices" not in data else ""
        case Kind.ARCHIVE:
            return "more" if "to" not in data else ""
        case Kind.EXPORT:
            return event.subject
        case Kind.VERIFIED:
            return "after" if data.get("after") else ""
        case Kind.SETTING:
            return "" if event.subject else "first"
        case Kind.DELIVERY:
            return "list" if data.get("list") else ""
        case Kind.SERVER:
            return str(data.get("change", ""))
        case Kind.REFUSAL:
            return "address" if event.address else ""
    return ""


def _values(
    event: AuditEvent, data: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return what the placeholders of an event stand for, and what they lead to."""
    row, about, subject = _row(data), _short(event.device_id), clean(event.subject) if event.subject else ""
    name = subject if event.kind in _NAMED else clean(names[event.device_id]) if event.device_id in names else ""
    hub = _text(data.get("hub")) if event.kind == Kind.HUB_FORGOTTEN else event.device_id
    values = {
        "device": name or about or _("an unknown device"),
        "name": _short(event.subject) or shown.NOTHING,
        "server": (name or _short(event.subject)) if event.kind in _ABOUT_SERVER else "",
        "hub": (clean(names[hub]) if hub in names else _short(hub)) or shown.NOTHING,
        "token": subject or shown.NOTHING,
        "address": _short(event.address) or shown.NOTHING,
        "scopes": _short(", ".join(_list(data.get("scopes")))) or shown.NOTHING,
        "until": _until(event, data, row),
        "count": _text(data.get(_COUNTS.get(event.kind, "devices"))),
        "first": _text(data.get("from")),
        "last": _text(data.get("seq" if event.kind == Kind.CHECKPOINT else "to")),
        "after": _text(data.get("after")),
        "file": _text(data.get("file")),
    }
    links = {
        "device": ("device", event.device_id),
        "hub": ("device", hub),
        "server": ("server", event.device_id),
        "token": ("token", _text(data.get("jti"))),
    }
    return values, links


def _until(event: AuditEvent, data: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if event.kind == Kind.DELIVERY:
        return _text(data.get("until"))
    column = _TIMES.get(event.kind, "")
    with suppress(ValueError, TypeError):
        return shown.full_time(dt.datetime.fromisoformat(str(row.get(column, ""))))
    return shown.NOTHING


def _row(data: Mapping[str, Any]) -> Mapping[str, Any]:
    found = data.get("row")
    return found if isinstance(found, dict) else {}


def _list(found: Any) -> list[str]:
    return [str(one) for one in found] if isinstance(found, list) else []


def _text(value: Any) -> str:
    """Return a value of the data as a text; a dash if it is neither a text nor a number."""
    return _short(str(value)) if isinstance(value, str | int) else shown.NOTHING


def _short(text: str) -> str:
    found = " ".join(clean_line(text).split())
    return found if len(found) <= MAX_TEXT else f"{found[: MAX_TEXT - 1]}…"

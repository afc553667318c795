"""Events in the form of the Open Cybersecurity Schema Framework (schema.ocsf.io), which programs for security events read."""

from __future__ import annotations

from typing import Any, Final

from amesh_django.models import AuditEvent
from amesh_django.trust.chain import data_of

from .reading import UNREADABLE_KIND

#: Version of the schema whose classes are used.
SCHEMA_VERSION: Final = "1.6.0"
_ENTITY, _ACCESS, _AUTHENTICATION, _API = 3004, 3005, 3002, 6003
_INFORMATIONAL, _MEDIUM = 1, 3
_SUCCESS, _FAILURE = 1, 2

#: Kind of an event → class and activity. Any other kind is an API activity of the kind "update".
_CLASSES: Final = {
    "trust": (_ENTITY, 6),  # enroll
    "approve": (_ENTITY, 8),  # enable
    "reinstate": (_ENTITY, 8),
    "deny": (_ENTITY, 9),  # disable
    "revoke": (_ENTITY, 9),
    "suspend": (_ENTITY, 12),
    "lift": (_ENTITY, 13),  # resume
    "change": (_ENTITY, 3),  # update
    "map": (_ENTITY, 3),
    "expire": (_ENTITY, 3),
    "rotate": (_ENTITY, 3),
    "purge": (_ENTITY, 4),  # delete
    "grant": (_ACCESS, 1),  # assign privileges
    "scope": (_ACCESS, 1),
    "group": (_ACCESS, 1),
    "refusal": (_AUTHENTICATION, 1),  # logon
    "token_made": (_API, 1),  # create
    "token_withdrawn": (_API, 4),
    "export": (_API, 2),  # read
    "verified": (_API, 2),
    "checkpoint": (_API, 1),
    "archive": (_API, 4),
    "hub_forgotten": (_API, 4),
}


def as_ocsf(event: AuditEvent) -> dict[str, Any]:
    """Return an event as an object of the schema. The columns themselves are in ``unmapped``, so nothing is lost."""
    kind, data = event.kind, data_of(event)
    class_uid, activity = _CLASSES.get(kind, (_API, 3))
    has_failed = kind in ("refusal", "pairing_failed")
    found: dict[str, Any] = {
        "activity_id": activity,
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "type_uid": class_uid * 100 + activity,
        "time": int(event.at.timestamp() * 1000) if kind != UNREADABLE_KIND else 0,
        "severity_id": _MEDIUM if has_failed or kind in ("reseal", "rekey") else _INFORMATIONAL,
        "status_id": _FAILURE if has_failed else _SUCCESS,
        "metadata": {
            "version": SCHEMA_VERSION,
            "uid": event.mac,
            "sequence": event.seq,
            "event_code": kind,
            "product": {"name": "amesh-django", "vendor_name": "amesh"},
        },
        "actor": {"user": {"name": event.actor or "unknown", "type": event.actor_type or "unknown"}},
        "unmapped": {"revision": event.revision, "data": data},
    }
    if event.reason_code or event.text:
        found["status_detail"] = event.reason_code or event.text
    if event.address or class_uid == _API:
        found["src_endpoint"] = {"ip": event.address} if event.address else {"name": "local"}
    about = {
        "uid": event.device_id or event.subject or "unknown",
        "name": event.subject or event.device_id or "unknown",
    }
    if class_uid == _ENTITY:
        found["entity"] = {**about, "type": "device"}
        found["comment"] = event.text
    elif class_uid == _ACCESS:
        found["user"] = about
        found["privileges"] = _privileges(data)
    elif class_uid == _AUTHENTICATION:
        found["user"] = about
        found["service"] = {"name": "amesh"}
        found["count"] = data.get("times", 1)
    else:
        found["api"] = {"operation": kind}
        found["resources"] = [about]
    return found


def _privileges(data: dict[str, Any]) -> list[str]:
    """Return the permissions and groups of a device, or the scopes of a group, as texts."""
    row = data.get("row", {})
    texts = (row.get("permissions_json", ""), row.get("groups_json", ""))
    return [*data.get("scopes", []), *(text for text in texts if text and text != "{}")]

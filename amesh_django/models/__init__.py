"""The tables.

Devices, their groups and the seal; the audit log; enrollment tokens; mails about approvals; pairings that people began in the admin; counted requests; and what
hubs and servers know of each other.
"""

from .approvals import ApprovalMail
from .audit import AuditEvent, AuditSeal
from .devices import (
    AllowListSeal,
    Device,
    DeviceActivity,
    DeviceGroup,
    DeviceQuerySet,
    SealedModelError,
    SealedQuerySet,
)
from .fleet import Hub, HubEntry, Server, Sweep
from .pairing import PairingSession
from .tokens import EnrollmentToken
from .usage import RequestCount

__all__ = [
    "AllowListSeal",
    "ApprovalMail",
    "AuditEvent",
    "AuditSeal",
    "Device",
    "DeviceActivity",
    "DeviceGroup",
    "DeviceQuerySet",
    "EnrollmentToken",
    "Hub",
    "HubEntry",
    "PairingSession",
    "RequestCount",
    "SealedModelError",
    "SealedQuerySet",
    "Server",
    "Sweep",
]

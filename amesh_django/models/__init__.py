"""The tables: devices, their groups and the seal; the audit log; enrollment tokens; and what hubs and servers know of each other."""

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
from .tokens import EnrollmentToken

__all__ = [
    "AllowListSeal",
    "AuditEvent",
    "AuditSeal",
    "Device",
    "DeviceActivity",
    "DeviceGroup",
    "DeviceQuerySet",
    "EnrollmentToken",
    "Hub",
    "HubEntry",
    "SealedModelError",
    "SealedQuerySet",
    "Server",
    "Sweep",
]

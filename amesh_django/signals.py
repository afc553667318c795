"""Signals of the app (``django.dispatch.Signal``). They are sent with ``send_robust``: a receiver that fails is logged by Django, no more.

``request_accepted``, ``request_refused``, and ``request_routed`` are sent while the request waits, so their receivers must be fast.
All others but ``seal_broken``, ``list_changed``, and ``changes_acknowledged`` are sent once the change is committed, with the arguments ``event`` (AuditEvent), ``device_id``, ``name``
(name of the device or token), ``by`` (who did it), and ``reason`` (in words; may be empty). The sender is always None.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.dispatch import Signal

__all__ = [
    "changes_acknowledged",
    "device_approved",
    "device_denied",
    "device_lifted",
    "device_reinstated",
    "device_revoked",
    "device_rotated",
    "device_suspended",
    "device_trusted",
    "list_changed",
    "permissions_changed",
    "request_accepted",
    "request_refused",
    "request_routed",
    "seal_broken",
    "token_created",
    "token_used",
]

#: A signed request was accepted. Arguments: ``request`` (HttpRequest), ``device`` (VerifiedDevice), and ``seconds`` (float), how
#: long the verification took.
request_accepted = Signal()

#: The view of an accepted request is known. Arguments: ``request`` (HttpRequest), ``device`` (VerifiedDevice), and ``route`` (str), such as
#: ``orders/<int:pk>/``; empty if no view has the path. Sent once for each request, after its scopes and its user were checked, too: before
#: the view, or after it if the middleware has accepted the request.
request_routed = Signal()

#: A request was rejected. Arguments: ``request`` (HttpRequest) and ``error`` (RequestError), whose ``reason`` is the stable word in
#: the log, such as ``replay_detected``, and whose ``device_id`` and ``device_name`` are None if the device is not known.
request_refused = Signal()

#: A device was trusted: for the first time, again, or with another name, role, or permissions.
device_trusted = Signal()

#: A device that waited was approved.
device_approved = Signal()

#: A device that waited was denied.
device_denied = Signal()

#: A device was suspended.
device_suspended = Signal()

#: The suspension of a device was lifted.
device_lifted = Signal()

#: A device was revoked.
device_revoked = Signal()

#: The revocation of a device was undone.
device_reinstated = Signal()

#: The key of a device was replaced. Sent for the old key and for the new one.
device_rotated = Signal()

#: The permissions, scopes, or groups of a device were changed.
permissions_changed = Signal()

#: The allow list was changed. Sent once for each change that is committed, after the signals for its events. Argument: ``events`` (list of
#: AuditEvent).
list_changed = Signal()

#: At a hub: a server acknowledged changes. Arguments: ``server`` (its row), and ``seconds`` since the oldest of these changes.
changes_acknowledged = Signal()

#: An enrollment token was made.
token_created = Signal()

#: A machine enrolled with an enrollment token. ``device_id`` is that of the machine, ``name`` that of the token.
token_used = Signal()

#: The allow list was found not to match its seal, or to be an old one: all signed requests are rejected. Sent once by each process,
#: and again if it happens again. Argument: ``error`` (AllowListIntegrityFailure), whose ``reason`` is the word in the log.
seal_broken = Signal()

#: Kind of an event of the audit log → the signal for it.
EVENT_SIGNALS: Mapping[str, Signal] = {
    "trust": device_trusted,
    "approve": device_approved,
    "deny": device_denied,
    "suspend": device_suspended,
    "lift": device_lifted,
    "revoke": device_revoked,
    "reinstate": device_reinstated,
    "rotate": device_rotated,
    "grant": permissions_changed,
    "scope": permissions_changed,
    "group": permissions_changed,
    "token_made": token_created,
    "token_used": token_used,
}

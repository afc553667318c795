"""The table of what people decide about devices: who may, about which devices, what to fill in, and which method does it.

:mod:`.acting` has the one page that asks and does. Revoking has a page of its own, because it must work in a list that is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.states import REVOKED, SUSPENDED
from authmesh.protocol.allow_list import CONTROLLER

from .. import shown
from . import forms


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that a person decides about devices.

    Attributes:
        name: the end of the address of its page.
        permission: the permission of Django that it needs, in addition to viewing devices.
        label: the button.
        title: the heading of the page for one device, with ``%(device)s``.
        effect: what will happen, in sentences.
        done: what has happened, with ``%(devices)s``.
        form: what to fill in.
        fits: returns True if it can be decided about a device now.
        do: does it: the list, the device IDs, and the cleaned form. All of the devices are changed, or none.
        title_of_many: the heading for several devices, with ``%(count)d``; empty if it is decided about one device alone.
        submit: the button that does it. Defaults to the heading.
        is_dangerous: True if devices that are accepted are not accepted afterward.
    """

    name: str
    permission: str
    label: str | Promise
    title: str | Promise
    effect: str | Promise
    done: str | Promise
    form: type[forms.VerbForm]
    fits: Callable[[Device], bool]
    do: Callable[[DatabaseAllowList, list[str], Mapping[str, Any]], object]
    title_of_many: str | Promise = ""
    submit: str | Promise = ""
    is_dangerous: bool = False


def _is_listed(device: Device) -> bool:
    """Return True if the device is neither revoked, nor its key replaced."""
    return device.revoked_at is None


def _may_call(device: Device) -> bool:
    return _is_listed(device) and device.role == CONTROLLER and device.denied_at is None


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "approve",
            "approve_device",
            _("Approve"),
            _("Approve %(device)s"),
            _(
                "Its requests are accepted from now on, unless it is suspended or has expired. Compare the device ID with the one that the "
                "device shows."
            ),
            _("Approved: %(devices)s."),
            forms.VerbForm,
            lambda device: _is_listed(device) and (device.pending_since is not None or device.denied_at is not None),
            # A denial that nobody has seen on this page stays.
            lambda trusted, ids, values: trusted.approve(ids, waiting_only=not values["was_denied"]),
            title_of_many=_("Approve %(count)d devices"),
        ),
        Verb(
            "deny",
            "approve_device",
            _("Deny"),
            _("Deny %(device)s"),
            _(
                "Its requests stay rejected. The row is kept, and no pairing, token, or import brings the key back. To accept the device "
                "after all, approve it."
            ),
            _("Denied: %(devices)s."),
            forms.ReasonForm,
            lambda device: _is_listed(device) and device.pending_since is not None and device.denied_at is None,
            lambda trusted, ids, values: trusted.deny(ids, reason=values["reason"]),
            title_of_many=_("Deny %(count)d devices"),
            is_dangerous=True,
        ),
        Verb(
            "suspend",
            "suspend_device",
            _("Suspend"),
            _("Suspend %(device)s"),
            _("All further requests are rejected until the suspension ends. The device keeps all that it may do."),
            _("Suspended: %(devices)s."),
            forms.SuspendForm,
            _may_call,
            lambda trusted, ids, values: trusted.suspend(ids, until=values["until"], reason=values["reason"]),
            title_of_many=_("Suspend %(count)d devices"),
            is_dangerous=True,
        ),
        Verb(
            "lift",
            "suspend_device",
            _("Lift the suspension"),
            _("Lift the suspension of %(device)s"),
            _(
                "Its requests are accepted again, with all that it may do. If a person and a hub have suspended the device, this lifts what "
                "the person decided."
            ),
            _("Lifted: %(devices)s."),
            forms.VerbForm,
            lambda device: _is_listed(device) and shown.state_of(device) == SUSPENDED,
            lambda trusted, ids, values: trusted.lift(ids),
            title_of_many=_("Lift the suspension of %(count)d devices"),
        ),
        Verb(
            "reinstate",
            "reinstate_device",
            _("Reinstate"),
            _("Reinstate %(device)s"),
            _(
                "Its key is trusted again, with the role, permissions, scopes, and groups of before. It no longer acts as a Django user. "
                "Reinstate only a device that was revoked by mistake: if its key may have been stolen, let it make a new one."
            ),
            _("Reinstated: %(devices)s."),
            forms.ReinstateForm,
            lambda device: shown.state_of(device) == REVOKED,
            lambda trusted, ids, values: trusted.reinstate(ids[0]),
        ),
        Verb(
            "grant",
            "grant_device",
            _("Permissions, scopes, groups"),
            _("What %(device)s may do"),
            _("It has what you choose from its next request on. What you do not choose is taken from it."),
            _("Changed: %(devices)s."),
            forms.GrantForm,
            _may_call,
            lambda trusted, ids, values: trusted.grant(ids, values["given"], taken=values["taken"]),
            submit=_("Save"),
        ),
        Verb(
            "expire",
            "grant_device",
            _("Expiry"),
            _("Expiry of %(device)s"),
            _(
                "A device whose key has expired can get a later time here. With a new key, the device gets the same life again."
            ),
            _("Expiry changed: %(devices)s."),
            forms.ExpiryForm,
            _may_call,
            lambda trusted, ids, values: trusted.set_expiry(ids, values["expires_at"]),
            submit=_("Save"),
        ),
        Verb(
            "rename",
            "change_device",
            _("Rename"),
            _("Rename %(device)s"),
            _("The device itself keeps its name. If it pairs again, the name that it gives itself is stored."),
            _("Renamed: %(devices)s."),
            forms.RenameForm,
            _is_listed,
            lambda trusted, ids, values: trusted.rename(ids[0], values["name"]),
        ),
        Verb(
            "note",
            "change_device",
            _("Note"),
            _("Note about %(device)s"),
            _("People see the note, and the device does not. Hubs do not carry it to other servers."),
            _("Note changed: %(devices)s."),
            forms.NoteForm,
            lambda device: True,
            lambda trusted, ids, values: trusted.set_note(ids[0], values["note"]),
            submit=_("Save"),
        ),
        Verb(
            "ask-rotation",
            "change_device",
            _("Ask for a new key"),
            _("Ask %(device)s for a new key"),
            _(
                "The device is told with the answers to its requests, and its programs log the command that replaces the key: amesh rotate. "
                "Until then, nothing changes: no request is rejected because of this."
            ),
            _("Asked for a new key: %(devices)s."),
            forms.VerbForm,
            lambda device: _may_call(device) and device.rotation_requested_at is None,
            lambda trusted, ids, values: trusted.request_rotation(ids),
        ),
        Verb(
            "keep-key",
            "change_device",
            _("Do not ask for a new key"),
            _("Do not ask %(device)s for a new key"),
            _("The device is not told any more that it must replace its key."),
            _("Not asked for a new key any more: %(devices)s."),
            forms.VerbForm,
            lambda device: _is_listed(device) and device.rotation_requested_at is not None,
            lambda trusted, ids, values: trusted.request_rotation(ids, wanted=False),
        ),
    )
}

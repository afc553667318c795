"""Decisions that change nothing about what a device may do: what people note about it, and that it must replace its key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.kinds import EventKind
from amesh_django.models import Device
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import now, storable
from authmesh.protocol.errors import InvalidInput

from .rows import Decided, Deciding, WrongState, any_row, check_controller, update_if_new

#: Maximum number of characters of a note. Each event of the audit log about the device has it.
MAX_NOTE = 2000


class Notes(Deciding):
    """What people note about devices, and ask of them."""

    def set_note(self, device_id: str, note: str) -> Device:
        """Replace the note about a device in any state, and return its row. The note stays on this server.

        Args:
            device_id: ``am_…``
            note: the new note; empty for none.

        Raises:
            DeviceNotFound: there is no such device.
            InvalidInput: the note has more than :data:`MAX_NOTE` characters.
        """
        if len(note) > MAX_NOTE:
            raise InvalidInput(
                _("A note has at most %(max)d characters. Nothing was changed.") % {"max": MAX_NOTE},
                hint=_("Write a shorter one, with a link to the rest."),
            )

        def work(pending: Change) -> Device:
            row = any_row(pending, device_id)
            update_if_new(pending, row, EventKind.CHANGE, {"note": storable(note)})
            return row

        return self._sealed.change(self._by, work)

    def request_rotation(self, device_ids: Sequence[str], *, wanted: bool = True) -> Decided:
        """Ask controllers to replace their keys. Each is told with the answers to its requests, until it has a new key.

        Args:
            device_ids: ``am_…``
            wanted: False withdraws the request.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked, or its key was replaced already.
            WrongState: a device is a target or was denied, so that it makes no requests.
        """

        def work(pending: Change, row: Device) -> dict[str, Any]:
            if not wanted:
                return {"rotation_requested_at": None}
            check_controller(row)
            if row.denied_at is not None:
                raise WrongState(
                    _("%(device)s was denied, so it is not accepted anyway; nothing was changed.")
                    % {"device": row.device_id}
                )
            return {"rotation_requested_at": row.rotation_requested_at or now()}

        return self._decide(EventKind.CHANGE, device_ids, work)

"""Decisions about whether a device is accepted: approve, deny, suspend, lift, reinstate, and until when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.kinds import EventKind
from amesh_django.models import Device
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import actor, is_revoked, now, row_values, storable
from authmesh.protocol.errors import AllowListError

from .hubs import forget_added, note_decision, words_about
from .revoking import REINSTATED, check_not_replaced, overlap_again
from .rows import (
    Decided,
    Deciding,
    WrongState,
    any_row,
    check_controller,
    check_future,
    earlier_expiry,
    milliseconds,
    update_if_new,
)
from .suspending import LIFTED, Suspension, by_hubs, by_person, columns, kind_of

#: Maximum number of devices in one change of many.
MAX_ROWS = 1000
#: Columns of a device that is trusted again after it was revoked. What else was decided about it before is not decided again.
TRUSTED_AGAIN: dict[str, Any] = {
    **REINSTATED,
    **LIFTED,
    "expires_at": None,
    "groups_json": "",
    "rotation_requested_at": None,
}
_APPROVED: dict[str, Any] = {"pending_since": None, "denied_at": None, "denied_by": "", "deny_reason": ""}


class Standing(Deciding):
    """Whether a device is accepted."""

    def approve(self, device_ids: Sequence[str], *, note: str = "", waiting_only: bool = False) -> Decided:
        """Accept devices that wait for approval, or that were denied.

        Args:
            device_ids: ``am_…``
            note: added to the note about each device that is approved.
            waiting_only: leave a device as it is that was denied.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
            ControllerLimitReached: a device that was denied does not count towards the limit, and there is no room for it.
        """

        def work(pending: Change, row: Device) -> dict[str, Any]:
            if waiting_only and row.denied_at is not None:
                return {}
            if note and (row.pending_since is not None or row.denied_at is not None):
                return {**_APPROVED, "note": storable("\n".join(filter(None, (row.note, note))))}
            return _APPROVED

        return self._decide(EventKind.APPROVE, device_ids, work)

    def deny(self, device_ids: Sequence[str], *, reason: str = "", waiting_only: bool = False) -> Decided:
        """Deny devices that wait for approval. Their rows stay, and their keys are not trusted again without :meth:`approve`.

        Args:
            device_ids: ``am_…``
            reason: stored with the denial.
            waiting_only: leave a device as it is that does not wait, instead of the error.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
            WrongState: a device does not wait for approval.
        """

        def work(pending: Change, row: Device) -> dict[str, Any]:
            if row.denied_at is not None or (waiting_only and row.pending_since is None):
                return {}
            if row.pending_since is None:
                raise WrongState(
                    _("%(device)s does not wait for approval; nothing was changed.") % {"device": row.device_id},
                    hint=_("Suspend or revoke it instead."),
                )
            return {"denied_at": now(), "denied_by": actor(self._by), "deny_reason": storable(reason)}

        return self._decide(EventKind.DENY, device_ids, work)

    def suspend(self, device_ids: Sequence[str], *, until: dt.datetime | None = None, reason: str = "") -> Decided:
        """Stop accepting controllers, until the suspension is lifted or has ended. A suspended device gets the new end and reason.

        A key that a device has replaced, and that is still valid, is suspended with it.

        Args:
            device_ids: ``am_…``
            until: end of the suspension; None for no end.
            reason: stored with the suspension.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
            WrongState: a device is a target or was denied, so that it is not accepted anyway.
            InvalidInput: *until* is not in the future.
        """
        check_future(until)
        own = Suspension(milliseconds(until), actor(self._by), storable(reason))

        def work(pending: Change, row: Device) -> dict[str, Any]:
            check_controller(row)
            if row.denied_at is not None:
                raise WrongState(
                    _("%(device)s was denied, so it is not accepted anyway; nothing was changed.")
                    % {"device": row.device_id}
                )
            words, moment = words_about(pending, [row]), now()
            for one in pending.replaced_by(row.device_id):
                others = by_hubs(one, words, moment).values()
                update_if_new(pending, one, EventKind.SUSPEND, columns(one, own, others, moment))
            return columns(row, own, by_hubs(row, words, moment).values(), moment)

        return self._decide(EventKind.SUSPEND, device_ids, work)

    def lift(self, device_ids: Sequence[str]) -> Decided:
        """End the suspension of devices by a person of this server; if there is none, those by hubs.

        A device that a person has suspended, and a hub, too, stays suspended by the hub: to lift that in spite of the hub is another
        decision.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
        """

        def work(pending: Change, row: Device) -> dict[str, Any]:
            rows, moment = [row, *pending.replaced_by(row.device_id)], now()
            new = dict.fromkeys((one.device_id for one in rows), LIFTED)
            if any(by_person(one, moment) for one in rows):
                words = words_about(pending, [row])
                new = {one.device_id: columns(one, None, by_hubs(one, words, moment).values(), moment) for one in rows}
            else:
                note_decision(pending, [row], lifted=True)
            for one in rows[1:]:
                update_if_new(pending, one, kind_of(new[one.device_id]), new[one.device_id])
            return new[row.device_id]

        return self._decide(kind_of, device_ids, work)

    def reinstate(self, device_id: str) -> Device:
        """Undo the revocation of a device, with its permissions, scopes, and groups. It no longer acts as its Django user.

        Raises:
            DeviceNotFound: there is no such device.
            WrongState: it is not revoked.
            ControllerLimitReached: the list would have too many controllers.
        """

        def work(pending: Change) -> Device:
            row = any_row(pending, device_id)
            if not is_revoked(row_values(row)):
                raise WrongState(_("%(device)s is not revoked; nothing was changed.") % {"device": device_id})
            moment = now()
            others = by_hubs(row, words_about(pending, [row]), moment).values()
            # A hub may have suspended it meanwhile. A key that was replaced comes back only until its end, if that has not come.
            new = {**REINSTATED, **overlap_again(row, moment), **columns(row, by_person(row, moment), others, moment)}
            pending.update(row, EventKind.REINSTATE, **new)
            self._check_limit(pending)
            note_decision(pending, [row])
            return row

        return self._sealed.change(self._by, work)

    def purge(self, device_id: str) -> None:
        """Remove the row of a revoked device for good.

        Raises:
            DeviceNotFound: there is no row with that ID.
            AllowListError: the device is not revoked.
            WrongState: as for :meth:`purge_all`.
        """
        self.purge_all([device_id])

    def purge_all(self, device_ids: Sequence[str]) -> None:
        """Remove the rows of revoked devices for good, in one change. Other changes wait for it: name at most :data:`MAX_ROWS`.

        Raises:
            DeviceNotFound: there is no row with one of these IDs.
            AllowListError: one of the devices is not revoked.
            WrongState: the key of one was replaced by one that is trusted: a revocation of the old key must reach that.
        """

        def work(pending: Change) -> None:
            for device_id in dict.fromkeys(device_ids):
                row = any_row(pending, device_id)
                if not is_revoked(row_values(row)):
                    raise AllowListError(
                        _("%(device)s is still trusted; nothing was changed.") % {"device": device_id},
                        hint=_("Revoke the device, then purge it."),
                    )
                check_not_replaced(pending, row)
                forget_added(pending, row)
                pending.delete(row)

        self._sealed.change(self._by, work)

    def rename(self, device_id: str, name: str) -> Device:
        """Give a device another friendly name. Return its row.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
        """
        (device,) = self._decide(
            EventKind.CHANGE, [device_id], lambda pending, row: {"friendly_name": storable(name)}
        ).devices
        return device

    def set_expiry(self, device_ids: Sequence[str], expires_at: dt.datetime | None) -> Decided:
        """Set the time from which controllers are not accepted; None for no such time.

        A key that a device has replaced, and that is still valid, does not outlive an earlier time.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
            WrongState: a device is a target.
            InvalidInput: the time is not in the future.
        """
        check_future(expires_at)

        def work(pending: Change, row: Device) -> dict[str, Any]:
            check_controller(row)
            for one in pending.replaced_by(row.device_id):
                update_if_new(pending, one, EventKind.EXPIRE, earlier_expiry(one, expires_at))
            return {"expires_at": milliseconds(expires_at)}

        return self._decide(EventKind.EXPIRE, device_ids, work)

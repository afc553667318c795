"""The base of all decisions: one sealed change about several devices, and the rows that it finds."""

from __future__ import annotations

import datetime as dt
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from amesh_django.conf import amesh_settings
from amesh_django.models import Device
from amesh_django.states import ACTIVE
from amesh_django.trust import SealedList
from amesh_django.trust.change import Change
from amesh_django.trust.owner import controller_limit
from amesh_django.trust.sealing import now
from authmesh.device.allow_list import limit_reached, not_found
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.errors import AllowListError, InvalidInput


class WrongState(AllowListError):
    """A decision does not fit the state of a device."""

    code = "wrong_state"
    default_message = "The decision does not fit the state of the device. Nothing was changed."


class Decided(NamedTuple):
    """The result of a decision.

    Attributes:
        devices: the devices that were named, in that order, as they are now.
        changed: device IDs of those that were changed; the others were so already.
    """

    devices: list[Device]
    changed: frozenset[str]


class Deciding:
    """The base of the classes with decisions."""

    _by: str

    @property
    @abstractmethod
    def _sealed(self) -> SealedList: ...

    def _decide(
        self,
        kind: str | Callable[[Mapping[str, Any]], str],
        device_ids: Sequence[str],
        columns: Callable[[Change, Device], Mapping[str, Any]],
    ) -> Decided:
        """Change devices in one step.

        Args:
            kind: what the audit log calls it, or a function that returns that for the new columns.
            device_ids: ``am_…``
            columns: returns the columns of a row as they must be.
        """

        def work(pending: Change) -> Decided:
            rows, changed = [], set()
            for device_id in device_ids:
                row = unrevoked_row(pending, device_id)
                new = columns(pending, row)
                if update_if_new(pending, row, kind if isinstance(kind, str) else kind(new), new):
                    changed.add(device_id)
                rows.append(row)
            self._check_limit(pending)
            return Decided(rows, frozenset(changed))

        return self._sealed.change(self._by, work)

    def _check_limit(self, pending: Change) -> None:
        """Raise ControllerLimitReached if a change has brought back more controllers than there may be."""
        limit = controller_limit()
        if pending.controllers > max(limit, pending.controllers_before):
            raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')


def update_if_new(pending: Change, row: Device, kind: str, columns: Mapping[str, Any]) -> bool:
    """Change those columns of a row that differ. Return False if none does."""
    new = {name: value for name, value in columns.items() if getattr(row, name) != value}
    if new:
        pending.update(row, kind, **new)
    return bool(new)


def earlier_expiry(row: Device, expires_at: dt.datetime | None) -> dict[str, Any]:
    """Return the columns that let a row expire at a time; none if it expires before that."""
    if expires_at is None or (row.expires_at is not None and row.expires_at <= expires_at):
        return {}
    return {"expires_at": milliseconds(expires_at)}


def on_entry(role: str, *, approved: bool = False) -> dict[str, Any]:
    """Return the columns of a device that enters the list now, by ``REQUIRE_APPROVAL`` and ``MAX_KEY_AGE_DAYS``.

    Args:
        role: its role. A target is not accepted anyway, so it neither waits nor expires.
        approved: True if a person has approved it already.
    """
    settings, moment = amesh_settings(), now()
    if role != CONTROLLER:
        return {}
    columns: dict[str, Any] = {}
    if settings.REQUIRE_APPROVAL and not approved:
        columns["pending_since"] = moment
    if settings.MAX_KEY_AGE_DAYS is not None:
        columns["expires_at"] = moment + dt.timedelta(days=settings.MAX_KEY_AGE_DAYS)
    return columns


def any_row(pending: Change, device_id: str) -> Device:
    """Return the row of a device.

    Raises:
        DeviceNotFound: there is none.
    """
    row = pending.find(device_id=device_id)
    if row is None or row.device_id != device_id:  # a collation may ignore case
        raise not_found(device_id)
    return row


def unrevoked_row(pending: Change, device_id: str) -> Device:
    """Return the row of a device that is not revoked.

    Raises:
        DeviceNotFound: there is none.
    """
    row = any_row(pending, device_id)
    if row.is_revoked:
        raise not_found(device_id)
    return row


def is_active(row: Device) -> bool:
    """Return True if the device is accepted now, and its key was not replaced."""
    return not row.is_revoked and row.state == ACTIVE


def check_controller(row: Device) -> None:
    """Raise WrongState if a device is a target."""
    if row.role != CONTROLLER:
        raise WrongState(
            _("%(device)s is a target: it does not authenticate to this server. Nothing was changed.")
            % {"device": row.device_id},
            hint=_("Trust it as a controller first, or revoke it."),
        )


def check_future(moment: dt.datetime | None) -> None:
    """Raise InvalidInput if a time is not in the future."""
    if moment is not None and moment <= now():
        raise InvalidInput(_("The time is not in the future. Nothing was changed."))


def milliseconds(moment: dt.datetime | None) -> dt.datetime | None:
    """Return a time in milliseconds, which every database can store."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000) if moment is not None else None

"""Forgetting: what a device has said as a hub no longer counts here, once it is no hub any more (docs/fleet.md §6)."""

from __future__ import annotations

import logging

from django.utils.translation import gettext as _

from amesh_django.decisions import WrongState
from amesh_django.kinds import EventKind
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import actor
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError, Run

from .following import is_hub

logger = logging.getLogger("amesh_django.fleet")


class HubNotFound(AmeshError):
    """No device with this ID has ever said anything here as a hub."""

    code = "hub_not_found"
    default_message = "No hub with this device ID has said anything here. Nothing was changed."
    default_hint = ("To see the hubs, run ", Run("hubs"), ".")


def forget(device_id: str, *, by: str = "") -> int:
    """Remove the row and the words of a device that is no hub here any more. Return the number of words.

    Devices that it has revoked or suspended stay so: that is in the sealed list, and a person reinstates them. Keys that no device here
    has are as unknown as any other, so that tokens may let them in again.

    Args:
        device_id: the device that was a hub.
        by: who decides it, for the audit log.

    Raises:
        HubNotFound: it has said nothing here.
        WrongState: it has a permission of a hub, or its words were changed outside Django. Nothing was changed.
        AllowListError: the allow list does not match its seal, or is busy. Nothing was changed.
    """

    def work(pending: Change) -> int:
        if not pending.hubs.knows(device_id):
            raise HubNotFound()
        rows = pending.select(device_id=device_id)
        if any(row.device_id == device_id and is_hub(row) and not row.is_revoked for row in rows):
            raise WrongState(
                _("%(device)s is a hub of this server. Nothing was changed.") % {"device": device_id},
                hint=(
                    _("Take its permissions away first: run "),
                    Run("grant", f"{device_id} --permission revoke --permission enroll --remove"),
                    ".",
                ),
            )
        if device_id in pending.hubs.problems():
            raise WrongState(
                _("What %(device)s has said was changed outside Django. Nothing was changed.") % {"device": device_id},
                hint=(_("Find out what happened. Then accept the rest: run "), Run("integrity", "--reseal"), "."),
            )
        words = pending.hubs.forget(device_id)
        pending.record(EventKind.HUB_FORGOTTEN, {"hub": device_id, "words": words}, device_id)
        return words

    words = current_list().change(by, work)
    logger.info(
        "%d words of %s, which is no hub any more, were removed by %s.", words, clean_line(device_id), actor(by)
    )
    return words

"""The mail about the devices that wait: who gets it, and what it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import mail
from django.core.exceptions import FieldDoesNotExist
from django.utils import formats, timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from amesh_django.conf import amesh_settings
from amesh_django.models import Device
from authmesh.protocol.display import clean, clean_line

from . import mailer

logger = logging.getLogger("amesh_django.approvals")

#: Maximum number of devices that a mail names, and of staff users who are looked at.
MAX_NAMED, MAX_STAFF = 50, 1000


def recipients() -> list[str]:
    """Return the addresses of the active staff users who may view and approve devices, each once."""
    users = get_user_model()
    try:
        for name in ("is_active", "is_staff"):
            users._meta.get_field(name)
        address = users.get_email_field_name()
        users._meta.get_field(address)
    except (AttributeError, FieldDoesNotExist):  # a user model of the project's own
        return []
    staff: Any = users._default_manager.filter(is_active=True, is_staff=True).exclude(**{address: ""})
    found = [
        str(getattr(user, address))
        for user in staff.order_by("pk")[:MAX_STAFF]
        if getattr(user, address) and user.has_perm("amesh.approve_device") and _may_view(user)
    ]
    return list(dict.fromkeys(found))


def _may_view(user: Any) -> bool:
    return bool(user.has_perm("amesh.view_device") or user.has_perm("amesh.change_device"))


def compose(devices: Sequence[Device], count: int) -> tuple[str, str]:
    """Return subject and text.

    Args:
        devices: verified rows of the newest devices that wait.
        count: how many wait in all.
    """
    with translation.override(settings.LANGUAGE_CODE):
        subject = ngettext(
            "amesh: %(count)d device waits for approval", "amesh: %(count)d devices wait for approval", count
        ) % {"count": count}
        lines = [f"{subject}.", ""]
        lines += [f"{device.device_id}  {plain(device.friendly_name)}  {_since(device)}" for device in devices]
        if count > len(devices):
            lines.append(_("and %(count)d more") % {"count": count - len(devices)})
        lines += [
            "",
            _(
                "Their requests are rejected until they are approved. Each device chose its name itself: compare the device ID."
            ),
        ]
        site = amesh_settings().ADMIN_URL
        if site:
            lines += ["", _("Approve or deny them:"), f"{site}amesh/device/approvals/"]
        return subject, "\n".join(lines) + "\n"


def plain(name: str) -> str:
    """Return a name for a mail: cleaned, and with spaces so that no mail program makes a link of it."""
    return re.sub(r"([.:/@])(?=\S)", r"\1 ", clean(name))


def _since(device: Device) -> str:
    moment = device.pending_since
    if moment is None:
        return ""
    return formats.date_format(timezone.localtime(moment) if timezone.is_aware(moment) else moment, "DATETIME_FORMAT")


def send(devices: Sequence[Device], count: int) -> bool:
    """Send the mail to each who may approve, and return True if at least one was sent. A mail that fails is logged.

    Args:
        devices, count: as for :func:`compose`.
    """
    addresses = recipients()
    if not addresses:
        logger.warning("Devices wait for approval, and no active staff user who may approve them has an address.")
        return False
    subject, text = compose(devices, count)
    sent, failed = 0, []
    try:
        connection = mailer.connection()
        connection.open()
    except Exception as error:  # any that a mail server, a library, or a wrong setting may cause
        logger.error(
            "The mail about approvals could not be sent (%s). It is tried again in 5 minutes.", type(error).__name__
        )
        return False
    for address in addresses:
        try:
            message = mail.EmailMessage(clean_line(subject), text, to=[address])
            sent += connection.send_messages([message]) or 0
        except Exception as error:
            failed.append(type(error).__name__)
    connection.close()
    if failed:
        logger.error(
            "The mail about approvals was sent to %d of %d people (%s). The next one names all devices that wait, too.",
            sent, len(addresses), ", ".join(sorted(set(failed))),
        )  # fmt: skip
    return sent > 0

"""Problems with the sealed list, in words for the people who use the admin: the banner, and changes that failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as AnyDatabaseError
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device, DeviceActivity
from amesh_django.spelling import manage_py
from amesh_django.trust import current_list
from amesh_django.trust.damage import read_activity
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AllowListIntegrityFailure, AllowListUnavailable, AmeshError, Run

#: The errors that a change of the list may raise. The admin shows each as a message.
CHANGE_ERRORS = (AmeshError, AnyDatabaseError, ImproperlyConfigured)

#: Commands that a page of the admin replaces: name of the command → name of the page.
_PAGES = {"list": "amesh_device_changelist"}


# Maximum number of differences that the banner names, and of devices that it compares with the audit log.
_MAX_NAMED = 10
_MAX_COMPARED = 10_000


@dataclass(frozen=True, slots=True)
class Trouble:
    """The reason why all signed requests are rejected.

    Attributes:
        title: one line.
        why: the problem that was found.
        advice: what to do first.
        steps: pairs of a command and a description of what it does.
        differences: sentences that name the rows that differ.
        more: the number of differences that are left out.
    """

    title: str | Promise
    why: str
    advice: str | Promise
    steps: Sequence[tuple[Run, str | Promise]] = ()
    differences: Sequence[str] = ()
    more: int = 0

    @property
    def commands(self) -> list[tuple[str, str | Promise]]:
        """The steps, with each command as it is typed on the server."""
        return [(manage_py(run), description) for run, description in self.steps]


_BROKEN = _("The allow list does not match its seal. All signed requests are rejected.")
_BROKEN_ADVICE = _(
    "Do not trust what this page shows: it may not be what was sealed. Devices can be revoked. Until the list is fixed, none "
    "can be mapped to a user. On the server, run:"
)
_BROKEN_STEPS = (
    (Run("integrity"), _("shows which devices were changed, added or removed outside Django.")),
    (
        Run("integrity", "--reseal"),
        _("accepts the list as it is at that time. Before you run it, correct what is wrong, or restore a backup."),
    ),
)
_OLD = _("The allow list may not be the newest one. All signed requests are rejected.")
_OLD_ADVICE = _(
    "This page shows the list that was restored: devices that were revoked after it was saved are shown as trusted. Devices can be "
    "revoked. Until a person accepts the list, none can be mapped to a user. On the server, run:"
)
_OLD_STEPS = (
    (Run("integrity"), _("shows why the list may be old, and which devices it trusts.")),
    (
        Run("integrity", "--reseal"),
        _(
            "accepts the list as it is. Keep the server stopped until you have revoked again all devices that were revoked after "
            "the list was saved."
        ),
    ),
)
_FOREIGN = _("The allow list was sealed with another key. All signed requests are rejected.")
_FOREIGN_ADVICE = _(
    "If several hosts use this database, set AMESH['SEAL_KEY_FILE'] to the same file on each of them. Do not reseal the list in that "
    "case: the other hosts would reject it. If this is the only host, do not trust what this page shows. On the server, run:"
)
_UNREADABLE = _("The allow list cannot be read. All signed requests are rejected.")
_UNREADABLE_ADVICE = _("Check that the database is running and migrated, then load this page again.")
_NO_KEYS = _("The seal of the allow list cannot be verified. All signed requests are rejected.")
_NO_KEYS_ADVICE = _(
    "This server cannot use its own identity or key. The list itself may be correct: do not reseal it because of this. Fix the "
    "problem named above (AMESH in the settings, or the device directory), then load this page again."
)


def trouble(*, in_full: bool = False) -> Trouble | None:
    """Return the reason why the list cannot be verified, or None if it matches its seal. Costs one read of the seal row.

    Args:
        in_full: if rows do not match, name them. This compares all devices with the audit log.
    """
    try:
        current_list().snapshot()
    except AllowListUnavailable as error:
        return Trouble(_UNREADABLE, _translated(error.message), _UNREADABLE_ADVICE)
    except AllowListIntegrityFailure as error:
        # The steps replace the hint of the error: they say more.
        if error.reason in ("rolled_back", "other_epoch", "revision_lost"):
            return Trouble(_OLD, _translated(error.message), _OLD_ADVICE, _OLD_STEPS)
        if error.reason == "seal_mismatch":
            return Trouble(_FOREIGN, _translated(error.message), _FOREIGN_ADVICE, _BROKEN_STEPS)
        found = _differences() if in_full else []
        named = [clean_line(sentence) for sentence in found[:_MAX_NAMED]]
        why = _translated(error.message)
        return Trouble(_BROKEN, why, _BROKEN_ADVICE, _BROKEN_STEPS, named, max(0, len(found) - _MAX_NAMED))
    except AmeshError as error:
        return Trouble(_NO_KEYS, html_of(error), _NO_KEYS_ADVICE)
    except ImproperlyConfigured as error:
        return Trouble(_NO_KEYS, str(error), _NO_KEYS_ADVICE)
    return None


def _differences() -> list[str]:
    """Return the sentences that name the rows that differ; none if there are too many rows to compare them for a page."""
    sealed = current_list()
    try:
        if Device.objects.using(sealed.using).count() > _MAX_COMPARED:
            return []
        return sealed.report().problems
    except CHANGE_ERRORS:
        return []


def verify_shown(devices: Sequence[Device]) -> None:
    """Compare rows that a page is about to show with the verified list, and take their state from there.

    If a row differs, the list is not trusted any more, and the banner of the page says so.
    """
    sealed = current_list()
    read_activity(devices, sealed.using)
    for device in devices:
        activity: DeviceActivity | None = getattr(device, "activity", None)
        device.last_seen_at = activity.last_seen_at if activity is not None else None  # type: ignore[attr-defined]
    try:
        found = sealed.snapshot()
        has_changed = False
        for device in devices:
            known = found.known(device.pk)
            has_changed |= not found.matches(sealed, device)
            if known is not None and known.device_id == device.device_id:
                device.amesh_state = known.state(time.time())  # type: ignore[attr-defined]
        if has_changed:  # outside Django, or by another process just now
            pks = [device.pk for device in devices]
            sealed.verified(lambda: list(Device.objects.using(sealed.using).filter(pk__in=pks)))
    except (AmeshError, ImproperlyConfigured):
        pass


def verify_complete() -> None:
    """Compare the number of rows with the verified list: a row that was removed outside Django is on no page.

    If it differs, the list is not trusted any more, and the banner of the page says so.
    """
    sealed = current_list()
    rows = Device.objects.using(sealed.using)
    try:
        if rows.count() != len(sealed.snapshot().by_key):  # or another process has changed the list just now
            sealed.verified(list, lambda found, _shown: rows.count() == len(found.by_key))
    except CHANGE_ERRORS:
        pass


def explain(error: Exception, site: str = "admin") -> str:
    """Return the message for a change that failed.

    Args:
        error: one of :data:`CHANGE_ERRORS`.
        site: name of the admin site, for links.
    """
    if isinstance(error, AllowListIntegrityFailure):
        return format_html(
            gettext("{problem} The change was rejected. Fix the list on the server ({command}), then try again."),
            problem=_translated(error.message),
            command=_command(Run("integrity"), site),
        )
    if isinstance(error, AmeshError):
        return html_of(error, site)
    if isinstance(error, ImproperlyConfigured):
        return str(error)
    return gettext(
        "The database returned an error (%(kind)s), so it is not known whether the change was made. Check that the database is "
        "running, look at the device, then try again."
    ) % {"kind": type(error).__name__}


def html_of(error: AmeshError, site: str = "admin") -> SafeString:
    """Return message and hint of an error as HTML, translated. A command to run is a link if the admin has a page for it.

    Args:
        error: the error.
        site: name of the admin site, for links.
    """
    parts = (error.hint,) if isinstance(error.hint, str) else error.hint
    texts = [
        _command(part, site) if isinstance(part, Run) else _translated(part) for part in (error.message, " ", *parts)
    ]
    return format_html_join("", "{}", ((text,) for text in texts))


def _translated(message: str) -> str:
    """Return a message of ``authmesh`` in the language of the page: that package knows nothing of translation."""
    return gettext(message) if message.strip() else message


def _command(run: Run, site: str) -> SafeString:
    command = format_html("<code>{}</code>", manage_py(run))
    try:
        page = reverse(f"admin:{_PAGES[run.name]}", current_app=site)
    except (KeyError, NoReverseMatch):
        return command
    return format_html('<a href="{}">{}</a>', page, command)

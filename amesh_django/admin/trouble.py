"""What is wrong with the sealed list, in words for the people who look at the admin: the banner, and refused changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as AnyDatabaseError
from django.utils.functional import Promise
from django.utils.translation import gettext as text
from django.utils.translation import gettext_lazy as _

from amesh_django.trust import snapshot
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError

#: What a change of the list may raise; the admin makes a message of each.
REFUSALS = (AmeshError, AnyDatabaseError, ImproperlyConfigured)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nobody is let in.

    Attributes:
        title: one line.
        why: what was found.
        advice: what to do first.
        steps: pairs of a command and what it does.
    """

    title: str | Promise
    why: str
    advice: str | Promise
    steps: Sequence[tuple[str, str | Promise]] = ()


_BROKEN = _("The allow list does not match its seal. Every signed request is refused.")
_LOOK = _(
    "Do not trust what this page shows: it may not be what was sealed. Until it is mended, nothing can be revoked or mapped "
    "here. On the server:"
)
_STEPS = (
    ("manage.py amesh_integrity", _("shows which devices were changed, added or removed past the app.")),
    (
        "manage.py amesh_integrity --reseal",
        _("accepts the list as it stands then. Put right what is wrong first, or restore a backup."),
    ),
)
_OLD = _("The allow list is not known to be the newest. Every signed request is refused.")
_OLD_ADVICE = _(
    "This page shows the list as it was put back: devices that were revoked since stand here as trusted. Until a person accepts "
    "it, nothing can be revoked or mapped here. On the server:"
)
_OLD_STEPS = (
    ("manage.py amesh_integrity", _("shows what speaks against the list, and whom it trusts.")),
    (
        "manage.py amesh_integrity --reseal",
        _("accepts it as it stands. Stop the server for that long: then revoke again what was revoked since."),
    ),
)
_UNREADABLE = _("The allow list can’t be read. Every signed request is refused.")
_UNREADABLE_ADVICE = _("See that the database is up and migrated, then load this page again.")
_NO_KEYS = _("The seal of the allow list can’t be checked. Every signed request is refused.")
_NO_KEYS_ADVICE = _(
    "This server can’t get at its own identity or key. The list itself may be in order: do not reseal it for this. Mend "
    "what the sentence above names (AMESH in the settings, the device directory), then load this page again."
)


def trouble() -> Trouble | None:
    """What keeps the list from being verified; None while it matches its seal. Costs one read of the seal row."""
    try:
        snapshot.current()
    except AllowListIntegrityFailure as error:
        if error.reason == "allow_list_unavailable":
            return Trouble(_UNREADABLE, str(error), _UNREADABLE_ADVICE)
        found, _dot, _next_step = str(error).partition(". ")  # the steps below say more than the rest of it
        if error.reason in ("rolled_back", "revision_lost"):
            return Trouble(_OLD, f"{found}.", _OLD_ADVICE, _OLD_STEPS)
        return Trouble(_BROKEN, f"{found}.", _LOOK, _STEPS)
    except (AmeshError, ImproperlyConfigured) as error:
        return Trouble(_NO_KEYS, str(error), _NO_KEYS_ADVICE)
    return None


def explain(error: Exception) -> str:
    """The message for a change that was refused.

    Args:
        error: one of :data:`REFUSALS`.
    """
    if isinstance(error, AllowListIntegrityFailure):
        return text("%(error)s The change was refused. Once the list is mended and resealed (--reseal), try again.") % {
            "error": error
        }
    if isinstance(error, AmeshError | ImproperlyConfigured):
        return str(error)
    return text(
        "The database failed (%(kind)s), so it is not certain what was done. See that it is up, look at the device, then "
        "try again."
    ) % {"kind": type(error).__name__}

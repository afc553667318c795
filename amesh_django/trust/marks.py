"""A high-water mark: which list is older than it or another one, and the errors for such lists."""

from __future__ import annotations

from typing import NamedTuple

from django.utils.translation import gettext as _

from authmesh.protocol.errors import AllowListIntegrityFailure, Hint, Run


def reseal_hint(first: str = "", last: str = "") -> Hint:
    """Return the hint for a list that is not known to be the newest.

    Args:
        first: a sentence about what to do if the list must not be accepted.
        last: a sentence at the end.
    """
    rejected = _("All requests are rejected.")
    accept = _("To accept the list in the database, for example after a backup was restored, run")
    then = _(
        ". The command shows which devices would be trusted, and asks. Then revoke again the devices that were revoked since."
    )
    before, after = " ".join(filter(None, (rejected, first, accept))), " ".join(filter(None, (then, last)))
    return (f"{before} ", Run("integrity", "--reseal"), after)


def own_directory() -> str:
    """Return the sentence for servers whose lists may have been mixed up."""
    return _(
        "If two servers have databases of the same name, give each server its own device directory (AMESH['DIR'])."
    )


def other_list() -> AllowListIntegrityFailure:
    """Return the error for a list that is not a later state of the one that is known."""
    return AllowListIntegrityFailure(
        _(
            "The list in the database is another one than this server has seen in it: the same key sealed it, but in another database, "
            "or the list was begun again."
        ),
        hint=reseal_hint(_("Restore the right database."), own_directory()),
        reason="other_epoch",
    )


class Mark(NamedTuple):
    """The newest list that was seen in a database.

    Attributes:
        revision: its revision.
        seal: its HMAC, which tells two lists of one revision apart.
        epoch: its random name, which tells it apart from a list that the same key sealed in another database; empty in a list of
            version 0.1.
        continues: epochs of the lists that a person resealed as this one, separated by spaces.
    """

    revision: int
    seal: str
    epoch: str = ""
    continues: str = ""


def is_older(found: Mark | None, known: Mark) -> bool:
    """Return True if *found* is an older list than *known*, or another list of the same revision (restored, then changed).

    Args:
        found: the list in the database; None if there is none. That is older than any list with a seal, even of revision 0,
            because a seal row is never deleted.
    """
    if found is None or found.revision < known.revision:
        return True
    return found.revision == known.revision and found.seal != known.seal


def is_other(found: Mark | None, known: Mark) -> bool:
    """Return True if *found* is neither a later nor an older state of *known*, but a list that was begun on its own.

    A mark of version 0.1 has no epoch, and takes over that of the list that is found next.
    """
    if found is None or not known.epoch or known.epoch == found.epoch:
        return False
    if found.revision < known.revision and found.epoch in known.continues.split():
        return False
    return known.epoch not in found.continues.split()

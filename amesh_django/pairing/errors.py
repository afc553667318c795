"""The errors of a pairing from a web page, beside those of the ceremony."""

from __future__ import annotations

import json
from typing import Any

from authmesh.protocol.errors import AmeshError, Hint, Run
from authmesh.protocol.pairing.errors import PairingError


class PairingCanceled(PairingError):
    """The person has canceled."""

    code = "canceled"
    default_message = "The pairing was canceled. Nothing was stored."
    default_hint = ""


class PairingAbandoned(PairingError):
    """Nobody looked at the page."""

    code = "abandoned"
    default_message = "Nobody looked at the page of this pairing for a minute, so it was ended. Nothing was stored."


class PairingLost(PairingError):
    """The process that ran the ceremony was stopped, or was held up for too long."""

    code = "lost"
    default_message = "The process that ran this pairing was restarted. Nothing was stored."
    default_hint = "Start again."


class PairingNotTaken(PairingError):
    """No process has begun the ceremony."""

    code = "not_taken"
    default_message = "No process has begun this pairing. Nothing was stored."
    default_hint = "Check that a worker of Celery runs the task amesh.pair, then start again."


class PairingChanged(PairingError):
    """The row of the pairing was changed outside Django."""

    code = "changed_outside"
    default_message = "The pairing was changed outside Django, so it was ended. Nothing was stored."
    default_hint = "Find out who can write to the database before you start again."


class PairingBroken(PairingError):
    """An error that amesh does not know: that of a database, or a bug."""

    code = "pairing_broken"
    default_message = "An error occurred on the server, and its log says which. Nothing was stored."
    default_hint = "Start again."


class TooManyPairings(AmeshError):
    """A person has as many pairings under way as one may have."""

    code = "too_many_pairings"
    default_message = "You have as many pairings under way as one person may have. No other one was begun."
    default_hint = "Cancel one of them, or wait a minute."


def to_json(error: AmeshError) -> str:
    """Return message and hint of an error as the row has them."""
    parts = (error.hint,) if isinstance(error.hint, str) else error.hint
    texts: list[Any] = [[part.name, part.arguments] if isinstance(part, Run) else str(part) for part in parts]
    return json.dumps([str(error.message), *texts])


def from_json(text: str) -> AmeshError:
    """Return an error with the message and the hint that :func:`to_json` has written."""
    message, *parts = json.loads(text)
    hint: Hint = tuple(part if isinstance(part, str) else Run(*part) for part in parts)
    return AmeshError(message, hint=hint)

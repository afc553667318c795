"""How the bootstrap tokens of this device are shown. Never the token itself, nor its secret."""

from __future__ import annotations

import datetime as dt
from typing import Any

from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time

from ..spec import Context
from ..terminal.console import Line, facts
from ..words import when


def time_of(seconds: int) -> dt.datetime:
    """A time of a token."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def token_json(token: StoredToken, now: float) -> dict[str, Any]:
    """A token for ``--json``."""
    state = token.state(now)
    members: dict[str, Any] = {
        "jti": token.jti,
        "name": token.name,
        "relay": token.relay,
        "issuedAt": format_time(time_of(token.issued_at)),
        "expiresAt": format_time(time_of(token.expires_at)),
        "state": state,
    }
    if token.changed_at is not None:
        members["usedAt" if state == "used" else "withdrawnAt"] = format_time(time_of(token.changed_at))
    if token.used_by is not None:
        members |= {"usedBy": token.used_by, "answered": token.answered}
    return members


def _state(token: StoredToken, now: float) -> str:
    state = token.state(now)
    changed = when(format_time(time_of(token.changed_at))) if token.changed_at is not None else ""
    if state == "open":
        return f"open until {when(format_time(time_of(token.expires_at)))}"
    if state == "used":
        unanswered = (
            "" if token.answered else "; the device was not told so: provision --resume tells it if it comes again"
        )
        return f"used by {token.used_by} {changed}{unanswered}"
    if state == "withdrawn":
        return f"withdrawn {changed}"
    return f"expired {when(format_time(time_of(token.expires_at)))}, unused"


def show_tokens(context: Context) -> None:
    """``provision --list``."""
    device, now = context.own_device(), context.now().timestamp()
    tokens = TokenStore(device.path).tidy(now)
    context.console.result({"tokens": [token_json(token, now) for token in tokens]})
    if not tokens:
        context.console.say(f"There are no bootstrap tokens. Make one: {context.command('provision')} --name NAME")
        return
    for token in tokens:
        state = token.state(now)
        context.console.say(
            Line(clean(token.name), "good" if state == "open" else "plain"),
            *facts(("Number", token.jti), ("State", _state(token, now)), ("Relay", clean_line(token.relay))),
        )

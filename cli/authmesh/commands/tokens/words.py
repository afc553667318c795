"""The wording about the bootstrap tokens of this device. Neither a token nor its secret is ever shown."""

from __future__ import annotations

import datetime as dt
from typing import Any

from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import Hint, Run

from ..context import Context
from ..terminal.lines import Styled, facts
from ..words import when


def time_of(seconds: int) -> dt.datetime:
    """Return a time of a token."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def shown_time(seconds: int) -> str:
    """Return a time of a token as people read it."""
    return when(format_time(time_of(seconds)))


def token_json(token: StoredToken, now: float) -> dict[str, Any]:
    """Return a token for ``--json``."""
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


def _state(token: StoredToken, now: float) -> Hint:
    state = token.state(now)
    changed = shown_time(token.changed_at) if token.changed_at is not None else ""
    if state == "open":
        return f"open until {shown_time(token.expires_at)}"
    if state == "withdrawn":
        return f"withdrawn {changed}"
    if state == "expired":
        return f"expired {shown_time(token.expires_at)}, unused"
    used = f"used by {token.used_by} {changed}"
    if token.answered:
        return used
    return (
        f"{used}, but the answer did not reach that device. To answer it if it comes again, run ",
        Run("provision", "--resume"),
    )


def show_tokens(context: Context) -> None:
    """Show all tokens of this device."""
    device, now = context.own_device(), context.now().timestamp()
    tokens = TokenStore(device.path).tidy(now)
    context.console.result({"tokens": [token_json(token, now) for token in tokens]})
    if not tokens:
        context.console.say(("There are no bootstrap tokens. To make one, run ", Run("provision", "--name NAME"), "."))
        return
    for token in tokens:
        is_open = token.state(now) == "open"
        context.console.say(
            Styled(clean(token.name), "good" if is_open else "plain"),
            *facts(("Number", token.jti), ("State", _state(token, now)), ("Relay", clean_line(token.relay))),
        )

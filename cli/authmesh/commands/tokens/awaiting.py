"""Waiting for devices that come with bootstrap tokens, and what is said meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.pairing.bootstrap.controller import Provisioning, Watcher
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.pairing.errors import PairingError, RelayClosed

from ..spec import Context
from ..terminal.console import Interrupted, Line
from ..words import MEANING, named
from .words import token_json

V1_WARNING = (
    "With --v1 a device is accepted that shows its token to the relay. Whoever runs the relay, or listens in, can enrol a device of "
    "their own in its place. Use it only with a relay that you trust."
)


class _Screen(Watcher):
    """Says what happens."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._console = context.console
        self._lost = False

    def _note(self, text: str, **step: Any) -> None:
        if self._console.as_json:
            self._console.step(step)
        else:
            self._console.hint(text)

    def watching(self, token: StoredToken) -> None:
        """See :class:`Watcher`."""
        if self._lost:
            self._lost = False
            self._note("The relay is back.", step="connected", relay=token.relay)
        self._note(
            f"Waiting for {clean(token.name)} at {clean_line(token.relay)}. Ctrl-C ends the waiting and leaves the token open.",
            step="waiting",
            jti=token.jti,
        )

    def elsewhere(self, token: StoredToken) -> None:
        """See :class:`Watcher`."""
        self._note(
            f"Another process waits for {clean(token.name)} already; this one takes over when it stops.",
            step="waiting_elsewhere",
            jti=token.jti,
        )

    def refused(self, token: StoredToken, error: AmeshError) -> None:
        """See :class:`Watcher`."""
        if self._console.as_json:
            self._console.step({"step": "refused", "jti": token.jti, "error": error.code, "message": str(error)})
        self._console.warn(f"{clean(token.name)} ({token.jti}): {error}")

    def enrolled(self, token: StoredToken, entry: DeviceEntry) -> None:
        """See :class:`Watcher`."""
        now = self._context.now().timestamp()
        self._console.step({"step": "enrolled", **token_json(token, now), "answered": True, "device": entry.to_json()})
        self._console.say(
            Line(f"Enrolled: {named(entry)} as {entry.role}: {MEANING[entry.role]}.", "good"),
            f"The token is used up. If this was not your device, revoke it: {self._context.command('revoke')} {entry.device_id}",
        )

    def ended(self, token: StoredToken) -> None:
        """See :class:`Watcher`."""
        now = self._context.now().timestamp()
        self._console.step({"step": "ended", **token_json(token, now)})
        words = {
            "used": f"was used by {token.used_by}, through another process.",
            "withdrawn": "was withdrawn.",
            "expired": "has expired. Nobody came with it.",
        }.get(token.state(now), "is not waited for any more.")
        if token.state(now) == "used" and not token.answered:
            words = f"was used by {token.used_by}, which did not come back for its answer. Look at it; if need be make a new token."
        self._console.say(f"The token for {clean(token.name)} {words}")

    def lost(self, relay: str, error: PairingError, seconds: float) -> None:
        """See :class:`Watcher`."""
        self._lost = True
        again = max(1, round(seconds))
        words = "The connection to the relay broke." if isinstance(error, RelayClosed) else str(error)
        self._note(
            f"{words} Trying again in {again} s.",
            step="lost",
            relay=relay,
            error=error.code,
            message=str(error),
            retryInSeconds=again,
        )


async def _serve_all(provisionings: Sequence[Provisioning]) -> None:
    tasks = [asyncio.ensure_future(one.serve()) for one in provisionings]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def await_devices(context: Context, tokens: Sequence[StoredToken], *, v1: bool) -> None:
    """Serve these tokens until none is awaited any more, one connection a relay.

    Raises:
        Interrupted: Ctrl-C; the tokens stay as they are.
        AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
    """
    device, screen = context.own_device(), _Screen(context)
    if v1:
        context.console.warn(V1_WARNING)
    relays = list(dict.fromkeys(token.relay for token in tokens))
    provisionings = [
        Provisioning(
            relay=relay,
            device=device,
            allow_list=context.allow_list(),
            store=TokenStore(device.path),
            watcher=screen,
            v1=v1,
            only=tokens[0].jti if len(tokens) == 1 else None,
            timeouts=context.timeouts,
            now=context.now,
            blocking=context.blocking,
        )
        for relay in relays
    ]
    try:
        asyncio.run(_serve_all(provisionings))
    except KeyboardInterrupt:
        command = context.command("provision")
        raise Interrupted(
            f"Interrupted. What is open stays open: {command} --resume waits again, {command} --list shows it, "
            f"{command} --withdraw takes it back."
        ) from None

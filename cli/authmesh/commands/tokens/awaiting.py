"""The wait for devices that come with bootstrap tokens, and what is shown meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.pairing.bootstrap.controller import Provisioning, Watcher
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AmeshError, Hint, Run
from authmesh.protocol.pairing.errors import PairingError, RelayClosed

from ..context import Context
from ..terminal.errors import Interrupted
from ..terminal.lines import Styled
from ..words import MEANING, named
from .words import token_json

V1_WARNING = (
    "With --v1, a device is accepted that shows its token to the relay. Anyone who runs the relay or reads its traffic can enroll a device "
    "of their own in its place. Use --v1 only with a relay that you trust."
)


class _Screen(Watcher):
    """Shows the events of waiting."""

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
        if self._lost:
            self._lost = False
            self._note("The connection to the relay is restored.", step="connected", relay=token.relay)
        self._note(
            f"Waiting for {clean(token.name)} at {clean_line(token.relay)}. Ctrl-C stops waiting and leaves the token open.",
            step="waiting",
            jti=token.jti,
        )

    def elsewhere(self, token: StoredToken) -> None:
        self._note(
            f"Another process already waits for {clean(token.name)}. This one takes over when the other one stops.",
            step="waiting_elsewhere",
            jti=token.jti,
        )

    def refused(self, token: StoredToken, error: AmeshError) -> None:
        message = error.text(self._console.spell)
        self._console.step({"step": "refused", "jti": token.jti, "error": error.code, "message": message})
        self._console.warn(f"{clean(token.name)} ({token.jti}): {message}")

    def enrolled(self, token: StoredToken, entry: DeviceEntry) -> None:
        now = self._context.now().timestamp()
        self._console.step({"step": "enrolled", **token_json(token, now), "answered": True, "device": entry.to_json()})
        self._console.say(
            Styled(f"Enrolled: {named(entry)} as {entry.role}: {MEANING[entry.role]}.", "good"),
            ("The token is used up. If this was not your device, revoke it: ", Run("revoke", entry.device_id)),
        )

    def stored(self, token: StoredToken, entry: DeviceEntry) -> None:
        now = self._context.now().timestamp()
        mine = self._context.own_device().identity
        self._console.step({"step": "stored", **token_json(token, now), "answered": True, "device": entry.to_json()})
        self._console.say(
            Styled(f"Stored: {named(entry)} as {entry.role}: {MEANING[entry.role]}.", "warning"),
            (
                "It showed the token itself (--v1), and may not be enrolled: the relay of the TypeScript implementation loses the signature of "
                f"the answer. On that device, check that list shows {mine.device_id} as a controller. If it does not, or if it was not your "
                "device, revoke it here: ",
                Run("revoke", entry.device_id),
            ),
        )

    def ended(self, token: StoredToken) -> None:
        now = self._context.now().timestamp()
        self._console.step({"step": "ended", **token_json(token, now)})
        self._console.say(f"The token for {clean(token.name)} {_end(token, now)}")

    def lost(self, relay: str, error: PairingError, seconds: float) -> None:
        self._lost = True
        again = max(1, round(seconds))
        message = error.text(self._console.spell)
        shown = "The connection to the relay broke." if isinstance(error, RelayClosed) else message
        self._note(
            f"{shown} Trying again in {again} s.",
            step="lost",
            relay=relay,
            error=error.code,
            message=message,
            retryInSeconds=again,
        )


def _end(token: StoredToken, now: float) -> str:
    state = token.state(now)
    if state == "used" and token.answered:
        return f"was used by {token.used_by}, through another process."
    if state == "used":
        return (
            f"was used by {token.used_by}, which did not come back for its answer. Check that device, and make a new token if it is not "
            "enrolled."
        )
    if state == "withdrawn":
        return "was withdrawn."
    if state == "expired":
        return "has expired. No device used it."
    return "is no longer waited for."


async def _serve_all(provisionings: Sequence[Provisioning]) -> None:
    tasks = [asyncio.ensure_future(one.serve()) for one in provisionings]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def await_devices(context: Context, tokens: Sequence[StoredToken], *, v1: bool) -> None:
    """Serve these tokens until none of them is awaited any more, over one connection for each relay.

    Raises:
        Interrupted: Ctrl-C was pressed; the tokens are unchanged.
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
            allow_list=context.home.allow_list(),
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
        raise Interrupted(_INTERRUPTED) from None


_INTERRUPTED: Hint = (
    "Interrupted. Open tokens stay open. To wait again, run ",
    Run("provision", "--resume"),
    ". To see them, run ",
    Run("provision", "--list"),
    ". To withdraw one, run ",
    Run("provision", "--withdraw NUMBER"),
    ".",
)

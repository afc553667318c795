"""What doctor asks a relay: nothing but whether it opens a connection."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator

from authmesh.pairing.wire.link import open_link
from authmesh.protocol.display import clean_line
from authmesh.protocol.pairing.errors import PairingError, RateLimited, RelayFull

from ..relays import relay_address
from .findings import Finding, of_sentence


async def _knock(address: str, seconds: float) -> None:
    """Open a WebSocket and close it. Nothing is sent: limits count what is asked for, not who comes by."""
    async with open_link(address, seconds=seconds, patience=seconds):
        pass


def relay(given: str | None, seconds: float) -> Iterator[Finding]:
    """Can the relay be reached, and is its certificate trusted?

    Args:
        given: value of ``--relay``; None where it was left out.
        seconds: how long it may take.
    """
    is_named = given is not None or bool(os.environ.get("AMESH_RELAY_URL", "").strip())
    if importlib.util.find_spec("websockets") is None:
        yield Finding(
            "relay",
            "skipped",
            "Not asked: that needs the package websockets.",
            "To pair over a relay, install it: pip install 'amesh-django[cli]'",
        )
        return
    try:
        address = relay_address(given)
        asyncio.run(_knock(address, seconds))
    except (RateLimited, RelayFull) as error:
        yield of_sentence("relay", f"It answers, but takes no connection now: {error}", "warning")
        return
    except PairingError as error:
        # Nobody said that this machine pairs over the public relay; a server inside a network often can't reach it.
        found = of_sentence("relay", str(error), "problem" if is_named else "warning")
        if not is_named:
            found = Finding(
                found.id, found.status, found.message, f"{found.advice} Not needed unless you pair: --no-relay."
            )
        yield found
        return
    trusted = ", and its certificate is trusted" if address.startswith("wss:") else ""
    yield Finding("relay", "ok", f"{clean_line(address)} answers{trusted}")

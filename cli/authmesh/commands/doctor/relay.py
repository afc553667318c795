"""The check of a relay: it opens a connection, and sends nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator

from authmesh.pairing.wire.link import open_socket
from authmesh.protocol.display import clean_line
from authmesh.protocol.pairing.errors import PairingError, RateLimited, RelayFull

from ..relays import DEFAULT_RELAY, RELAY_VARIABLE, relay_address
from .findings import Finding


async def _knock(address: str, seconds: float) -> None:
    """Open a WebSocket and close it. Nothing is sent, so this does not count towards the limits of the relay."""
    async with open_socket(address, seconds=seconds, patience=seconds):
        pass


def relay(given: str | None, seconds: float, *, public: bool = False) -> Iterator[Finding]:
    """Examine whether the relay can be reached, and whether its certificate is trusted.

    The public relay learns the address of everyone who connects, so it is contacted only if a person asks for it.

    Args:
        given: value of ``--relay``; None if the option was omitted.
        seconds: time limit.
        public: True to contact the public relay.
    """
    if given is None and not public and not os.environ.get(RELAY_VARIABLE, "").strip():
        yield Finding(
            "relay",
            "skipped",
            "Not examined: no relay is named, and the public one is contacted only if you ask for it.",
            f"To examine a relay, use --relay URL or {RELAY_VARIABLE}. To examine {DEFAULT_RELAY}, use --public-relay.",
        )
        return
    if importlib.util.find_spec("websockets") is None:
        yield Finding(
            "relay",
            "skipped",
            "Not examined: this needs the package websockets, which is not installed.",
            "To pair over a relay, install it with pip install 'amesh-django[cli]'.",
        )
        return
    try:
        address = DEFAULT_RELAY if public else relay_address(given)
        asyncio.run(_knock(address, seconds))
    except (RateLimited, RelayFull) as error:
        yield Finding("relay", "warning", f"It answers, but accepts no connection now: {error.message}", error.hint)
    except PairingError as error:
        yield Finding.of_error("relay", error)
    else:
        trusted = ", and its certificate is trusted" if address.startswith("wss:") else ""
        yield Finding("relay", "ok", f"{clean_line(address)} answers{trusted}.")

"""The check of a relay: it opens a connection, and sends nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator

from authmesh.pairing.wire.link import open_socket
from authmesh.protocol.display import clean_line
from authmesh.protocol.pairing.errors import PairingError, RateLimited, RelayFull

from ..relays import RELAY_VARIABLE, relay_address
from ..words import joined
from .findings import Finding


async def _knock(address: str, seconds: float) -> None:
    """Open a WebSocket and close it. Nothing is sent, so this does not count towards the limits of the relay."""
    async with open_socket(address, seconds=seconds, patience=seconds):
        pass


def relay(given: str | None, seconds: float) -> Iterator[Finding]:
    """Examine whether the relay can be reached, and whether its certificate is trusted.

    Args:
        given: value of ``--relay``; None if the option was omitted.
        seconds: time limit.
    """
    is_named = given is not None or bool(os.environ.get(RELAY_VARIABLE, "").strip())
    if importlib.util.find_spec("websockets") is None:
        yield Finding(
            "relay",
            "skipped",
            "Not examined: this needs the package websockets, which is not installed.",
            "To pair over a relay, install it with pip install 'amesh-django[cli]'.",
        )
        return
    try:
        address = relay_address(given)
        asyncio.run(_knock(address, seconds))
    except (RateLimited, RelayFull) as error:
        yield Finding("relay", "warning", f"It answers, but accepts no connection now: {error.message}", error.hint)
    except PairingError as error:
        if is_named:
            yield Finding.of_error("relay", error)
        else:  # this machine may never pair over the public relay, and a server in a closed network often can't reach it
            hint = joined(error.hint, " If you do not pair, omit this check with --no-relay.")
            yield Finding("relay", "warning", error.message, hint)
    else:
        trusted = ", and its certificate is trusted" if address.startswith("wss:") else ""
        yield Finding("relay", "ok", f"{clean_line(address)} answers{trusted}.")

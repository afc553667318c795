"""Which relay a command talks to: ``--relay``, else ``AMESH_RELAY_URL``, else the public one (protocol.md §10)."""

from __future__ import annotations

import os

from authmesh.protocol.pairing.errors import InvalidRelayAddress
from authmesh.protocol.pairing.token import is_relay_address

from .spec import Option

DEFAULT_RELAY = "wss://relay.authmesh.dev/ws"

RELAY = Option(
    ("--relay",),
    f"Address of the relay; else AMESH_RELAY_URL, else {DEFAULT_RELAY}.",
    metavar="URL",
)
V1 = Option(
    ("--v1",),
    "Speak version 1, which a malicious relay can break: only for a peer that has nothing newer, over a relay that you trust.",
    "flag",
)


def relay_address(given: str | None) -> str:
    """The relay to be used.

    Args:
        given: value of ``--relay``; None where it was left out.

    Raises:
        InvalidRelayAddress: not an absolute ``ws://`` or ``wss://`` address.
    """
    address = given if given is not None else os.environ.get("AMESH_RELAY_URL", "").strip() or DEFAULT_RELAY
    if not is_relay_address(address):
        raise InvalidRelayAddress()
    return address

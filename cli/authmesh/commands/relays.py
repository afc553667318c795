"""The relay that a command talks to: ``--relay``, or ``AMESH_RELAY_URL``, or the public relay (protocol.md §10)."""

from __future__ import annotations

import os
from argparse import ArgumentParser

from authmesh.protocol.pairing.errors import InvalidRelayAddress
from authmesh.protocol.pairing.token import is_relay_address

DEFAULT_RELAY = "wss://relay.authmesh.dev/ws"
RELAY_VARIABLE = "AMESH_RELAY_URL"


def add_relay(parser: ArgumentParser) -> None:
    """Add the option that names the relay."""
    parser.add_argument(
        "--relay",
        metavar="URL",
        help=f"Address of the relay. Defaults to {RELAY_VARIABLE}, or {DEFAULT_RELAY} if {RELAY_VARIABLE} is not set.",
    )


def add_v1(parser: ArgumentParser) -> None:
    """Add the option for the first version of pairing."""
    parser.add_argument(
        "--v1",
        action="store_true",
        help="Use version 1 of the protocol, which a malicious relay can break. Use it only over a relay that you trust, and only if the "
        "other device supports nothing newer.",
    )


def relay_address(given: str | None) -> str:
    """Return the address of the relay to use.

    Args:
        given: value of ``--relay``; None if the option was omitted.

    Raises:
        InvalidRelayAddress: not an absolute ``ws://`` or ``wss://`` address.
    """
    address = given if given is not None else os.environ.get(RELAY_VARIABLE, "").strip() or DEFAULT_RELAY
    if not is_relay_address(address):
        raise InvalidRelayAddress()
    return address

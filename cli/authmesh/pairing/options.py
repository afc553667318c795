"""The options of a pairing: the relay, this device, where the peer is stored, and how long to wait."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from authmesh.device import AllowList, LocalDevice
from authmesh.files.clock import utc_now
from authmesh.protocol.pairing.codes import CODE_SECONDS

T = TypeVar("T")

#: A version of the pairing protocol (protocol.md §6 and §6b).
Version = Literal[1, 2]


class Blocking(Protocol):
    """Run a function that blocks (files, database, key store) without blocking the event loop."""

    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The longest waits, in seconds.

    Attributes:
        connect: until the relay accepts the connection.
        relay: until the relay answers, or reads what is sent.
        peer: on the target, until a controller uses the one-time code.
        message: until the program on the other device answers.
        person: until a person answers, on this device or on the other one.
        farewell: until the other device closes its connection first.
    """

    connect: float = 10
    relay: float = 30
    peer: float = CODE_SECONDS
    message: float = 30
    person: float = 90
    farewell: float = 2


@dataclass(frozen=True, kw_only=True)
class PairingOptions:
    """Everything about a pairing that is known before it starts.

    Attributes:
        relay: ``ws://`` or ``wss://`` address of the relay.
        device: this device.
        allow_list: the allow list that the peer is added to.
        version: version of the pairing protocol. Use 1, which a malicious relay can break, only if the operator asks for it.
        timeouts: the longest waits.
        now: the clock.
        tls: the trusted certificates. Defaults to those of the system.
        blocking: runs functions that block. Defaults to a thread; Django passes one that manages its database connections.
    """

    relay: str
    device: LocalDevice
    allow_list: AllowList
    version: Version = 2
    timeouts: Timeouts = field(default_factory=Timeouts)
    now: Callable[[], dt.datetime] = utc_now
    tls: ssl.SSLContext | None = None
    blocking: Blocking = asyncio.to_thread

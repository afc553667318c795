"""One WebSocket to a relay. The relay is trusted with forwarding only; each way in which it can fail has its own error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from authmesh.protocol.display import clean_line
from authmesh.protocol.pairing.codes import MAX_MESSAGE_BYTES
from authmesh.protocol.pairing.errors import (
    InvalidRelayAddress,
    MessageTooBig,
    PairingError,
    RateLimited,
    RelayCertificateNotTrusted,
    RelayClosed,
    RelayFull,
    RelayProtocolViolation,
    RelaySilent,
    RelayUnreachable,
)
from authmesh.protocol.pairing.token import is_relay_address

from .frames import Frame, parse_frame

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

# At DEBUG, websockets logs every frame, including one-time codes. No configuration of the root logger may enable that.
_quiet = logging.getLogger("amesh_django.pairing.websocket")
_quiet.setLevel(logging.WARNING)

_PROTOCOL_ERRORS = (1002, 1003, 1007)
_POLICY = 1008
_TOO_BIG = 1009
_TRY_LATER = 1013


def check_address(address: str) -> str:
    """Return *address* if it is the address of a relay.

    Raises:
        InvalidRelayAddress: *address* is not an absolute ``ws://`` or ``wss://`` address.
    """
    if not is_relay_address(address):
        raise InvalidRelayAddress()
    return address


def _connect(address: str, *, open_timeout: float, tls: ssl.SSLContext | None) -> Any:
    """Return an awaitable as ``websockets.connect`` does, but follow no redirect: only the named relay may be connected to."""
    try:
        from websockets.asyncio.client import connect
    except ImportError:
        raise RelayUnreachable(
            "The package websockets, which connects to relays, is not installed.",
            hint="Install it: pip install 'amesh-django[cli]'.",
        ) from None

    class Connect(connect):
        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    options: dict[str, Any] = {"ssl": tls} if tls is not None and address.startswith("wss:") else {}
    return Connect(
        address,
        open_timeout=open_timeout,
        close_timeout=2,
        max_size=MAX_MESSAGE_BYTES,
        compression=None,
        user_agent_header=None,
        logger=_quiet,
        **options,
    )


class RelaySocket:
    """An open connection to a relay, made by :func:`open_socket`."""

    def __init__(self, connection: ClientConnection, patience: float) -> None:
        self._connection = connection
        self._patience = patience

    async def send(self, frame: str) -> None:
        """Send a frame.

        Args:
            frame: text made by :mod:`.frames`.

        Raises:
            RelayClosed, RelayFull, MessageTooBig, RelayProtocolViolation: the connection is closed.
            RelaySilent: the relay does not read.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(self._patience):
                await self._connection.send(frame)
        except ConnectionClosed as closed:
            raise _why_closed(closed) from None
        except TimeoutError:
            raise RelaySilent() from None

    async def receive(self, seconds: float | None = None, silent: type[PairingError] = RelaySilent) -> Frame:
        """Return the next frame. Cancelling this loses no frame.

        Args:
            seconds: the longest wait. Defaults to no limit.
            silent: the error to raise if no frame comes in time.

        Raises:
            RelayClosed, RelayFull, MessageTooBig, RelayProtocolViolation: the connection is closed, or the message is not a frame.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(seconds):
                return parse_frame(await self._connection.recv())
        except ConnectionClosed as closed:
            raise _why_closed(closed) from None
        except TimeoutError:
            raise silent() from None


def _why_closed(closed: Any) -> PairingError:
    """Return the error that a ``ConnectionClosed`` of websockets means."""
    theirs = closed.rcvd.code if closed.rcvd else None
    ours = closed.sent.code if closed.sent and closed.rcvd_then_sent is not True else None
    if _TOO_BIG in (ours, theirs):
        return MessageTooBig()
    # A relay closes connections that read too slowly or ask for too much with 1008: that is no reason to distrust it.
    if ours in (*_PROTOCOL_ERRORS, _POLICY) or theirs in _PROTOCOL_ERRORS:
        return RelayProtocolViolation()
    return RelayFull() if theirs == _TRY_LATER else RelayClosed()


@contextlib.asynccontextmanager
async def open_socket(
    address: str, *, seconds: float, patience: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RelaySocket]:
    """Connect to a relay, and close the connection at the end.

    Args:
        address: ``ws://`` or ``wss://`` address.
        seconds: the longest time that connecting may take.
        patience: the longest time that sending a frame may take, in seconds.
        tls: the trusted certificates. Defaults to those of the system.

    Raises:
        InvalidRelayAddress: *address* is not the address of a relay.
        RelayUnreachable, RelayCertificateNotTrusted, RelaySilent, RateLimited, RelayFull: the connection cannot be made.
    """
    check_address(address)
    try:
        connection = await _connect(address, open_timeout=seconds, tls=tls)
    except (PairingError, asyncio.CancelledError):
        raise
    except Exception as error:  # any error of a network, a proxy or a server; websockets raises many kinds
        raise _why_unreachable(error, address) from None
    try:
        yield RelaySocket(connection, patience)
    finally:
        await connection.close()


def _why_unreachable(error: Exception, address: str) -> PairingError:
    """Return the error that an exception means that websockets raised while connecting."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, ProxyError

    at = urlsplit(address)
    shown = f"{at.scheme}://{at.netloc}{at.path}"
    check = "Check the address of the relay (--relay, AMESH_RELAY_URL)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return RelayCertificateNotTrusted(
            f"The TLS certificate of {shown} is not trusted on this machine: {clean_line(error.verify_message)}. Someone may be "
            "impersonating the relay.",
            hint=f"{check} and the clock of this machine. If it is your own relay, install the certificate of its authority.",
        )
    if isinstance(error, ssl.SSLError):
        return RelayUnreachable(
            f"{shown} does not use TLS correctly.", hint=f"{check}: without TLS, it starts with ws://."
        )
    without_tls = " If the relay does not use TLS, its address starts with ws://." if at.scheme == "wss" else ""
    if isinstance(error, TimeoutError):  # also our own relay, which waits for the rest of what it reads as HTTP
        return RelaySilent(
            f"{shown} does not answer.",
            hint=f"{check} and the network of this machine, or use another relay.{without_tls}",
        )
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status == 429:
            return RateLimited()
        if status == 503:
            return RelayFull()
        return RelayUnreachable(
            f"{shown} answers with HTTP status {status}, which a relay does not.",
            hint=f"{check}; its path is usually /ws.",
        )
    if isinstance(error, ProxyError):
        return RelayUnreachable(
            f"The proxy of this machine does not connect to {shown}.", hint="Check the proxy, or set NO_PROXY."
        )
    if isinstance(error, InvalidHandshake):
        return RelayUnreachable(f"The server at {shown} is not a relay.", hint=f"{check}.")
    why, more = str(getattr(error, "strerror", None) or type(error).__name__), ""
    if isinstance(error, socket.gaierror):
        why = "the name of the host does not exist"
    elif isinstance(error, ConnectionResetError | ConnectionAbortedError):
        why, more = "the server closes the connection at once", without_tls
    elif isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(
        error
    ):  # of one address, or of several
        why = "no server listens there"
    return RelayUnreachable(
        f"{shown} cannot be reached: {clean_line(why)}.", hint=f"{check} and the network of this machine.{more}"
    )

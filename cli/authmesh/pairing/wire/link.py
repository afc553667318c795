"""One WebSocket to a relay. The relay is trusted with nothing but forwarding; each way it can fail has its own error."""

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

# websockets writes every frame to its log at DEBUG, one-time codes and all. No configuration of the root may bring that about.
_quiet = logging.getLogger("amesh_django.pairing.websocket")
_quiet.setLevel(logging.WARNING)

_PROTOCOL_ERRORS = (1002, 1003, 1007)
_POLICY = 1008
_TOO_BIG = 1009
_TRY_LATER = 1013


def check_address(address: str) -> str:
    """*address*, if it is one of a relay.

    Raises:
        InvalidRelayAddress: not an absolute ``ws://`` or ``wss://`` address.
    """
    if not is_relay_address(address):
        raise InvalidRelayAddress()
    return address


def _connect(address: str, *, open_timeout: float, tls: ssl.SSLContext | None) -> Any:
    """``websockets.connect``, which here follows no redirect: the relay that was named is the one that is dialled."""
    try:
        from websockets.asyncio.client import connect
    except ImportError:
        raise RelayUnreachable(
            "Talking to a relay needs the package websockets. Install it: pip install 'amesh-django[cli]'."
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


class Link:
    """An open connection to a relay. Made by :func:`open_link`."""

    def __init__(self, connection: ClientConnection, patience: float) -> None:
        self._connection = connection
        self._patience = patience

    async def send(self, frame: str) -> None:
        """Send a frame.

        Args:
            frame: made by :mod:`.frames`.

        Raises:
            RelayClosed, RelayFull, MessageTooBig, RelayProtocolViolation: the connection is no more.
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
        """The next frame. May be cancelled without losing one.

        Args:
            seconds: how long to wait; None waits for as long as it takes.
            silent: what it means if nothing comes.

        Raises:
            RelayClosed, RelayFull, MessageTooBig, RelayProtocolViolation: the connection is no more, or what came is no frame.
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
    """What a ``ConnectionClosed`` of websockets means."""
    theirs = closed.rcvd.code if closed.rcvd else None
    ours = closed.sent.code if closed.sent and closed.rcvd_then_sent is not True else None
    if _TOO_BIG in (ours, theirs):
        return MessageTooBig()
    # With 1008 a relay closes connections that read too slowly or ask for too much: no reason to distrust it.
    if ours in (*_PROTOCOL_ERRORS, _POLICY) or theirs in _PROTOCOL_ERRORS:
        return RelayProtocolViolation()
    return RelayFull() if theirs == _TRY_LATER else RelayClosed()


@contextlib.asynccontextmanager
async def open_link(
    address: str, *, seconds: float, patience: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Link]:
    """A connection to the relay, closed at the end.

    Args:
        address: ``ws://`` or ``wss://``.
        seconds: how long dialling may take.
        patience: how long sending a frame may take, in seconds.
        tls: what certificates are trusted; None trusts those of the system.

    Raises:
        InvalidRelayAddress, RelayUnreachable, RelayCertificateNotTrusted, RelaySilent, RateLimited, RelayFull.
    """
    check_address(address)
    try:
        connection = await _connect(address, open_timeout=seconds, tls=tls)
    except (PairingError, asyncio.CancelledError):
        raise
    except Exception as error:  # whatever a network, a proxy or a server can do; websockets lets many kinds through
        raise _why_unreachable(error, address) from None
    try:
        yield Link(connection, patience)
    finally:
        await connection.close()


def _why_unreachable(error: Exception, address: str) -> PairingError:
    from websockets.exceptions import InvalidHandshake, InvalidStatus, ProxyError

    at = urlsplit(address)
    shown = f"{at.scheme}://{at.netloc}{at.path}"
    again = "Check the address (--relay, AMESH_RELAY_URL)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return RelayCertificateNotTrusted(
            f"The TLS certificate of {shown} is not trusted here: {clean_line(error.verify_message)}. {again} and this machine's "
            "clock; for a relay of your own, install the certificate of its authority. Someone may be pretending to be the relay."
        )
    if isinstance(error, ssl.SSLError):
        return RelayUnreachable(f"{shown} does not speak TLS as it should. {again}: without TLS it begins with ws://.")
    without_tls = "; without TLS its address begins with ws://" if at.scheme == "wss" else ""
    if isinstance(error, TimeoutError):  # as our own relay does, which waits for the rest of what it takes for HTTP
        return RelaySilent(
            f"{shown} does not answer{without_tls}. {again} and this machine's network, or choose another relay."
        )
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status == 429:
            return RateLimited()
        if status == 503:
            return RelayFull()
        return RelayUnreachable(
            f"{shown} answers with HTTP status {status} and not as a relay does. {again}; its path is usually /ws."
        )
    if isinstance(error, ProxyError):
        return RelayUnreachable(
            f"The proxy of this machine does not lead to {shown}. Check the proxy, or set NO_PROXY."
        )
    if isinstance(error, InvalidHandshake):
        return RelayUnreachable(f"What answers at {shown} is not a relay. {again}.")
    why = str(getattr(error, "strerror", None) or type(error).__name__)
    if isinstance(error, socket.gaierror):
        why = "there is no such name"
    elif isinstance(error, ConnectionResetError | ConnectionAbortedError):
        why = f"it closes the connection at once{without_tls}"
    elif isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(
        error
    ):  # one address, or each of several
        why = "nothing listens there"
    return RelayUnreachable(f"{shown} can't be reached: {clean_line(why)}. {again} and this machine's network.")

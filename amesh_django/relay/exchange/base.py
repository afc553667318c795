"""The interface of an exchange: the questions on which all processes of a relay must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Unavailable(Exception):
    """Redis cannot be reached. The call may or may not have had its effect."""


class Ref(NamedTuple):
    """The name of a connection.

    Attributes:
        process: the process that holds the connection.
        number: the number of the connection in that process. It is never used again.
    """

    process: str
    number: int


class Joined(NamedTuple):
    """A pairing whose two sides are matched.

    Attributes:
        session: the name of the session.
        peer: the target, which was waiting.
    """

    session: str
    peer: Ref


class Event(NamedTuple):
    """A message from one connection of the relay to another one, which clients do not see.

    Attributes:
        kind: the kind of event; :mod:`..hub.pairings` and :mod:`..hub.tokens` list them.
        about: the session, or the token.
        sender: the connection that an answer goes to.
        frame: the frame to forward to the client; "" if there is none.
    """

    kind: str
    about: str
    sender: Ref
    frame: str = ""

    def __repr__(self) -> str:
        """Leave out the frame, because this text may get into a log."""
        return f"Event({self.kind})"


class Local(Protocol):
    """The process that uses an exchange, as the exchange sees it. The hub implements it."""

    def arrive(self, number: int, event: Event) -> None:
        """Deliver an event to a connection of this process."""

    def connection_count(self) -> int:
        """Return the number of connections of this process."""

    def remote_processes(self) -> set[str]:
        """Return the other processes that connections of this process are involved with."""

    async def on_loss(self) -> None:
        """Handle a loss of Redis: events may have been lost, and Redis may have lost its memory."""

    async def on_return(self) -> None:
        """Handle the return of Redis."""

    async def on_gone(self, processes: set[str]) -> None:
        """Handle the end of other processes."""


class Exchange(Protocol):
    """What the processes of a relay agree on.

    Every decision is one step: if two processes ask at the same time, the answers are those of one call after the other. An answer
    that is text is an error code (protocol.md §6, §7). Every coroutine may raise :class:`Unavailable`.

    Attributes:
        process: the name of this process.
        others: the number of connections of all other processes.
    """

    process: str
    others: int

    def start(self, local: Local) -> None:
        """Start. The event loop must be running."""

    async def stop(self) -> None:
        """Stop."""

    async def refresh(self) -> None:
        """Bring :attr:`others` up to date, unless that was done a moment ago. Never raises :class:`Unavailable`."""

    async def open(self, code: str, session: str, me: Ref, address: str) -> str | None:
        """Let a target wait with a one-time code, unless the code is in use or burnt.

        Returns:
            None, or an error code: ``rate_limited`` (too many tries, or sessions, of the address or its network), ``otc_in_use``,
            ``relay_capacity``.
        """

    async def join(self, code: str, me: Ref, address: str) -> Joined | str:
        """Match a controller with the target that waits with a code. A failed try counts towards burning the code.

        Returns:
            the pairing, or an error code: ``rate_limited``, ``otc_not_found``, ``peer_already_connected``.
        """

    async def end(self, code: str, session: str) -> None:
        """End a session, matched or not. Its code is free again."""

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        """Start or renew a watch for a token.

        Returns:
            None, or an error code: ``rate_limited`` (too many tries, or watches, of the address or its network),
            ``jti_already_watched``, ``relay_capacity``.
        """

    async def unwatch(self, jti: str, me: Ref) -> None:
        """End a watch."""

    async def use(self, jti: str, address: str) -> Ref | str:
        """Use up a token. If the network of the address has its share of used tokens, the oldest of them is forgotten.

        Returns:
            the connection that watches for the token, or an error code: ``rate_limited``, ``token_already_used``, ``no_watcher``,
            ``relay_capacity``.
        """

    async def unuse(self, jti: str) -> None:
        """Make a token usable again, because its watcher was gone, or rejected the target."""

    async def restore_sessions(self, sessions: Sequence[tuple[str, str, Ref, float]]) -> list[str]:
        """Restore the waiting sessions of this process after a loss.

        Args:
            sessions: code, name, target and remaining seconds of each.

        Returns:
            the names of the sessions whose code another target has taken.
        """

    async def restore_watches(self, watches: Sequence[tuple[str, Ref, float]]) -> None:
        """Restore the watches of this process after a loss: token, watcher and remaining seconds of each."""

    async def send(self, to: Ref, event: Event) -> bool:
        """Send an event to a connection of another process: in order, and once. Return False if that process is gone."""

    async def sessions(self) -> int:
        """Return the number of sessions of all processes."""

"""What the processes of a relay have to agree on: one with itself (:mod:`.memory_exchange`), several in Redis (:mod:`.redis_exchange`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Unavailable(Exception):
    """The exchange can't be reached; what was asked may or may not have happened."""


class Ref(NamedTuple):
    """A connection.

    Attributes:
        process: that holds it.
        number: within that process; never given twice.
    """

    process: str
    number: int


class Joined(NamedTuple):
    """A pairing whose two sides have been brought together.

    Attributes:
        session: its name.
        peer: who has been waiting.
    """

    session: str
    peer: Ref


class Event(NamedTuple):
    """What one connection is told because of another one.

    Attributes:
        kind: what; see :mod:`.hub`.
        about: the session, or the token.
        sender: to whom an answer goes.
        frame: what is to be forwarded; "" if nothing is.
    """

    kind: str
    about: str
    sender: Ref
    frame: str = ""

    def __repr__(self) -> str:
        """Not what is forwarded: this may get into a log."""
        return f"Event({self.kind})"


class Local(Protocol):
    """What an exchange wants of the process that uses it."""

    def arrive(self, number: int, event: Event) -> None:
        """An event for one of its connections."""

    def connection_count(self) -> int:
        """How many connections it holds."""

    def remote_processes(self) -> set[str]:
        """The other processes that hold the other sides of its pairings."""

    async def on_loss(self) -> None:
        """Events may have been lost, and what the exchange knew may be gone."""

    async def on_return(self) -> None:
        """The exchange can be reached again."""

    async def on_gone(self, processes: set[str]) -> None:
        """These processes are no more."""


class Exchange(Protocol):
    """Every decision is one step: what two processes ask at the same time is answered as if one had asked first.

    An answer that is text is the code of the refusal (protocol.md §6, §7). Every method that asks may raise
    :class:`Unavailable`.

    Attributes:
        process: name of this process.
        others: how many connections the other processes hold.
    """

    process: str
    others: int

    def start(self, local: Local) -> None:
        """Begin. The event loop runs."""

    async def stop(self) -> None:
        """End."""

    async def refresh(self) -> None:
        """Bring :attr:`others` up to date, unless it was done a moment ago."""

    async def open(self, code: str, session: str, me: Ref, address: str) -> str | None:
        """A target waits for somebody to come with a code: ``rate_limited``, ``otc_in_use``, ``relay_capacity``, or None."""

    async def join(self, code: str, me: Ref, address: str) -> Joined | str:
        """A controller comes with a code: whom it has found, or ``rate_limited``, ``otc_not_found``, ``peer_already_connected``."""

    async def end(self, code: str, session: str) -> None:
        """A session is over, matched or not."""

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        """Watch for a token, or go on: ``rate_limited``, ``jti_already_watched``, ``relay_capacity``, or None."""

    async def unwatch(self, jti: str, me: Ref) -> None:
        """Watch no longer."""

    async def use(self, jti: str) -> Ref | str:
        """Burn a token: who watches for it, or ``token_already_used``, ``no_watcher``, ``relay_capacity``."""

    async def unuse(self, jti: str) -> None:
        """The watcher was gone already: nothing has been burnt."""

    async def restore_sessions(self, sessions: Sequence[tuple[str, str, Ref, float]]) -> list[str]:
        """After a loss, the waiting sessions that this process still has: code, name, who, seconds left.

        Returns:
            the names of those whose code somebody else has taken meanwhile.
        """

    async def restore_watches(self, watches: Sequence[tuple[str, Ref, float]]) -> None:
        """After a loss, the watches that this process still has: token, who, seconds left."""

    async def send(self, to: Ref, event: Event) -> bool:
        """Tell a connection of another process. In order, once. False if that process is no more."""

    async def sessions(self) -> int:
        """How many sessions there are."""

"""The exchange of a relay of several processes, in Redis."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ..addresses import wide_network
from ..conf import RelaySettings
from ..failures import report
from . import redis_scripts as scripts
from .base import Event, Joined, Local, Ref, Unavailable
from .redis_link import RedisLink

_BEAT_SECONDS: Final = 2.0
#: Time without a heartbeat after which a process counts as dead, even if Redis has not noticed.
_DEAD_MILLISECONDS: Final = 15_000
_FRESH_SECONDS: Final = 0.25


class RedisExchange:
    """The :class:`.base.Exchange` of a relay of several processes.

    Args:
        settings: the limits.
        url: the address of Redis.
    """

    def __init__(self, settings: RelaySettings, url: str) -> None:
        self.process = secrets.token_hex(8)
        self.others = 0
        self._settings = settings
        self._local: Local | None = None
        self._beaten = -_BEAT_SECONDS
        self._told = 0
        self._beating: asyncio.Task[None] | None = None
        # In braces, so that a Redis cluster keeps the keys of one script together.
        self._prefix = f"{{{settings.REDIS_PREFIX}}}:"
        self._link = RedisLink(
            url,
            channel=lambda process: f"{self._prefix}inbox:{process}",
            process=self.process,
            scripts=scripts.ALL,
            max_unsent=settings.MAX_UNSENT_BYTES_IN_ALL,
        )

    def _key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}{kind}:{name}" if name else f"{self._prefix}{kind}"

    def _tries(self, kind: str, address: str) -> list[str]:
        """Return the keys of the tries of an address and of its network."""
        return [self._key(kind, address), self._key(kind.upper(), wide_network(address))]

    def _limits(self, limit: int) -> tuple[int, int]:
        """Return the limits of an address and of its network."""
        return limit, limit * self._settings.ADDRESSES_PER_NETWORK

    def start(self, local: Local) -> None:
        self._local = local
        self._link.start(arrive=local.arrive, hello=self._beat, on_return=local.on_return, on_loss=local.on_loss)
        self._beating = asyncio.get_running_loop().create_task(self._keep_beating())

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await self._link.stop()

    # Processes.

    async def refresh(self) -> None:
        if time.monotonic() - self._beaten > _FRESH_SECONDS:
            with suppress(Unavailable):
                await self._beat()

    async def _beat(self) -> set[str]:
        self._beaten = time.monotonic()
        self._told = count = self._local.connection_count() if self._local is not None else 0
        others, *alive = await self._link.script(
            scripts.BEAT, [self._key("p")], self.process, count, _DEAD_MILLISECONDS
        )
        self.others = others
        return {name.decode() for name in alive}

    async def _keep_beating(self) -> None:
        """Send heartbeats regularly, and soon after the number of connections has changed."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(min(_FRESH_SECONDS, _BEAT_SECONDS))
            try:
                if time.monotonic() - looked >= _BEAT_SECONDS:
                    looked = time.monotonic()
                    await self._look_around()
                elif self._local is not None and self._local.connection_count() != self._told:
                    await self._beat()
            except Unavailable:
                pass
            except Exception as error:  # without heartbeats, the other processes would take this one for dead
                report(error)

    async def _look_around(self) -> None:
        """Send a heartbeat, and find out which processes that matter to this one are dead."""
        alive = await self._beat()
        local = self._local
        matter = local.remote_processes() if local is not None else set()
        if local is None or not matter:
            return
        names = sorted(matter)
        answer = await self._link.command("PUBSUB", "NUMSUB", *(f"{self._prefix}inbox:{name}" for name in names))
        gone = {name for name, listeners in zip(names, answer[1::2], strict=True) if not listeners or name not in alive}
        if gone:
            await local.on_gone(gone)

    async def send(self, to: Ref, event: Event) -> bool:
        return bool(await self._link.send(to, event))

    # Sessions.

    async def open(self, code: str, session: str, me: Ref, address: str) -> str | None:
        answer = await self._link.script(
            scripts.OPEN,
            [
                *self._tries("t", address),
                self._key("s", code),
                self._key("f", code),
                self._key("n"),
                self._key("n", wide_network(address)),
            ],
            *self._limits(self._settings.TRIES_PER_MINUTE),
            self._settings.MATCH_SECONDS * 1000,
            self._settings.MAX_SESSIONS,
            self._settings.TRIES_PER_CODE,
            session,
            *me,
            self._settings.SESSIONS_PER_NETWORK,
            (self._settings.MATCH_SECONDS + self._settings.FINISH_SECONDS) * 1000,
        )
        return answer.decode() or None

    async def join(self, code: str, me: Ref, address: str) -> Joined | str:
        answer = (
            await self._link.script(
                scripts.JOIN,
                [*self._tries("t", address), self._key("s", code), self._key("f", code), self._key("n")],
                *self._limits(self._settings.TRIES_PER_MINUTE),
                self._settings.FINISH_SECONDS * 1000,
                self._settings.BURNT_SECONDS * 1000,
            )
        ).decode()
        if " " not in answer:
            return str(answer)
        _, session, process, number = answer.split(" ")
        return Joined(session, Ref(process, int(number)))

    async def end(self, code: str, session: str) -> None:
        await self._link.script(scripts.END, [self._key("s", code), self._key("n")], session)

    async def sessions(self) -> int:
        return int(await self._link.script(scripts.COUNT, [self._key("n")]))

    async def restore_sessions(self, sessions: Sequence[tuple[str, str, Ref, float]]) -> list[str]:
        answers = await asyncio.gather(
            *(
                self._link.script(
                    scripts.RESTORE_SESSION, [self._key("s", code), self._key("n")], int(left * 1000) or 1, name, *me
                )
                for code, name, me, left in sessions
            )
        )
        return [name for (_, name, _, _), free in zip(sessions, answers, strict=True) if not free]

    # Tokens.

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        token = _token(jti)
        answer = await self._link.script(
            scripts.WATCH,
            [
                *self._tries("a", address),
                self._key("w", token),
                self._key("v"),
                self._key("v", wide_network(address)),
                self._key("p"),
            ],
            *self._limits(self._settings.WATCHES_PER_MINUTE),
            self._settings.WATCH_SECONDS * 1000,
            self._settings.MAX_SESSIONS,
            token,
            *me,
            self._settings.SESSIONS_PER_NETWORK,
        )
        return answer.decode() or None

    async def unwatch(self, jti: str, me: Ref) -> None:
        token = _token(jti)
        await self._link.script(scripts.UNWATCH, [self._key("w", token), self._key("v")], token, *me)

    async def use(self, jti: str, address: str) -> Ref | str:
        token, network = _token(jti), wide_network(address)
        answer = (
            await self._link.script(
                scripts.USE,
                [
                    *self._tries("i", address),
                    self._key("u"),
                    self._key("u", network),
                    self._key("o"),
                    self._key("w", token),
                ],
                *self._limits(self._settings.TOKENS_PER_MINUTE),
                self._settings.USED_TOKEN_SECONDS * 1000,
                self._settings.MAX_USED_TOKENS,
                token,
                network,
                self._settings.USED_TOKENS_PER_NETWORK,
            )
        ).decode()
        if " " not in answer:
            return str(answer)
        process, number = answer.split(" ")
        return Ref(process, int(number))

    async def unuse(self, jti: str) -> None:
        token = _token(jti)
        network = await self._link.command("HGET", self._key("o"), token)
        if network is not None:
            keys = [self._key("u"), self._key("u", network.decode()), self._key("o")]
            await self._link.script(scripts.UNUSE, keys, token)

    async def restore_watches(self, watches: Sequence[tuple[str, Ref, float]]) -> None:
        await asyncio.gather(
            *(
                self._link.script(
                    scripts.RESTORE_WATCH,
                    [self._key("w", token := _token(jti)), self._key("v")],
                    int(left * 1000) or 1,
                    token,
                    *me,
                )
                for jti, me, left in watches
            )
        )


def _token(jti: str) -> str:
    """Return the name of a token in Redis: a hash, because a token's own name must not be readable there, and may be long."""
    return hashlib.sha256(jti.encode("utf-8", "surrogatepass")).hexdigest()[:32]

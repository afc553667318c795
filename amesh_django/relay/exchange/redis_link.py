"""The way to Redis and back: one connection for commands, and a second one on which events of other processes arrive.

redis-py writes the commands and reads the replies, through its pipelines and its ``PubSub``. This module adds the policy:

1. Nothing is sent twice. redis-py neither retries a command nor reconnects. If a connection breaks, everything that has no reply
   yet raises :class:`.base.Unavailable`, and the caller decides what to do.
2. The two connections live and die together. An event may have been lost whenever either of them was, so the hub is always told.
3. Micro-batches: the commands and events of one turn of the event loop go out in one pipeline. The events for one process go out
   in one message.
4. A firewall may cut a connection on which nothing is sent, without a sign at this end. A ping every few seconds notices it.
5. An error that every message of a client can cause is logged at most every ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from ..failures import logger, report
from .base import Event, Ref, Unavailable
from .parcels import Mail, Parcel, pack, unpack

try:
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.client import PubSub
    from redis.asyncio.connection import AbstractConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
except ImportError:
    raise ImproperlyConfigured(
        "A relay of several processes needs Redis for Python. Install it: pip install 'amesh-django[relay]', or unset REDIS_URL."
    ) from None

#: Seconds that Redis may take to connect, and to answer a batch. It needs a few milliseconds.
_PATIENCE: Final = 5.0
#: Seconds between two pings on the subscription.
_PING_SECONDS: Final = 5.0
#: Seconds between two log lines about errors that Redis returned. Every message of a client may cause one.
_COMPLAINT_SECONDS: Final = 10.0
#: Seconds that a caller waits for the first connection of this process.
_START_PATIENCE: Final = 3.0
#: Seconds between the attempts to connect.
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
#: Commands, and events, in one batch.
_BATCH: Final = 500

#: The options of redis-py that the policy needs.
_OPTIONS: Final[dict[str, Any]] = {
    "protocol": 2,
    "decode_responses": False,
    # A batch has a timeout of its own, and a subscription may have nothing to receive for hours (redis-py 8 gives up after 5 seconds).
    "socket_timeout": None,
    "socket_connect_timeout": _PATIENCE,
    "health_check_interval": 0,
    "retry": Retry(NoBackoff(), 0),
}

Arrive = Callable[[int, Event], None]


class RedisLost(Exception):
    """A connection to Redis broke, or could not be made. The message is the name of the error, which holds no secret."""


class RedisLink:
    """The two connections of one process, made again whenever one of them breaks.

    Args:
        url: the address of Redis.
        channel: returns the name of the channel of a process.
        process: the name of this process.
        scripts: the scripts that :meth:`script` may run.
        max_unsent: the maximum number of characters of events that wait to be sent.
    """

    def __init__(
        self, url: str, *, channel: Callable[[str], str], process: str, scripts: Sequence[str], max_unsent: int
    ) -> None:
        try:
            pool = ConnectionPool.from_url(url, max_connections=1, **_OPTIONS)
        except ValueError:  # its text may hold the password
            raise ImproperlyConfigured(
                "REDIS_URL is not an address of Redis. Set it to redis://HOST:PORT/0, rediss://… or unix://…"
            ) from None
        options: dict[str, Any] = {**pool.connection_kwargs, "max_connections": pool.max_connections}
        if any(options.get(name) != value for name, value in [*_OPTIONS.items(), ("max_connections", 1)]):
            names = ", ".join([*_OPTIONS, "max_connections"])
            raise ImproperlyConfigured(f"Remove these options from REDIS_URL, because the relay sets them: {names}.")
        self._url = url
        self._channel = channel
        self._process = process
        self._scripts = scripts
        self._names: dict[str, str] = {}
        self._max_unsent = max_unsent
        self._calls: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._mail: list[Mail] = []
        self._mail_size = 0
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._tried = False
        self._was_up = False
        self._greeted = False
        self._heard = False
        self._complained = -math.inf
        self._task: asyncio.Task[None] | None = None

    def start(
        self,
        *,
        arrive: Arrive,
        hello: Callable[[], Awaitable[object]],
        on_return: Callable[[], Awaitable[None]],
        on_loss: Callable[[], Awaitable[None]],
    ) -> None:
        """Start connecting. The event loop must be running.

        Args:
            arrive: called with each event that another process sends.
            hello: awaited on each new pair of connections, before any other command is sent.
            on_return: awaited when Redis can be reached again after a loss.
            on_loss: awaited when Redis can no longer be reached.
        """
        self._arrive, self._hello, self._on_return, self._on_loss = arrive, hello, on_return, on_loss
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close both connections for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # What can be asked.

    async def script(self, script: str, keys: Sequence[str], *arguments: object) -> Any:
        """Run a script and return its result.

        Raises:
            Unavailable: Redis cannot be reached, or returned an error.
        """
        try:
            # By its name, and not as a Script object of redis-py: a pipeline would ask Redis first whether it knows the script.
            return await self.command("EVALSHA", self._names.get(script, "-"), len(keys), *keys, *arguments)
        except NoScriptError:  # somebody ran SCRIPT FLUSH
            return await self.command("EVAL", script, len(keys), *keys, *arguments)

    async def command(self, *words: Any) -> Any:
        """Run a command and return its reply.

        Raises:
            Unavailable: Redis cannot be reached, or returned an error.
            NoScriptError: Redis does not know the script.
        """
        await self._ready()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.append((words, future))
        self._wake.set()
        return await future

    async def send(self, to: Ref, event: Event) -> bool:
        """Send an event to a connection of another process. Return False if that process is not subscribed.

        Raises:
            Unavailable: Redis cannot be reached, or too many events wait to be sent.
        """
        await self._ready()
        size = len(event.frame)
        if self._mail and self._mail_size + size > self._max_unsent:
            raise Unavailable("full")
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._mail.append((to, event, future))
        self._mail_size += size
        self._wake.set()
        return await future

    async def _ready(self) -> None:
        if self._up.is_set():
            return
        if self._tried or self._task is None or self._task.done():
            raise Unavailable("down")
        try:
            async with asyncio.timeout(_START_PATIENCE):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable("not up yet") from None

    # The two connections.

    async def _run(self) -> None:
        attempt = 0
        while True:
            self._greeted = False
            try:
                await self._live()
            except Exception as error:  # a bug must not end the connection to Redis for good
                self._tried = True
                if not isinstance(error, RedisLost):
                    report(error)
                elif attempt in (0, 10) or attempt % 100 == 0:
                    logger.warning(
                        "Cannot reach Redis (%s). Pairings between processes were ended, and new ones are rejected until Redis can be "
                        "reached again. Check REDIS_URL, and that Redis is running.",
                        error,
                    )
            if self._greeted:
                attempt = 0
            if self._up.is_set():
                self._up.clear()
                await self._on_loss()
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    async def _live(self) -> None:
        """Make both connections, and serve until one of them breaks.

        Raises:
            RedisLost: always, but for a bug.
        """
        connections: list[AbstractConnection] = []
        tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            commands, events = self._client(connections), self._client(connections).pubsub()
            await self._open(commands, events)
            lives = (self._write(commands), self._read(events), self._keep_hearing(events))
            tasks = [loop.create_task(life) for life in lives]
            self._up.set()
            self._wake.set()
            await self._hello()
            self._greeted = True
            if self._was_up:
                logger.info("Redis can be reached again.")
                tasks.append(loop.create_task(self._returned()))
            self._was_up = True
            await asyncio.wait(tasks[: len(lives)], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks[: len(lives)]:
                if task.done():
                    task.result()
        except Unavailable:
            raise RedisLost("no answer") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._fail()
            for connection in connections:
                await connection.disconnect(nowait=True)

    def _client(self, connections: list[AbstractConnection]) -> Redis:
        """Return a client with a single connection, which connects once and is appended to *connections*.

        A pool and a ``PubSub`` reconnect by themselves when they find their connection closed. That would hide a loss.
        """

        async def connect_once(connection: AbstractConnection) -> None:
            if connection in connections:
                raise RedisConnectionError("reconnected")
            connections.append(connection)
            await connection.on_connect()

        pool = ConnectionPool.from_url(self._url, max_connections=1, redis_connect_func=connect_once, **_OPTIONS)
        return Redis(connection_pool=pool)

    async def _returned(self) -> None:
        await self._on_return()

    async def _open(self, commands: Redis, events: PubSub) -> None:
        with _losing():
            async with asyncio.timeout(_PATIENCE):
                await events.subscribe(self._channel(self._process))
                await events.get_message(timeout=None)  # Redis has confirmed the subscription
                pipeline = commands.pipeline(transaction=False)
                for script in self._scripts:
                    pipeline.script_load(script)
                self._names = dict(zip(self._scripts, await pipeline.execute(), strict=True))

    async def _read(self, events: PubSub) -> None:
        with _losing():
            async for message in events.listen():
                self._heard = True
                if message["type"] == "message":
                    self._take(message["data"])

    def _take(self, data: bytes) -> None:
        try:
            events = unpack(data)
        except ValueError:
            logger.error(
                "A message that is not an event came through Redis, and was ignored. If another version of the relay uses the same "
                "Redis, give one of them another AMESH['RELAY']['REDIS_PREFIX']."
            )
            return
        for number, event in events:
            self._arrive(number, event)

    async def _keep_hearing(self, events: PubSub) -> None:
        """Notice a subscription that was cut without a sign at this end."""
        with _losing():
            while True:
                self._heard = False
                await events.ping()
                await asyncio.sleep(_PING_SECONDS)
                if not self._heard:
                    raise TimeoutError

    async def _write(self, commands: Redis) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # what other tasks send in this turn of the event loop goes into the same batch
            while self._calls or self._mail:
                calls, self._calls = self._calls[:_BATCH], self._calls[_BATCH:]
                mail, self._mail = self._mail[:_BATCH], self._mail[_BATCH:]
                self._mail_size -= sum(len(event.frame) for _, event, _ in mail)
                try:
                    await self._send_batch(commands, calls, pack(mail))
                finally:
                    _fail([*(future for _, future in calls), *(future for _, _, future in mail)])

    async def _send_batch(
        self, commands: Redis, calls: list[tuple[tuple[Any, ...], asyncio.Future[Any]]], parcels: list[Parcel]
    ) -> None:
        pipeline = commands.pipeline(transaction=False)
        for words, _ in calls:
            pipeline.execute_command(*words)
        for process, text, _ in parcels:
            pipeline.publish(self._channel(process), text)
        with _losing():
            async with asyncio.timeout(_PATIENCE):
                replies = await pipeline.execute(raise_on_error=False)
        waiting = [[future] for _, future in calls] + [futures for _, _, futures in parcels]
        for reply, futures in zip(replies, waiting, strict=True):
            if isinstance(reply, ReadOnlyError):  # another server is the primary one now
                raise RedisLost(type(reply).__name__)
            if isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError):
                self._complain(reply)
                reply = Unavailable("refused")
            for future in futures:
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_SECONDS:
            self._complained = now
            logger.error(
                "Redis returned an error (%s). The relay needs Redis 5 or later, with free memory.", str(error)[:40]
            )

    def _fail(self) -> None:
        futures: list[asyncio.Future[Any]] = [future for _, future in self._calls]
        futures += [future for _, _, future in self._mail]
        self._calls, self._mail, self._mail_size = [], [], 0
        _fail(futures)


def _fail(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Raise :class:`.base.Unavailable` in every caller that has no reply yet."""
    for future in futures:
        if not future.done():
            future.set_exception(Unavailable("lost"))


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Turn every error that breaks a connection into :class:`RedisLost`."""
    try:
        yield
    except (RedisError, OSError, EOFError, TimeoutError) as error:
        raise RedisLost(type(error).__name__) from None

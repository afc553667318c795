"""The way to Redis and back: commands in order over one connection, events of other processes over a second one.

Nothing is sent twice: what was on its way when a connection broke is :class:`.exchange.Unavailable`, and whoever asked decides. Both
connections live and die together, so that an event that was lost is always noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from ..failures import logger, report
from .base import Event, Ref, Unavailable

#: How long Redis may take for what it does in a millisecond.
_PATIENCE: Final = 5.0
#: How often it is asked to say something on the connection for events.
_PING_SECONDS: Final = 5.0
#: How often the log says that Redis refuses. Each message of a client may be the reason.
_COMPLAINT_SECONDS: Final = 10.0
#: How long whoever asks waits for a connection that is just being made.
_START_PATIENCE: Final = 3.0
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
#: Commands and events that are sent at once.
_BATCH: Final = 500
#: Events that are published in one message, in characters.
_PARCEL: Final = 256 * 1024

Arrive = Callable[[int, Event], None]


class Lost(Exception):
    """A connection to Redis broke, or could not be made."""


class Link:
    """See the module.

    Args:
        url: of Redis.
        channel: makes the name of a process's channel.
        process: name of this one.
        scripts: that are going to be called.
        most: characters of events that may wait to be sent.
    """

    def __init__(
        self, url: str, *, channel: Callable[[str], str], process: str, scripts: Sequence[str], most: int
    ) -> None:
        try:
            from redis.asyncio import ConnectionPool
        except ImportError:
            raise ImproperlyConfigured(
                "A relay of several processes needs Redis for Python. Install it: pip install 'amesh-django[relay]', or take "
                "REDIS_URL away."
            ) from None
        options = {
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": None,
            "socket_connect_timeout": _PATIENCE,
            "health_check_interval": 0,
        }
        try:
            self._pool: Any = ConnectionPool.from_url(url, **options)
        except ValueError:  # its text may hold the password
            raise ImproperlyConfigured(
                "REDIS_URL is not an address of Redis. Set it to redis://HOST:PORT/0, rediss://… or unix://…"
            ) from None
        if any(self._pool.connection_kwargs.get(name) != value for name, value in options.items()):
            raise ImproperlyConfigured(
                f"Take these options out of REDIS_URL, the relay sets them: {', '.join(options)}."
            )
        self._channel = channel
        self._process = process
        self._scripts = scripts
        self._names: dict[str, bytes] = {}
        self._most = most
        self._calls: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._mail: list[tuple[Ref, Event, asyncio.Future[bool]]] = []
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
        """Begin.

        Args:
            arrive: takes what other processes send.
            hello: is done on each new connection before anybody else gets it.
            on_return: is told when it can be used again after a loss.
            on_loss: is told when it no longer can.
        """
        self._arrive, self._hello, self._on_return, self._on_loss = arrive, hello, on_return, on_loss
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # What can be asked.

    async def script(self, script: str, keys: Sequence[str], *arguments: object) -> Any:
        """Run a script.

        Raises:
            Unavailable: Redis can't be reached, or refuses.
        """
        from redis.exceptions import NoScriptError

        try:
            return await self.command("EVALSHA", self._names.get(script, b"-"), len(keys), *keys, *arguments)
        except NoScriptError:  # somebody said SCRIPT FLUSH
            return await self.command("EVAL", script, len(keys), *keys, *arguments)

    async def command(self, *words: Any) -> Any:
        """Run a command.

        Raises:
            Unavailable: Redis can't be reached, or refuses.
            NoScriptError: it does not know the script.
        """
        await self._ready()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.append((words, future))
        self._wake.set()
        return await future

    async def send(self, to: Ref, event: Event) -> bool:
        """Tell a connection of another process. False if nobody listens there.

        Raises:
            Unavailable: Redis can't be reached; or too much waits already.
        """
        await self._ready()
        size = len(event.frame)
        if self._mail and self._mail_size + size > self._most:
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
            except Exception as error:  # a bug must not take the way to Redis away for good
                self._tried = True
                if not isinstance(error, Lost):
                    report(error)
                elif attempt in (0, 10) or attempt % 100 == 0:
                    logger.warning(
                        "Redis can't be reached (%s). Pairings between processes end, new ones are refused until it can. Check "
                        "REDIS_URL, and that Redis runs.",
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
        """Until it breaks."""
        asking, listening = self._pool.make_connection(), self._pool.make_connection()
        tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            await self._open(asking, listening)
            lives = (self._write(asking), self._read(listening), self._keep_hearing(listening))
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
            raise Lost("no answer") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._fail()
            for connection in (asking, listening):
                await connection.disconnect(nowait=True)

    async def _returned(self) -> None:
        await self._on_return()

    async def _open(self, asking: Any, listening: Any) -> None:
        with _losing():
            async with asyncio.timeout(_PATIENCE):
                await listening.connect()
                await listening.send_command("SUBSCRIBE", self._channel(self._process), check_health=False)
                await listening.read_response()
                await asking.connect()
                for script in self._scripts:
                    await asking.send_command("SCRIPT LOAD", script, check_health=False)
                    self._names[script] = await asking.read_response()

    async def _read(self, connection: Any) -> None:
        with _losing():
            while True:
                kind, *about = await connection.read_response()
                self._heard = True
                if kind != b"message":
                    continue
                _, data = about
                try:
                    events = [
                        (number, Event(name, about, Ref(process, sender), frame))
                        for number, name, about, process, sender, frame in json.loads(data)
                    ]
                except (ValueError, TypeError):
                    logger.error(
                        "Something that is no event came through Redis. If another version of the relay uses it, give one of them "
                        "another AMESH['RELAY']['REDIS_PREFIX']."
                    )
                    continue
                for number, event in events:
                    self._arrive(number, event)

    async def _keep_hearing(self, connection: Any) -> None:
        """A connection over which nothing is sent may be cut on the way without a word to this side, which would be deaf then."""
        with _losing():
            while True:
                self._heard = False
                await connection.send_command("PING", check_health=False)
                await asyncio.sleep(_PING_SECONDS)
                if not self._heard:
                    raise TimeoutError

    async def _write(self, connection: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # what others want to say this very moment goes along
            while self._calls or self._mail:
                calls, self._calls = self._calls[:_BATCH], self._calls[_BATCH:]
                mail, self._mail = self._mail[:_BATCH], self._mail[_BATCH:]
                self._mail_size -= sum(len(event.frame) for _, event, _ in mail)
                try:
                    parcels = _parcels(mail)
                    commands = [words for words, _ in calls]
                    commands += [("PUBLISH", self._channel(process), text) for process, text, _ in parcels]
                    waiting = [[future] for _, future in calls] + [futures for _, _, futures in parcels]
                    await self._exchange(connection, commands, waiting)
                finally:
                    _fail([*(future for _, future in calls), *(future for _, _, future in mail)])

    async def _exchange(
        self, connection: Any, commands: list[tuple[Any, ...]], waiting: list[list[asyncio.Future[Any]]]
    ) -> None:
        from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

        with _losing():
            async with asyncio.timeout(_PATIENCE):
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                for futures in waiting:
                    error: Exception | None = None
                    answer: Any = None
                    try:
                        answer = await connection.read_response()
                    except ReadOnlyError:  # the main server is another one now
                        raise
                    except NoScriptError as unknown:
                        error = unknown
                    except ResponseError as refused:
                        self._complain(refused)
                        error = Unavailable("refused")
                    for future in futures:
                        if future.done():
                            continue
                        if error is not None:
                            future.set_exception(error)
                        else:
                            future.set_result(answer)

    def _complain(self, refused: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_SECONDS:
            self._complained = now
            logger.error("Redis refuses (%s). It needs version 5 or later, and memory to spare.", str(refused)[:40])

    def _fail(self) -> None:
        futures: list[asyncio.Future[Any]] = [future for _, future in self._calls]
        futures += [future for _, _, future in self._mail]
        self._calls, self._mail, self._mail_size = [], [], 0
        _fail(futures)


def _fail(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Those that have no answer get none."""
    for future in futures:
        if not future.done():
            future.set_exception(Unavailable("lost"))


def _parcels(
    mail: list[tuple[Ref, Event, asyncio.Future[bool]]],
) -> list[tuple[str, str, list[asyncio.Future[Any]]]]:
    """Events for the same process go in one message, as long as that does not get too long."""
    parcels: list[tuple[str, list[tuple[Any, ...]], list[asyncio.Future[Any]]]] = []
    open_parcels: dict[str, tuple[int, int]] = {}
    for to, event, future in mail:
        place, size = open_parcels.get(to.process, (-1, 0))
        if place < 0 or size + len(event.frame) > _PARCEL:
            place, size = len(parcels), 0
            parcels.append((to.process, [], []))
        open_parcels[to.process] = (place, size + len(event.frame))
        parcels[place][1].append((to.number, event.kind, event.about, *event.sender, event.frame))
        parcels[place][2].append(future)
    return [(process, json.dumps(events), futures) for process, events, futures in parcels]


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Whatever breaks a connection is :class:`Lost`."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError, EOFError, TimeoutError) as error:
        raise Lost(type(error).__name__) from None

"""Helpers for tests of bootstrap tokens: a controller with its tokens, a target, and a relay between them that may be malicious."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.pairing import Timeouts
from authmesh.pairing.bootstrap.controller import Pace, Provisioning, Watcher
from authmesh.pairing.bootstrap.enrolment import Enrolled, Enrolment
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.pairing.errors import PairingError
from authmesh.protocol.pairing.token import build_token, verify_token

Frame = dict[str, Any]
Raw = Frame | str | bytes | int

#: Long enough for a busy machine. A test that needs a timeout sets its own.
PATIENT = Timeouts(connect=30, relay=30, message=30)
BRISK = Pace(renew=200, look=0.02, again=0.1, first=0.01, longest=0.2)


@dataclass
class Clock:
    """A clock that a test can set."""

    ahead: float = 0

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.ahead)


@dataclass
class Notes(Watcher):
    """Collect the reports for a front end."""

    said: list[tuple[str, Any]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def _say(self, what: str, about: Any) -> None:
        self.said.append((what, about))
        self.came.set()

    def watching(self, token: StoredToken) -> None:
        self._say("watching", token.jti)

    def elsewhere(self, token: StoredToken) -> None:
        self._say("elsewhere", token.jti)

    def refused(self, token: StoredToken, error: AmeshError) -> None:
        self._say("refused", error.code)

    def enrolled(self, token: StoredToken, entry: DeviceEntry) -> None:
        self._say("enrolled", entry)

    def stored(self, token: StoredToken, entry: DeviceEntry) -> None:
        self._say("stored", entry)

    def ended(self, token: StoredToken) -> None:
        self._say("ended", token.jti)

    def lost(self, relay: str, error: PairingError, seconds: float) -> None:
        self._say("lost", error.code)

    def of(self, what: str) -> list[Any]:
        return [about for said, about in self.said if said == what]

    async def until(self, what: str, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while len(self.of(what)) < count:
                self.came.clear()
                await self.came.wait()


class Controller:
    """A device that makes tokens and waits for targets."""

    def __init__(self, path: Path, relay: str, *, clock: Clock | None = None) -> None:
        self.device: LocalDevice = EphemeralDevice("laptop").write(path)
        self.relay = relay
        self.clock = clock or Clock()
        self.store = TokenStore(path)
        self.allow_list = FileAllowList(self.device)

    def token(self, name: str = "web-1", *, lifetime: int = 3600, relay: str | None = None) -> str:
        """Make a token."""
        now = self.clock().timestamp()
        text = build_token(
            public_key=self.device.identity.public_key,
            name=name,
            relay=relay or self.relay,
            issued_at=int(now),
            lifetime=lifetime,
            sign=self.device.sign,
        )
        self.store.add(verify_token(text, now=now), now)
        return text

    def provisioning(self, **options: Any) -> Provisioning:
        return Provisioning(
            **{
                "relay": self.relay,
                "device": self.device,
                "allow_list": self.allow_list,
                "store": self.store,
                "watcher": Notes(),
                "now": self.clock,
                "pace": BRISK,
                "timeouts": PATIENT,
                **options,
            }
        )

    @contextlib.asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[Notes]:
        """Wait for targets in the background."""
        provisioning = self.provisioning(**options)
        notes = provisioning.watcher
        assert isinstance(notes, Notes)
        task = asyncio.ensure_future(provisioning.serve())
        try:
            yield notes
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def targets(self) -> list[DeviceEntry]:
        return self.allow_list.read()


def jti_of(text: str) -> str:
    return verify_token(text, now=time.time()).jti


class Target:
    """A machine without an identity."""

    def __init__(self, path: Path, *, clock: Clock | None = None, **options: Any) -> None:
        self.path = path
        self.enrolment = Enrolment(
            **{
                "directory": path,
                "environ": {},
                "timeouts": PATIENT,
                "first": 0.05,
                "longest": 0.2,
                "now": clock or Clock(),
                **options,
            }
        )

    async def come(self, text: str, *, seconds: float | None = 0) -> Enrolled:
        """Make one attempt, or repeat attempts for this many seconds."""
        return await asyncio.to_thread(lambda: self.enrolment.run(text, seconds=seconds))

    @property
    def written(self) -> list[str]:
        """Return all files in the directory, except locks."""
        found = (str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
        return sorted(name for name in found if not name.endswith(".lock"))

    def check(self, controller: Controller) -> LocalDevice:
        """Check that the identity is complete, that the device trusts the controller, and that no staging folder is left."""
        device = LocalDevice(self.path, environ=dict(self.enrolment.environ))
        (entry,) = FileAllowList(device).read()
        assert (entry.public_key, entry.role) == (controller.device.identity.public_key, "controller")
        name = device.identity.device_id
        assert self.written == [".passphrase", "allow_list.json", "identity.json", f"keys/{name}.key.json"]
        assert {oct((self.path / name).stat().st_mode & 0o777) for name in self.written} <= {"0o600", "0o400"}
        return device


Hook = Callable[[Frame], "list[Raw]"]


@dataclass
class BootstrapRelay:
    """A relay for tokens, over real sockets. It is honest unless a test sets a hook.

    Attributes:
        init: frames that the watcher gets instead of an init.
        instead: frames that a target gets instead of an answer; the watcher gets none then.
        answer: frames that the target gets instead of the answer of the watcher.
        watch: frames that the watcher gets instead of ``bootstrap_watching``.
        burns: True to remember used tokens.
        seen: every frame received.
    """

    init: Hook | None = None
    instead: list[Raw] | None = None
    answer: Hook | None = None
    watch: Hook | None = None
    burns: bool = True
    seen: list[Frame] = field(default_factory=list)
    url: str = ""
    sockets: list[ServerConnection] = field(default_factory=list)
    _watchers: dict[str, ServerConnection] = field(default_factory=dict)
    _askers: dict[str, ServerConnection] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BootstrapRelay]:
        async with serve(self._serve, "127.0.0.1", 0, compression=None, close_timeout=0.5, max_size=None) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"
            yield self

    async def _serve(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        try:
            async for text in socket:
                frame: Frame = json.loads(text)
                self.seen.append(frame)
                await getattr(self, f"_on_{frame['type'].removeprefix('bootstrap_')}")(socket, frame)
        except ConnectionClosed:
            pass
        finally:
            self._watchers = {jti: other for jti, other in self._watchers.items() if other is not socket}

    async def _on_watch(self, socket: ServerConnection, frame: Frame) -> None:
        jti = frame["jti"]
        if self.watch is not None:
            await say(socket, self.watch(frame))
        elif self._watchers.setdefault(jti, socket) is not socket:
            await say(socket, [{"type": "error", "code": "jti_already_watched"}])
        else:
            await say(socket, [{"type": "bootstrap_watching", "jti": jti}])

    async def _on_init(self, socket: ServerConnection, frame: Frame) -> None:
        jti = frame["jti"]
        if self.instead is not None:
            await say(socket, self.instead)
        elif jti in self._used:
            await say(socket, [{"type": "bootstrap_reject", "error": "token_already_used"}])
        elif jti not in self._watchers:
            await say(socket, [{"type": "bootstrap_reject", "error": "no_watcher"}])
        else:
            if self.burns:
                self._used.add(jti)
            self._askers[jti] = socket
            await say(self._watchers[jti], self.init(frame) if self.init else [frame])

    async def _answer(self, socket: ServerConnection, frame: Frame) -> None:
        if frame["type"] == "bootstrap_ack":
            frame = {**frame, "controllerPubKey": frame["publicKey"]}
            del frame["publicKey"]
        self._watchers.pop(frame["jti"], None)
        if (asker := self._askers.pop(frame["jti"], None)) is not None:
            await say(asker, self.answer(frame) if self.answer else [frame])

    _on_ack = _on_reject = _answer


async def say(socket: ServerConnection, what: list[Raw]) -> None:
    with contextlib.suppress(ConnectionClosed):
        for raw in what:
            if isinstance(raw, int):
                await socket.close(raw)
            else:
                await socket.send(json.dumps(raw) if isinstance(raw, dict) else raw)


def without_ours() -> dict[str, str]:
    """Return the environment of this process without the variables that tests must not inherit."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AMESH", "AUTH_MESH", "TEST_"))}

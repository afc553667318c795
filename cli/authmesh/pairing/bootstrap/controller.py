"""The controller's end of bootstrap tokens: wait at a relay for whoever comes with one, verify it, store it, say so."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from authmesh.device import AllowList, LocalDevice
from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.files.clock import utc_now
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import b64decode, b64encode
from authmesh.protocol.errors import AmeshError, InvalidInput
from authmesh.protocol.keys import decode_public_key, encode_public_key, load_public_key, verify_signature
from authmesh.protocol.pairing.errors import (
    AlreadyWatched,
    InvalidInit,
    OwnKey,
    PairingError,
    ProofRequired,
    RateLimited,
    RelayProtocolViolation,
    RelaySilent,
    StoreFailed,
    TokenAlreadyUsed,
    TokenNotFound,
    TokenNotTaken,
    TokenWithdrawn,
)
from authmesh.protocol.pairing.token import acknowledgement_message, init_message, verify_init, verify_token

from ..backoff import Backoff
from ..client import Blocking, Timeouts
from ..wire import frames
from ..wire.link import Link, open_link

#: How much of what no honest device sends is heard on one connection.
MOST_STRANGE = 20


class _Tick(PairingError):
    """Nothing has come; time to look at the clock."""


class Watcher:
    """What a front end is told. Each method does nothing unless it is overridden."""

    def watching(self, token: StoredToken) -> None:
        """The relay has the token now; called once for each connection."""

    def elsewhere(self, token: StoredToken) -> None:
        """Another connection waits for this token."""

    def refused(self, token: StoredToken, error: AmeshError) -> None:
        """Somebody came with this token and was not let in."""

    def enrolled(self, token: StoredToken, entry: DeviceEntry) -> None:
        """A device is stored, and its acknowledgement is on its way."""

    def ended(self, token: StoredToken) -> None:
        """This token is not waited for any more: it has expired, was withdrawn, or another process has served it."""

    def lost(self, relay: str, error: PairingError, seconds: float) -> None:
        """The relay is out of reach; it is dialled again in so many seconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are done, in seconds.

    Attributes:
        renew: a watch is renewed after that; the relay forgets it after 300.
        look: how often it is looked whether another process has used or withdrawn a token.
        again: how long a watch that was refused is left alone.
        first: how long to wait before the relay is dialled again; twice as long after each failure.
        longest: the longest such wait.
    """

    renew: float = 200
    look: float = 1
    again: float = 15
    first: float = 1
    longest: float = 30


@dataclass(kw_only=True)
class Provisioning:
    """Serves the tokens of this device that name one relay.

    Attributes:
        relay: its address.
        device: this device.
        allow_list: where targets are stored.
        store: the tokens.
        watcher: who is told.
        v1: accept a token without proof, which whoever runs the relay can misuse.
        only: the one token to serve; None serves all that name the relay.
    """

    relay: str
    device: LocalDevice
    allow_list: AllowList
    store: TokenStore
    watcher: Watcher = field(default_factory=Watcher)
    v1: bool = False
    only: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    pace: Pace = field(default_factory=Pace)
    now: Callable[[], dt.datetime] = utc_now
    tls: ssl.SSLContext | None = None
    blocking: Blocking = asyncio.to_thread
    _awaited: dict[str, StoredToken] = field(default_factory=dict, init=False)

    async def serve(self) -> None:
        """Wait until none of the tokens is awaited any more.

        Raises:
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
        """
        await self.blocking(self.device.seal_secret)  # what can fail without the relay fails before anybody comes
        await self.blocking(self.allow_list.read)
        backoff = Backoff(self.pace.first, self.pace.longest)
        while await self._look():
            try:
                async with open_link(
                    self.relay, seconds=self.timeouts.connect, patience=self.timeouts.relay, tls=self.tls
                ) as link:
                    await _Session(self, link, backoff).run()
            except PairingError as error:
                await self._pause(error, backoff.next())

    async def _pause(self, error: PairingError, seconds: float) -> None:
        self.watcher.lost(self.relay, error, seconds)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0 and self._awaited:
            await asyncio.sleep(min(left, self.pace.look))
            await self._look()

    async def _look(self) -> dict[str, StoredToken]:
        """The tokens that are awaited now, and a word on each that is so no longer."""
        now = self.now().timestamp()
        stored = {
            token.jti: token
            for token in await self.blocking(self.store.read)
            if token.relay == self.relay and self.only in (None, token.jti)
        }
        awaited = {jti: token for jti, token in stored.items() if token.is_awaited(now)}
        for jti, before in self._awaited.items():
            if jti not in awaited:
                self.watcher.ended(stored.get(jti, before))
        self._awaited = awaited
        return awaited

    def accept(self, init: frames.Init) -> tuple[StoredToken, DeviceEntry, str]:
        """Verify who comes, use the token up for it, store it, sign for it. In that order: a crash in between leaves at worst a
        token that only the same device can use again, or a target, which lets nobody in.

        Returns:
            the token, the device as it is stored, the signature of the acknowledgement (base64).

        Raises:
            PairingError: it may not be enrolled; nothing was stored.
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
        """
        token = self.store.get(init.jti)
        public_key = self._proven(token, init)
        if public_key == self.device.identity.public_key:
            raise OwnKey()
        known = self.allow_list.find(public_key)
        if known is not None and known.role == CONTROLLER:
            raise InvalidInit(
                f"A device came with a token that is listed here as controller already: {known.device_id}. It stays one and was "
                "not enrolled; revoke it first if it is to be a target."
            )
        now = self.now()
        token = self.store.use(token.jti, public_key, now.timestamp())
        entry = DeviceEntry.new(public_key, clean(token.name), TARGET, added_at=now, added_by="handshake")
        self.allow_list.add(entry)
        return token, entry, b64encode(self.device.sign(acknowledgement_message(public_key, token.jti)))

    def _proven(self, token: StoredToken, init: frames.Init) -> bytes:
        """The key that may be enrolled."""
        if token.kept == "withdrawn":
            raise TokenWithdrawn()
        if token.kept == "used":
            return _same(token, init)
        if init.proof is not None or init.token is None:
            if token.key is None:
                raise TokenAlreadyUsed()
            return verify_init(
                key=token.key,
                jti=token.jti,
                target_public_key=init.target_public_key,
                proof=init.proof or "",
                target_signature=init.target_signature or "",
            )
        if not self.v1:
            raise ProofRequired()
        shown = verify_token(init.token, now=self.now().timestamp(), controller_key=self.device.identity.public_key)
        if shown.jti != token.jti:
            raise InvalidInit()
        return _key(init)


def _key(init: frames.Init) -> bytes:
    try:
        public_key = decode_public_key(init.target_public_key)
        load_public_key(public_key)
    except InvalidInput:
        raise InvalidInit() from None
    if init.target_public_key != encode_public_key(public_key):
        raise InvalidInit()
    return public_key


def _same(token: StoredToken, init: frames.Init) -> bytes:
    """The key of the device that has used the token already, if it is that which comes again: the answer may have been lost.

    Its proof can't be verified any more, and need not: this key was let in, and nothing but the answer is given once more.
    """
    public_key = _key(init)
    if token.answered or public_key != token.public_key:
        raise TokenAlreadyUsed()
    if init.token is None:
        try:
            signature = b64decode(init.target_signature or "")
        except InvalidInput:
            raise InvalidInit() from None
        if not verify_signature(public_key, init_message(public_key, token.jti), signature):
            raise InvalidInit()
    return public_key


class _Session:
    """One connection to the relay."""

    def __init__(self, provisioning: Provisioning, link: Link, backoff: Backoff) -> None:
        self._owner = provisioning
        self._link = link
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, float] = {}  # when a token is to be watched, or watched anew
        self._told: dict[str, str] = {}
        self._strange = 0
        self._asked: str | None = None  # the token of the watch that the relay has not answered yet
        self._asked_until = 0.0
        self._quiet_until = 0.0  # the relay takes no more watches for now

    async def run(self) -> None:
        """Serve until no token is awaited.

        Raises:
            PairingError: the connection is of no more use.
        """
        owner, looked = self._owner, self._loop.time()
        while owner._awaited:
            await self._watch_next()
            try:
                frame = await self._link.receive(max(0.0, looked + owner.pace.look - self._loop.time()), _Tick)
            except _Tick:
                frame = None
            if frame is not None:
                await self._hear(frame)
            if self._loop.time() >= looked + owner.pace.look:
                await owner._look()
                looked = self._loop.time()

    async def _watch_next(self) -> None:
        now = self._loop.time()
        if self._asked is not None:
            if now > self._asked_until:
                raise RelaySilent()
            return
        jti = min(self._owner._awaited, key=lambda jti: self._due.get(jti, 0.0), default=None)
        if jti is not None and max(self._due.get(jti, 0.0), self._quiet_until) <= now:
            self._asked, self._asked_until = jti, now + self._owner.timeouts.relay
            await self._link.send(frames.watch(jti))

    async def _hear(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Watching(jti) if jti == self._asked:
                self._backoff.reset()
                self._settle(self._owner.pace.renew, self._owner.watcher.watching)
            case frames.Failed(AlreadyWatched()) if self._asked is not None:
                self._settle(self._owner.pace.again, self._owner.watcher.elsewhere)
            case frames.Failed(RateLimited()) if self._asked is not None:
                # It would refuse the others as well. Which is next stays as it is, so that in the end each has its turn.
                self._asked = None
                self._quiet_until = self._loop.time() + self._owner.pace.again
            case frames.Init():
                await self._meet(frame)
            case frames.Failed(TokenNotTaken()):  # whoever came has gone before the answer
                self._count_strange()
            case frames.Failed(error):
                raise error
            case _:
                raise RelayProtocolViolation()

    def _settle(self, seconds: float, tell: Callable[[StoredToken], None]) -> None:
        """The watch was answered; the next one is due in so many seconds. What is told is told once, until it changes."""
        assert self._asked is not None  # noqa: S101 -- each caller has looked
        jti, self._asked = self._asked, None
        self._due[jti] = self._loop.time() + seconds
        token = self._owner._awaited.get(jti)
        if token is not None and self._told.get(jti) != tell.__name__:
            self._told[jti] = tell.__name__
            tell(token)

    def _count_strange(self) -> None:
        """A relay that brings nothing but nonsense gets a pause."""
        self._strange += 1
        if self._strange > MOST_STRANGE:
            raise RelayProtocolViolation()

    async def _meet(self, init: frames.Init) -> None:
        owner = self._owner
        token = owner._awaited.get(init.jti)
        if token is None:  # not ours, or not any more
            self._count_strange()
            await self._link.send(frames.reject(init.jti, TokenNotFound.code))
            return
        accepting = asyncio.ensure_future(_await(owner.blocking(owner.accept, init)))
        try:
            used, entry, signature = await asyncio.shield(accepting)
        except asyncio.CancelledError:
            await asyncio.wait({accepting})  # it can't be stopped half-way
            raise
        except PairingError as error:
            self._due[init.jti] = 0.0  # the relay has dropped the watch with the answer
            await self._link.send(frames.reject(init.jti, error.code))
            owner.watcher.refused(token, error)
            self._count_strange()
            return
        except Exception:  # whatever a disk or a database can do: the other side is told, the caller gets it
            await self._link.send(frames.reject(init.jti, StoreFailed.code))
            raise
        self._due[init.jti] = 0.0
        await self._link.send(
            frames.acknowledge(init.jti, encode_public_key(owner.device.identity.public_key), signature)
        )
        await owner.blocking(owner.store.answered, init.jti, owner.now().timestamp())
        owner._awaited.pop(init.jti, None)
        owner.watcher.enrolled(used, entry)


async def _await(awaitable: object) -> tuple[StoredToken, DeviceEntry, str]:
    return await awaitable  # type: ignore[misc,no-any-return]

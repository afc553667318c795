"""Bootstrap tokens on the controller: wait at a relay for targets that use them, verify each target, store it, acknowledge it."""

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
from authmesh.protocol.errors import AmeshError, InvalidInput, Run
from authmesh.protocol.keys import decode_public_key, encode_public_key, load_public_key, verify_signature
from authmesh.protocol.pairing.errors import (
    OwnKey,
    PairingError,
    RateLimited,
    RelayProtocolViolation,
    RelaySilent,
    StoreFailed,
)
from authmesh.protocol.pairing.token import acknowledgement_message, init_message, verify_init, verify_token
from authmesh.protocol.pairing.token_errors import (
    AlreadyWatched,
    InvalidInit,
    ProofRequired,
    TokenAlreadyUsed,
    TokenNotFound,
    TokenNotTaken,
    TokenWithdrawn,
)

from ..backoff import Backoff
from ..options import Blocking, Timeouts
from ..wire import frames
from ..wire.link import RelaySocket, open_socket

#: Number of frames that no honest device sends, after which a connection is closed.
MAX_STRANGE_FRAMES = 20


class _Tick(PairingError):
    """No frame came in time."""


class Watcher:
    """Report the progress of provisioning to a front end. Each method does nothing unless it is overridden."""

    def watching(self, token: StoredToken) -> None:
        """Report that the relay watches for the token. Called once for each connection."""

    def elsewhere(self, token: StoredToken) -> None:
        """Report that another connection waits for the token."""

    def refused(self, token: StoredToken, error: AmeshError) -> None:
        """Report that a device used the token and was rejected."""

    def enrolled(self, token: StoredToken, entry: DeviceEntry) -> None:
        """Report that a device is stored, and that its acknowledgement is on its way."""

    def stored(self, token: StoredToken, entry: DeviceEntry) -> None:
        """Report that a device that showed the token itself (version 1) is stored, and that it may not get the acknowledgement."""

    def ended(self, token: StoredToken) -> None:
        """Report that the token is no longer awaited: it has expired, was withdrawn, or was used at another process."""

    def lost(self, relay: str, error: PairingError, seconds: float) -> None:
        """Report that the connection to the relay failed, and that it is tried again after *seconds*."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals, in seconds.

    Attributes:
        renew: between two renewals of a watch; the relay forgets a watch after 300.
        look: between two checks whether another process has used or withdrawn a token.
        again: before a rejected watch is tried again.
        first: before the first new attempt to connect to the relay; twice as long after each failure.
        longest: the longest wait before an attempt to connect.
    """

    renew: float = 200
    look: float = 1
    again: float = 15
    first: float = 1
    longest: float = 30


@dataclass(kw_only=True)
class Provisioning:
    """Wait at one relay for targets that use tokens of this device.

    Attributes:
        relay: address of the relay.
        device: this device.
        allow_list: the allow list that targets are added to.
        store: the tokens of this device.
        watcher: receives reports for the front end.
        v1: True to accept a token without proof, which the operator of the relay can misuse.
        only: number of the only token to wait for. Defaults to all that name the relay.
        timeouts: the longest waits.
        pace: the intervals.
        now: the clock.
        tls: the trusted certificates. Defaults to those of the system.
        blocking: runs functions that block.
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
        """Wait until no token is awaited any more.

        Raises:
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
        """
        await self.blocking(self.device.seal_secret)  # what can fail without the relay must fail before a target comes
        await self.blocking(self.allow_list.read)
        backoff = Backoff(self.pace.first, self.pace.longest)
        while await self._look():
            try:
                async with open_socket(
                    self.relay, seconds=self.timeouts.connect, patience=self.timeouts.relay, tls=self.tls
                ) as socket:
                    await _Serving(self, socket, backoff).run()
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
        """Return the tokens that are awaited now, and report those that no longer are."""
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
        """Verify a target, mark its token as used, store the target, and sign the acknowledgement.

        The order matters: after a crash in between there is at worst a token that only the same device can use again, or a target,
        which may not authenticate to this device.

        Returns:
            the token, the device as it is stored, the signature of the acknowledgement (base64).

        Raises:
            PairingError: the target may not be enrolled; nothing was stored.
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
        """
        token = self.store.get(init.jti)
        public_key = self._proven(token, init)
        if public_key == self.device.identity.public_key:
            raise OwnKey()
        known = self.allow_list.find(public_key)
        if known is not None and known.role == CONTROLLER:
            raise InvalidInit(
                f"The device {known.device_id} used a token, but is already a controller of this device. It stays a controller and "
                "was not enrolled.",
                hint=(
                    "If it must become a target, revoke it first (",
                    Run("revoke", known.device_id),
                    "), then make a new token.",
                ),
            )
        now = self.now()
        token = self.store.use(token.jti, public_key, now.timestamp())
        entry = DeviceEntry.new(public_key, clean(token.name), TARGET, added_at=now, added_by="handshake")
        self.allow_list.add(entry)
        return token, entry, b64encode(self.device.sign(acknowledgement_message(public_key, token.jti)))

    def _proven(self, token: StoredToken, init: frames.Init) -> bytes:
        """Return the key to enroll, after verifying that the target holds the token.

        Raises:
            PairingError: the target does not, or the token can't be used.
        """
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
    """Return the public key of a target that uses a token.

    Raises:
        InvalidInit: it is not a key in its canonical form.
    """
    try:
        public_key = decode_public_key(init.target_public_key)
        load_public_key(public_key)
    except InvalidInput:
        raise InvalidInit() from None
    if init.target_public_key != encode_public_key(public_key):
        raise InvalidInit()
    return public_key


def _same(token: StoredToken, init: frames.Init) -> bytes:
    """Return the key of the device that has used the token, if the same device uses it again because the answer was lost.

    Its proof can no longer be verified, and need not be: the key is stored already, and the device only gets the answer again.

    Raises:
        TokenAlreadyUsed: it is another device, or the answer was not lost.
        InvalidInit: the signature is not valid.
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


class _Serving:
    """Serve the awaited tokens on one connection to the relay."""

    def __init__(self, provisioning: Provisioning, socket: RelaySocket, backoff: Backoff) -> None:
        self._owner = provisioning
        self._socket = socket
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, float] = {}  # when a watch must be sent, for each token
        self._told: dict[str, str] = {}
        self._strange = 0
        self._asked: str | None = None  # the token of the watch that the relay has not answered yet
        self._asked_until = 0.0
        self._quiet_until = 0.0  # the relay accepts no watches before

    async def run(self) -> None:
        """Serve until no token is awaited.

        Raises:
            PairingError: the connection can no longer be used.
        """
        owner, looked = self._owner, self._loop.time()
        while owner._awaited:
            await self._watch_next()
            try:
                frame = await self._socket.receive(max(0.0, looked + owner.pace.look - self._loop.time()), _Tick)
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
            await self._socket.send(frames.watch(jti))

    async def _hear(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Watching(jti) if jti == self._asked:
                self._backoff.reset()
                self._settle(self._owner.pace.renew, self._owner.watcher.watching)
            case frames.Failed(AlreadyWatched()) if self._asked is not None:
                self._settle(self._owner.pace.again, self._owner.watcher.elsewhere)
            case frames.Failed(RateLimited()) if self._asked is not None:
                # The relay would reject the other watches, too. The order stays, so that each token has its turn in the end.
                self._asked = None
                self._quiet_until = self._loop.time() + self._owner.pace.again
            case frames.Init():
                await self._meet(frame)
            case frames.Failed(TokenNotTaken()):  # the target left before the answer
                self._count_strange()
            case frames.Failed(error):
                raise error
            case _:
                raise RelayProtocolViolation()

    def _settle(self, seconds: float, tell: Callable[[StoredToken], None]) -> None:
        """Note that the watch was answered and must be sent again in *seconds*, and report it unless the last report was the same."""
        assert self._asked is not None  # noqa: S101 -- each caller has checked
        jti, self._asked = self._asked, None
        self._due[jti] = self._loop.time() + seconds
        token = self._owner._awaited.get(jti)
        if token is not None and self._told.get(jti) != tell.__name__:
            self._told[jti] = tell.__name__
            tell(token)

    def _count_strange(self) -> None:
        """Count a frame that no honest device sends, and close the connection after too many."""
        self._strange += 1
        if self._strange > MAX_STRANGE_FRAMES:
            raise RelayProtocolViolation()

    async def _meet(self, init: frames.Init) -> None:
        owner = self._owner
        token = owner._awaited.get(init.jti)
        if token is None:  # not a token of this device, or no longer awaited
            self._count_strange()
            await self._socket.send(frames.reject(init.jti, TokenNotFound.code))
            return
        accepting = asyncio.ensure_future(_await(owner.blocking(owner.accept, init)))
        try:
            used, entry, signature = await asyncio.shield(accepting)
        except asyncio.CancelledError:
            await asyncio.wait({accepting})  # a started write can't be stopped
            raise
        except PairingError as error:
            self._due[init.jti] = 0.0  # the relay has dropped the watch with the answer
            await self._socket.send(frames.reject(init.jti, error.code))
            owner.watcher.refused(token, error)
            self._count_strange()
            return
        except Exception:  # any error of a disk or a database: tell the target, and raise the error
            await self._socket.send(frames.reject(init.jti, StoreFailed.code))
            raise
        self._due[init.jti] = 0.0
        await self._socket.send(
            frames.acknowledge(init.jti, encode_public_key(owner.device.identity.public_key), signature)
        )
        await owner.blocking(owner.store.answered, init.jti, owner.now().timestamp())
        owner._awaited.pop(init.jti, None)
        if init.proof is None and init.token is not None:
            # The relay of the reference, which forwards only such an init, loses the signature of the acknowledgement.
            owner.watcher.stored(used, entry)
        else:
            owner.watcher.enrolled(used, entry)


async def _await(awaitable: object) -> tuple[StoredToken, DeviceEntry, str]:
    return await awaitable  # type: ignore[misc,no-any-return]

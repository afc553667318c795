"""What a malicious relay does to the payloads of two sides that pair: in memory, or behind hostile_relay.py over sockets."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from authmesh.pairing.ceremony.machine import Ephemeral, Party
from authmesh.protocol import keys
from authmesh.protocol.pairing import v1 as pairing_v1
from authmesh.protocol.pairing import v2 as pairing_v2
from authmesh.protocol.pairing.codes import shared_secret
from authmesh.protocol.pairing.v2 import Share, Tunnel
from tests.pairing.grinding import grind_key
from tests.pairing.pairing_world import MOMENT, Wire, party


def two_ephemerals() -> tuple[Ephemeral, Ephemeral]:
    return Ephemeral.generate(), Ephemeral.generate()


def keys_v1(ephemeral: Ephemeral) -> str:
    return pairing_v1.encode_ephemeral(ephemeral.public)


@dataclass
class Meddler(Wire):
    """Changes one payload: the *number*-th that the side *name* sends.

    Attributes:
        change: makes the payloads that are delivered in its place.
        seen: all payloads so far, as they were sent, of both sides.
    """

    name: str
    number: int
    change: Callable[[Meddler, str], list[str]]
    seen: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"target": 0, "controller": 0})
    met: bool = False

    def _carry(self, name: str, payload: str) -> None:
        self.seen.append((name, payload))
        number, self.counts[name] = self.counts[name], self.counts[name] + 1
        receiver = self.controller if name == "target" else self.target
        if (name, number) == (self.name, self.number):
            self.met = True
            receiver.inbox.extend(self.change(self, payload))
        else:
            receiver.inbox.append(payload)

    def from_target(self, payload: str) -> None:
        self._carry("target", payload)

    def from_controller(self, payload: str) -> None:
        self._carry("controller", payload)


class SpeaksV1ToBoth(Wire):
    """Answers whatever comes with version 1's first payload."""

    tells = False

    def start(self) -> None:
        for side in (self.target, self.controller):
            side.inbox.append(pairing_v1.encode_ephemeral(Ephemeral.generate().public))

    def from_target(self, payload: str) -> None:
        """Forget it."""

    from_controller = from_target


@dataclass
class MiddleV1(Wire):
    """In the middle of version 1: a tunnel to each side, who the other side is said to be is up to it.

    It finishes the target's side first, for then it knows the code that the person will have to type.

    Attributes:
        as_controller: whom the target sees; None passes the real controller's introduction on.
        as_target: whom the controller sees; None passes the real target's on.
        grinds: take the key that the controller sees so that the codes agree. This is the attack that breaks version 1.
        start_at: where it begins to look; None begins anywhere.
        ephemerals: its own keys, to the target and to the controller.
        tried: how many keys it took.
    """

    as_controller: Party | None = None
    as_target: Party | None = None
    grinds: bool = False
    start_at: int | None = None
    ephemerals: tuple[Ephemeral, Ephemeral] = field(default_factory=two_ephemerals)
    tried: int = 0
    tells = False

    def start(self) -> None:
        self._to_target, self._to_controller = self.ephemerals
        self._queues: dict[str, list[str]] = {"target": [], "controller": []}
        self._shared: dict[str, bytes] = {}
        self._plain: dict[str, bytes] = {}
        self.controller.inbox.append(pairing_v1.encode_ephemeral(self._to_controller.public))

    def from_target(self, payload: str) -> None:
        if "target" not in self._shared:
            self._agree("target", self._to_target, payload)
            self.target.inbox.append(pairing_v1.encode_ephemeral(self._to_target.public))
            if self.as_controller is not None:
                self._introduce("target", self.as_controller)
        elif payload in (pairing_v1.CONFIRMED, pairing_v1.REJECTED):
            self.controller.inbox.append(payload)
        else:
            self._plain["target"] = pairing_v1.decrypt(self._key("target"), payload)
            self._finish()

    def from_controller(self, payload: str) -> None:
        if "controller" not in self._shared:
            self._agree("controller", self._to_controller, payload)
            return
        self._plain["controller"] = pairing_v1.decrypt(self._key("controller"), payload)
        if self.as_controller is None:
            self.target.inbox.append(pairing_v1.encrypt(self._key("target"), self._plain["controller"]))
        self._finish()

    def _finish(self) -> None:
        """Both have introduced themselves: now the controller hears who the target is."""
        if len(self._plain) < 2:
            return
        if self.grinds:
            self._introduce("controller", self._ground())
        elif self.as_target is not None:
            self._introduce("controller", self.as_target)
        else:
            self.controller.inbox.append(pairing_v1.encrypt(self._key("controller"), self._plain["target"]))

    def _ground(self) -> Party:
        target = pairing_v1.parse_identity(self._plain["target"])
        controller = pairing_v1.parse_identity(self._plain["controller"])
        assert self.as_controller is not None
        code = pairing_v1.sas(target.public_key, self.as_controller.public_key, self._shared["target"])
        tail = controller.public_key + self._shared["controller"]
        private, self.tried = grind_key(int(code), hashlib.sha256, tail, self.start_at)
        return party(target.name, private=private)

    def _agree(self, name: str, mine: Ephemeral, payload: str) -> None:
        self._shared[name] = shared_secret(mine.private, pairing_v1.decode_ephemeral(payload))

    def _key(self, name: str) -> bytes:
        return pairing_v1.session_key(self._shared[name])

    def _introduce(self, name: str, who: Party) -> None:
        identity = pairing_v1.build_identity(who.public_key, who.name, MOMENT, who.sign)
        side = self.target if name == "target" else self.controller
        side.inbox.append(pairing_v1.encrypt(self._key(name), identity))


@dataclass
class MiddleV2(Wire):
    """In the middle of version 2, with all that the middle can do there: its own keys to both sides, its own identities.

    Attributes:
        as_controller, as_target: whom it introduces; None passes on what the real one said.
        opens_another: to the controller, commit first and look for a share afterwards that makes the codes agree.
        target_first: finish the agreement with the target before the controller's begins, or the other way round.
        ephemerals: its own keys, to the target and to the controller.
        codes: the two codes that came out.
        wished: how many shares it tried.
    """

    as_controller: Party | None = None
    as_target: Party | None = None
    opens_another: bool = False
    target_first: bool = True
    ephemerals: tuple[Ephemeral, Ephemeral] = field(default_factory=two_ephemerals)
    codes: dict[str, str] = field(default_factory=dict)
    wished: int = 0
    tells = False

    def start(self) -> None:
        nonces = {"target": b"\x01" * 32, "controller": b"\x02" * 32}
        self._mine = {
            name: (ephemeral, Share(ephemeral.public, nonces[name]))
            for name, ephemeral in zip(nonces, self.ephemerals, strict=True)
        }
        self._h: dict[str, bytes] = {}
        self._tunnels: dict[str, Tunnel] = {}
        self._plain: dict[str, bytes] = {}
        self._commitment: bytes | None = None
        self._theirs: dict[str, Share] = {}
        if not self.target_first:
            self._commit()

    def _commit(self) -> None:
        _, share = self._mine["controller"]
        self.controller.inbox.append(pairing_v2.encode_payload(pairing_v2.commitment(share)))

    def from_target(self, payload: str) -> None:
        if self._commitment is None:
            self._commitment = pairing_v2.decode_payload(payload, size=32)
            if self.target_first:
                self.target.inbox.append(pairing_v2.encode_share(self._mine["target"][1]))
        elif "target" not in self._theirs:
            self._theirs["target"] = pairing_v2.decode_share(payload)
            self._agree("target", self._theirs["target"], self._mine["target"][1])
            if self.target_first:
                self._commit()
            if self.as_controller is not None:
                self._introduce("target", "controller", self.as_controller)
        elif "target" not in self._plain:
            self._plain["target"] = self._tunnels["target"].open(payload)
            self._finish()
        else:
            self.controller.inbox.append(self._tunnels["controller"].seal(self._tunnels["target"].open(payload)))

    def from_controller(self, payload: str) -> None:
        if "controller" not in self._theirs:
            self._theirs["controller"] = theirs = pairing_v2.decode_share(payload)
            if self.opens_another:
                self._wish(theirs)
            self.controller.inbox.append(pairing_v2.encode_share(self._mine["controller"][1]))
            self._agree("controller", self._mine["controller"][1], theirs)
            if not self.target_first:
                self.target.inbox.append(pairing_v2.encode_share(self._mine["target"][1]))
        elif "controller" not in self._plain:
            self._plain["controller"] = self._tunnels["controller"].open(payload)
            if self.as_controller is None:
                self.target.inbox.append(self._tunnels["target"].seal(self._plain["controller"]))
            self._finish()
        else:
            self.target.inbox.append(self._tunnels["target"].seal(self._tunnels["controller"].open(payload)))

    def _wish(self, theirs: Share) -> None:
        """The controller's numbers are known now: look for a share under which its code is the target's."""
        ephemeral = self._mine["controller"][0]
        wanted = self.codes["target"]
        for self.wished in range(1, 3_000_000):
            share = Share(ephemeral.public, self.wished.to_bytes(32, "big"))
            if pairing_v2.sas(pairing_v2.transcript(share, theirs)) == wanted:
                break
        self._mine["controller"] = (ephemeral, share)

    def _finish(self) -> None:
        if len(self._plain) == 2:
            if self.as_target is not None:
                self._introduce("controller", "target", self.as_target)
            else:
                self.controller.inbox.append(self._tunnels["controller"].seal(self._plain["target"]))

    def _agree(self, name: str, target: Share, controller: Share) -> None:
        ephemeral, _ = self._mine[name]
        h = self._h[name] = pairing_v2.transcript(target, controller)
        pair = pairing_v2.derive_keys(shared_secret(ephemeral.private, self._theirs[name].ephemeral), h)
        sending, receiving = (pair.controller, pair.target) if name == "target" else (pair.target, pair.controller)
        self._tunnels[name] = Tunnel(sending=sending, receiving=receiving, h=h)
        self.codes[name] = pairing_v2.sas(h)

    def _introduce(self, name: str, role: str, who: Party) -> None:
        identity = pairing_v2.build_identity(role, who.public_key, who.name, MOMENT, self._h[name], who.sign)  # type: ignore[arg-type]
        side = self.target if name == "target" else self.controller
        side.inbox.append(self._tunnels[name].seal(identity))


@dataclass
class AloneWithController(Wire):
    """Plays the target to the controller, says that all is confirmed, and never talks to the target.

    Attributes:
        version: which one it speaks.
        who: as whom.
        stored: say "stored" in the end as well.
    """

    version: int = 2
    who: Party = field(default_factory=lambda: party("server"))
    stored: bool = True
    tells = False

    def start(self) -> None:
        self._ephemeral = Ephemeral.generate()
        self._share = Share(self._ephemeral.public, secrets.token_bytes(32))
        self._tunnel: Tunnel | None = None
        self._key: bytes | None = None
        self._agreed = False
        first = pairing_v2.encode_payload(pairing_v2.commitment(self._share))
        self.controller.inbox.append(first if self.version == 2 else keys_v1(self._ephemeral))

    def from_target(self, payload: str) -> None:
        """The target is never answered."""

    def from_controller(self, payload: str) -> None:
        (self._v2 if self.version == 2 else self._v1)(payload)

    def _v1(self, payload: str) -> None:
        if self._key is None:
            shared = shared_secret(self._ephemeral.private, pairing_v1.decode_ephemeral(payload))
            self._key = pairing_v1.session_key(shared)
            return
        identity = pairing_v1.build_identity(self.who.public_key, self.who.name, MOMENT, self.who.sign)
        self.controller.inbox.extend([pairing_v1.encrypt(self._key, identity), pairing_v1.CONFIRMED])

    def _v2(self, payload: str) -> None:
        inbox = self.controller.inbox
        if self._tunnel is None:
            theirs = pairing_v2.decode_share(payload)
            self._h = pairing_v2.transcript(self._share, theirs)
            pair = pairing_v2.derive_keys(shared_secret(self._ephemeral.private, theirs.ephemeral), self._h)
            self._tunnel = Tunnel(sending=pair.target, receiving=pair.controller, h=self._h)
            inbox.append(pairing_v2.encode_share(self._share))
        elif not self._agreed:
            self._agreed = True
            self._tunnel.open(payload)
            who = self.who
            identity = pairing_v2.build_identity("target", who.public_key, who.name, MOMENT, self._h, who.sign)
            inbox.extend(
                [self._tunnel.seal(identity), self._tunnel.seal(pairing_v2.build_verdict("confirmed"))],
            )
        elif self.stored:
            inbox.append(self._tunnel.seal(pairing_v2.build_verdict("stored")))


def other_key(payload: str) -> str:
    """The same kind of first payload with another key in it, in either version."""
    if not pairing_v2.is_payload(payload):
        return keys_v1(Ephemeral.generate())
    data = pairing_v2.decode_payload(payload)
    if len(data) == pairing_v2.SHARE_BYTES:
        return pairing_v2.encode_share(Share(Ephemeral.generate().public, data[keys.PUBLIC_KEY_BYTES :]))
    return pairing_v2.encode_payload(secrets.token_bytes(len(data)))

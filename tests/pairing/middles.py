"""Attacks of a malicious relay on the payloads of a pairing, in memory, or over sockets with hostile_relay.py."""

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
    """Change one payload: the *number*-th that the side *name* sends.

    Attributes:
        change: returns the payloads that are delivered instead.
        seen: all payloads of both sides so far, as they were sent.
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
    """Answer every payload with the first payload of version 1."""

    tells = False

    def start(self) -> None:
        for side in (self.target, self.controller):
            side.inbox.append(pairing_v1.encode_ephemeral(Ephemeral.generate().public))

    def from_target(self, payload: str) -> None:
        """Drop the payload."""

    from_controller = from_target


@dataclass
class MiddleV1(Wire):
    """Sit in the middle of version 1, with a tunnel to each side, and choose the identity that each side sees.

    This finishes the side of the target first, because it then knows the code that the person must type.

    Attributes:
        as_controller: the identity that the target sees. Defaults to that of the real controller.
        as_target: the identity that the controller sees. Defaults to that of the real target.
        grinds: True to choose the key that the controller sees so that the codes agree. This is the attack that breaks version 1.
        start_at: first scalar of the search. Defaults to a random one.
        ephemerals: the key pairs for the target and for the controller.
        tried: number of keys tried.
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
        """Introduce the target to the controller, after both have introduced themselves."""
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
    """Sit in the middle of version 2, with key pairs and identities of its own for both sides.

    Attributes:
        as_controller, as_target: the identities that the other side sees. Default to those of the real devices.
        opens_another: True to commit to the controller first, and search for a share that makes the codes agree afterwards.
        target_first: True to finish the agreement with the target before that with the controller starts, False for the reverse.
        ephemerals: the key pairs for the target and for the controller.
        codes: the two resulting codes.
        wished: number of shares tried.
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
        """Search for a share that gives the controller the code of the target, after the numbers of the controller are known."""
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
    """Be the target for the controller, confirm everything, and never send anything to the target.

    Attributes:
        version: version of pairing.
        who: the identity to use.
        stored: True to also send "stored" at the end.
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
        """Drop the payloads of the target."""

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
    """Return the same kind of first payload with another key, in either version."""
    if not pairing_v2.is_payload(payload):
        return keys_v1(Ephemeral.generate())
    data = pairing_v2.decode_payload(payload)
    if len(data) == pairing_v2.SHARE_BYTES:
        return pairing_v2.encode_share(Share(Ephemeral.generate().public, data[keys.PUBLIC_KEY_BYTES :]))
    return pairing_v2.encode_payload(secrets.token_bytes(len(data)))

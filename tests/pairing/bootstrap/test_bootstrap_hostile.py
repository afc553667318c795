"""Bootstrap tokens over a malicious relay: nothing is stored on the target, and no other device on the controller."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.pairing import Timeouts
from authmesh.pairing.bootstrap.controller import MAX_STRANGE_FRAMES, Pace
from authmesh.pairing.wire import frames
from authmesh.protocol.encoding import b64encode, b64url_encode
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.keys import decode_public_key, encode_public_key
from authmesh.protocol.pairing import token as bootstrap
from authmesh.protocol.pairing.errors import (
    PeerGone,
    PeerSilent,
    RelayClosed,
    RelayProtocolViolation,
    RelayUnreachable,
    StoreFailed,
)
from authmesh.protocol.pairing.token import acknowledgement_message, init_message, init_proof, verify_token
from authmesh.protocol.pairing.token_errors import (
    BootstrapPending,
    InvalidAcknowledgement,
    InvalidInit,
    NoWatcher,
    ProofRequired,
    RelayNotAllowed,
    TokenAlreadyUsed,
    TokenError,
    TokenExpired,
    TokenNotFound,
    TokenRefused,
    TokenWithdrawn,
    TokenWithoutKey,
)
from tests.pairing.bootstrap.bootstrap_world import (
    BRISK,
    BootstrapRelay,
    Clock,
    Controller,
    Frame,
    Notes,
    Raw,
    Target,
    jti_of,
)
from tests.pairing.bootstrap.test_bootstrap_tokens import resigned, token
from tests.relay.relay_world import asynchronous

EVE = EphemeralDevice("eve")
EVES_KEY = encode_public_key(EVE.identity.public_key)


async def refused(target: Target, text: str, kind: type[AmeshError], *, seconds: float = 0) -> AmeshError:
    with pytest.raises(kind) as caught:
        await target.come(text, seconds=seconds)
    assert type(caught.value) is kind
    assert not (target.path / "identity.json").exists()
    assert not (target.path / "allow_list.json").exists()
    assert text not in str(caught.value)
    return caught.value


@asynchronous
async def test_an_honest_relay(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        async with controller.serving() as notes:
            await notes.until("watching")
            enrolled = await target.come(text)
            await notes.until("enrolled")
        device = target.check(controller)
        assert enrolled.identity == device.identity and device.identity.friendly_name == "web-1"
        (entry,) = controller.targets
        assert (entry.public_key, entry.role, entry.friendly_name) == (device.identity.public_key, "target", "web-1")
        stored = controller.store.get(jti_of(text))
        assert (stored.state(0), stored.key, stored.used_by, stored.answered) == (
            "used", None, device.identity.device_id, True,
        )  # fmt: skip
        init = next(frame for frame in relay.seen if frame["type"] == "bootstrap_init")
        assert init.keys() == {"type", "jti", "proof", "targetSig", "targetPubKey"}
        assert text not in str(relay.seen) and text.split(".")[3] not in str(relay.seen)
        # Another machine uses the same token.
        error = await refused(Target(tmp_path / "u"), text, TokenAlreadyUsed)
        assert error.code == "token_already_used"
        assert not (tmp_path / "u" / ".bootstrap").exists() and Target(tmp_path / "u").written == []


# --- what the relay does to the controller -----------------------------------------------------------------------------


def eves_init(text: str, *, sign: bool = True, proof: str | None = None) -> Frame:
    jti = jti_of(text)
    message = init_message(EVE.identity.public_key, jti)
    return {
        "type": "bootstrap_init",
        "jti": jti,
        "targetPubKey": EVES_KEY,
        "proof": init_proof(b"?" * 32, EVE.identity.public_key, jti) if proof is None else proof,
        "targetSig": b64encode(EVE.sign(message)) if sign else "",
    }


@pytest.mark.parametrize(
    "how", ["own key", "own key, old proof", "key replaced", "no proof", "empty", "token of another"]
)
def test_a_relay_cannot_enroll_another_device(tmp_path: Path, how: str) -> None:
    @asynchronous
    async def test() -> None:
        relay = BootstrapRelay()
        async with relay.running():
            controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
            text = controller.token()

            def meddle(frame: Frame) -> list[Raw]:
                without = {name: value for name, value in frame.items() if name not in ("proof", "targetSig")}
                return {
                    "own key": [eves_init(text)],
                    "own key, old proof": [eves_init(text, proof=frame["proof"])],
                    "key replaced": [{**frame, "targetPubKey": EVES_KEY}],
                    "no proof": [{**without, "targetPubKey": EVES_KEY, "token": token()}],
                    "empty": [without],
                    "token of another": [{**without, "token": text}],
                }[how]  # type: ignore[return-value]

            relay.init = meddle
            async with controller.serving() as notes:
                await notes.until("watching")
                with pytest.raises(TokenError) as caught:
                    await target.come(text)
                expected = "proof_required" if how in ("no proof", "token of another") else "invalid_proof"
                assert caught.value.code == expected
                await notes.until("refused")
                assert notes.of("refused") == [expected] and not notes.of("enrolled")
            assert not controller.targets and not target.written
            assert controller.store.get(jti_of(text)).state(0) == "open"

    test()


@asynchronous
async def test_an_init_that_is_replayed_is_answered_once(tmp_path: Path) -> None:
    """The relay forwards the genuine init, keeps it, and sends it again and again."""
    kept: list[Frame] = []
    relay = BootstrapRelay(init=lambda frame: (kept.append(frame), [frame, frame, frame])[1])
    async with relay.running():
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text, other = controller.token(), controller.token("web-2")
        async with controller.serving() as notes:
            await notes.until("watching", 2)
            await target.come(text)
            await notes.until("enrolled")
            target.check(controller)
            # It is not valid for another token.
            relay.init = lambda frame: [{**kept[0], "jti": jti_of(other)}]
            await refused(Target(tmp_path / "u"), other, InvalidInit)
        assert len(controller.targets) == 1
        assert len([frame for frame in relay.seen if frame["type"] == "bootstrap_ack"]) == 1


@asynchronous
async def test_a_flood_of_forged_inits_ends_the_connection_and_keeps_the_token(tmp_path: Path) -> None:
    relay = BootstrapRelay(burns=False)
    async with relay.running():
        controller = Controller(tmp_path / "c", relay.url)
        text = controller.token()
        relay.init = lambda frame: [eves_init(text, sign=False)] * (MAX_STRANGE_FRAMES + 5)
        async with controller.serving() as notes:
            await notes.until("watching")
            with pytest.raises(AmeshError):
                await Target(tmp_path / "t").come(text)
            await notes.until("lost")
            assert notes.of("lost") == ["relay_protocol_violation"]
            assert len(notes.of("refused")) <= MAX_STRANGE_FRAMES + 1
            relay.init = None
            target = Target(tmp_path / "u")
            await target.come(text, seconds=30)
            target.check(controller)
        assert len(controller.targets) == 1


@pytest.mark.parametrize(
    "raw",
    ["", "null", "[]", "{", '{"type":5}', '{"type":"bootstrap_watching","jti":5}', '{"type":"bootstrap_init","jti":"x"}',
     '{"type":"bootstrap_watching","jti":"bt_other"}', '{"type":"peer_found"}', b"\x00", "x" * 70_000,
     "[" * 40_000, 1011, '{"type":"error","code":"relay_capacity"}', '{"type":"error","code":"\\u001b[2J"}'],
)  # fmt: skip
def test_garbage_for_the_controller(tmp_path: Path, raw: Raw) -> None:
    """The controller reports the error and connects again, because the relay may be replaced by an honest one."""

    @asynchronous
    async def test() -> None:
        relay = BootstrapRelay(watch=lambda frame: [raw])
        async with relay.running():
            controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
            text = controller.token()
            async with controller.serving() as notes:
                await notes.until("lost", 2)
                relay.watch = None
                await notes.until("watching")
                await target.come(text, seconds=30)
            target.check(controller)

    test()


# --- what the relay does to the target -----------------------------------------------------------------------------------


def ack(text: str, signer: Any, target_key: bytes, *, key: str | None = None, jti: str | None = None) -> Frame:
    jti = jti or jti_of(text)
    return {
        "type": "bootstrap_ack",
        "jti": jti,
        "controllerPubKey": key or encode_public_key(signer.identity.public_key),
        "controllerSig": b64encode(signer.sign(acknowledgement_message(target_key, jti))),
    }


FORGED: dict[str, Any] = {
    "the relay's own key": lambda c, text, frame, key: [ack(text, EVE, key)],
    "signed by the relay, the controller named": lambda c, text, frame, key: [
        ack(text, EVE, key, key=encode_public_key(c.device.identity.public_key))
    ],
    "the controller's signature, another key named": lambda c, text, frame, key: [
        {**frame, "controllerPubKey": EVES_KEY}
    ],
    "for another target": lambda c, text, frame, key: [ack(text, c.device, EVE.identity.public_key)],
    "for another token": lambda c, text, frame, key: [ack(text, c.device, key, jti="bt_" + "0" * 32)],
    "of another token, number changed": lambda c, text, frame, key: [
        {**ack(text, c.device, key, jti="bt_" + "0" * 32), "jti": jti_of(text)}
    ],
    "without signature": lambda c, text, frame, key: [{n: v for n, v in frame.items() if n != "controllerSig"}],
    "no key": lambda c, text, frame, key: [{**frame, "controllerPubKey": "AAAA"}],
    "no signature": lambda c, text, frame, key: [{**frame, "controllerSig": "\u2028"}],
    "twice, the first forged": lambda c, text, frame, key: [ack(text, EVE, key), frame],
}


@pytest.mark.parametrize("how", list(FORGED))
def test_a_forged_acknowledgement_enrolls_no_device(tmp_path: Path, how: str) -> None:
    @asynchronous
    async def test() -> None:
        relay = BootstrapRelay()
        async with relay.running():
            controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
            text = controller.token()

            def meddle(frame: Frame) -> list[Raw]:
                init = next(frame for frame in relay.seen if frame["type"] == "bootstrap_init")
                found: list[Raw] = FORGED[how](controller, text, frame, decode_public_key(init["targetPubKey"]))
                return found

            relay.answer = meddle
            async with controller.serving() as notes:
                await notes.until("watching")
                await refused(target, text, InvalidAcknowledgement)
            assert target.written == []
            assert [entry.role for entry in controller.targets] == ["target"]  # which may not authenticate

    test()


@asynchronous
async def test_an_acknowledgement_that_comes_twice_does_no_harm(tmp_path: Path) -> None:
    relay = BootstrapRelay(answer=lambda frame: [frame, frame])
    async with relay.running():
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        async with controller.serving() as notes:
            await notes.until("watching")
            await target.come(text)
        target.check(controller)


def rejects(code: str, **more: str) -> Frame:
    return {"type": "bootstrap_reject", "error": code, **more}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (rejects("token_already_used"), TokenAlreadyUsed),
        (rejects("no_watcher"), NoWatcher),
        (rejects("token_expired"), TokenExpired),
        (rejects("token_withdrawn"), TokenWithdrawn),
        (rejects("token_not_found"), TokenNotFound),
        (rejects("proof_required"), ProofRequired),
        (rejects("store_failed"), StoreFailed),
        (rejects("\x1b[2Jgo to evil.example"), TokenRefused),
        (rejects("token_expired", jti="bt_" + "0" * 32), RelayProtocolViolation),
        ({"type": "error", "code": "peer_disconnected"}, PeerGone),
        ({"type": "bootstrap_watching", "jti": "x"}, RelayProtocolViolation),
        ({"type": "peer_found"}, RelayProtocolViolation),
        ({"type": "bootstrap_ack", "jti": 5}, RelayProtocolViolation),
        ({"type": "bootstrap_reject"}, RelayProtocolViolation),
        ("nonsense", RelayProtocolViolation),
        (b"\x00", RelayProtocolViolation),
        (1011, RelayClosed),
    ],
)
def test_other_answers_of_a_relay(tmp_path: Path, answer: Raw, kind: type[AmeshError]) -> None:
    @asynchronous
    async def test() -> None:
        async with BootstrapRelay(instead=[answer] * 3 if not isinstance(answer, int) else [answer]).running() as relay:
            controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
            error = await refused(target, controller.token(), kind)
            assert "evil" not in str(error)
            if kind not in (PeerGone, RelayClosed):
                assert target.written == []

    test()


@asynchronous
async def test_a_relay_that_never_answers(tmp_path: Path) -> None:
    async with BootstrapRelay(instead=[]).running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        target = Target(tmp_path / "t", timeouts=Timeouts(message=0.2))
        text = controller.token()
        await refused(target, text, PeerSilent)
        # The answer may have been lost, so the key is kept for the next attempt: the controller may have stored it.
        (key,) = (tmp_path / "t" / ".bootstrap" / "keys").iterdir()
        relay.instead = None
        async with controller.serving() as notes:
            await notes.until("watching")
            await target.come(text)
        assert target.check(controller).identity.device_id == key.name.partition(".")[0]


@asynchronous
async def test_every_token_is_watched_if_a_relay_accepts_few_watches(tmp_path: Path) -> None:
    count = 0

    def watch(frame: Frame) -> list[Raw]:
        nonlocal count
        count += 1
        if count % 3:
            return [{"type": "bootstrap_watching", "jti": frame["jti"]}]
        return [{"type": "error", "code": "rate_limited"}]

    async with BootstrapRelay(watch=watch).running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        numbers = {jti_of(controller.token()) for _ in range(5)}
        # Watches must be renewed before the last token is watched for the first time.
        async with controller.serving(pace=Pace(renew=0.01, look=0.02, again=0.05)) as notes:
            await notes.until("watching", 5)
        assert set(notes.of("watching")) == numbers


@asynchronous
async def test_a_lost_answer_is_not_reported_as_theft(tmp_path: Path) -> None:
    async with BootstrapRelay(answer=lambda frame: [{"type": "error", "code": "peer_disconnected"}]).running() as relay:
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        async with controller.serving() as notes:
            await notes.until("watching")
            assert "lost its answer" in str(await refused(target, text, TokenAlreadyUsed, seconds=30))
        stranger = Target(tmp_path / "s")
        assert "someone else had the token" in str(await refused(stranger, text, TokenAlreadyUsed, seconds=30))


# --- before anything is dialled ------------------------------------------------------------------------------------------


@asynchronous
async def test_an_invalid_token_connects_to_no_relay_and_writes_nothing(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        good = controller.token()
        changed = good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")
        later, earlier = Clock(4000), Clock(-400)
        for text, kind, clock in (
            ("", "invalid_token_format", None),
            ("amesh-bt-v1.", "invalid_token_format", None),
            (changed, "invalid_signature", None),
            (good, "token_expired", later),
            (good, "token_not_yet_valid", earlier),
            (resigned(iss="am_AAAAAAAAAAAAAAAA"), "invalid_signature", Clock(1_900_000_000 - Clock()().timestamp())),
        ):
            target = Target(tmp_path / "t", clock=clock)
            with pytest.raises(TokenError) as caught:
                await target.come(text)
            assert caught.value.code == kind
        for relays in ([], ["wss://relay.example/ws"], [relay.url.replace("ws://", "wss://")], [relay.url + "x"]):
            await refused(Target(tmp_path / "t", relays=relays), good, RelayNotAllowed)
        assert not (tmp_path / "t").exists()
        assert not relay.seen and not relay.sockets
        async with controller.serving() as notes:
            await notes.until("watching")
            upper = relay.url.replace("ws://127.0.0.1", "WS://127.0.0.1")
            await Target(tmp_path / "t", relays=["wss://other.example/ws", upper]).come(good)


@asynchronous
async def test_an_unreachable_relay(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
    target = Target(tmp_path / "t")
    await refused(target, controller.token(), RelayUnreachable)
    assert target.written == [] and not (tmp_path / "t" / ".bootstrap").exists()


@asynchronous
async def test_a_token_of_the_reference_is_sent_only_with_v1(tmp_path: Path) -> None:
    """A token of ours has a key of its own and is never sent, not even with v1."""
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        text = strip_key(controller)
        await refused(Target(tmp_path / "t"), text, TokenWithoutKey)
        assert not relay.seen
        ours = controller.token("ours")
        async with controller.serving(v1=True) as notes:
            await notes.until("watching", 2)
            target = Target(tmp_path / "t", v1=True)
            await target.come(text)
            await Target(tmp_path / "u", v1=True).come(ours)
        # What a target without proof makes of the answer is not known, so that it is never reported as enrolled.
        assert [entry.public_key for entry in notes.of("stored")] == [target.check(controller).identity.public_key]
        assert len(notes.of("enrolled")) == 1
        first, second = [frame for frame in relay.seen if frame["type"] == "bootstrap_init"]
        assert first.keys() == {"type", "jti", "token", "targetPubKey"} and first["token"] == text
        assert "token" not in second
    # A controller without v1 rejects it.
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "d", relay.url)
        text = strip_key(controller)
        async with controller.serving() as notes:
            await notes.until("watching")
            await refused(Target(tmp_path / "v", v1=True), text, ProofRequired)
            assert not controller.targets


@asynchronous
async def test_the_relay_of_the_reference_loses_the_signature_of_the_answer(tmp_path: Path) -> None:
    relay = BootstrapRelay(answer=lambda frame: [{name: frame[name] for name in frame if name != "controllerSig"}])
    async with relay.running():
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t", v1=True)
        text = strip_key(controller)
        async with controller.serving(v1=True) as notes:
            await notes.until("watching")
            await refused(target, text, InvalidAcknowledgement)
            await notes.until("stored")
            assert not notes.of("enrolled") and "identity.json" not in target.written


@asynchronous
async def test_the_advice_fits_the_program_that_made_the_token(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        for text, theirs in ((strip_key(controller), True), (controller.token(), False)):
            with pytest.raises(NoWatcher) as caught:
                await Target(tmp_path / f"{theirs}", v1=True).come(text)
            said = caught.value.text(str)
            assert ("provision --resume" in said) is not theirs
            assert ("listen --v1" in said) is theirs


def strip_key(controller: Controller) -> str:
    """Return a token as the reference makes it, known to this controller."""
    parts = bootstrap.decode_token(controller.token())
    payload = {name: value for name, value in parts.payload.items() if name != "key"}
    signed = f"{parts.signed.split('.')[0]}.{b64url_encode(json.dumps(payload).encode())}"
    return f"{bootstrap.PREFIX}{signed}.{b64url_encode(controller.device.sign(signed.encode()))}"


# --- what goes wrong without malice --------------------------------------------------------------------------------------


@asynchronous
async def test_only_the_same_device_may_use_a_token_again_after_a_lost_answer(tmp_path: Path) -> None:
    """The relay dies with the answer, and its memory is lost."""
    relay = BootstrapRelay(burns=False, answer=lambda frame: [1011])
    async with relay.running():
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        provisioning = controller.provisioning()
        real, provisioning.store.answered = provisioning.store.answered, None  # type: ignore[assignment,method-assign]
        provisioning.store.answered = lambda jti, now: (_ for _ in ()).throw(RelayClosed())  # type: ignore[method-assign]
        task = asyncio.ensure_future(provisioning.serve())
        assert isinstance(provisioning.watcher, Notes)
        await provisioning.watcher.until("watching")
        await refused(target, text, RelayClosed)
        await provisioning.watcher.until("watching", 2)
        assert controller.store.get(jti_of(text)).is_awaited(0)
        relay.answer = None
        provisioning.store.answered = real  # type: ignore[method-assign]
        await refused(Target(tmp_path / "u"), text, TokenAlreadyUsed)
        await provisioning.watcher.until("watching", 2)
        await target.come(text, seconds=30)
        target.check(controller)
        async with asyncio.timeout(30):
            await task
        assert len(controller.targets) == 1


@asynchronous
async def test_two_processes_with_the_same_token_enroll_one_device(tmp_path: Path) -> None:
    """This simulates two relays: neither sees the other watcher, and each brings another device."""
    async with BootstrapRelay().running() as one, BootstrapRelay().running() as two:
        controller = Controller(tmp_path / "c", one.url)
        text = controller.token()
        jti = jti_of(text)
        held = verify_token(text, now=controller.clock().timestamp())
        assert held.key is not None
        inits = []
        for device in (EphemeralDevice("a"), EphemeralDevice("b")):
            key = device.identity.public_key
            inits.append(
                {
                    "type": "bootstrap_init",
                    "jti": jti,
                    "targetPubKey": encode_public_key(key),
                    "proof": init_proof(held.key, key, jti),
                    "targetSig": b64encode(device.sign(init_message(key, jti))),
                }
            )
        provisionings = [controller.provisioning() for _ in (one, two)]
        parsed = [frames.parse_frame(json.dumps(init)) for init in inits]
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(p.accept, init) for p, init in zip(provisionings, parsed, strict=True)),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["TokenAlreadyUsed", "tuple"]
        assert len(controller.targets) == 1


@asynchronous
async def test_a_second_watcher_waits_for_the_first(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        async with controller.serving() as second:
            async with controller.serving() as first:
                await asyncio.wait({asyncio.ensure_future(n.until("watching")) for n in (first, second)},
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                later = second if first.of("watching") else first
                await later.until("elsewhere")
            if later is second:
                await second.until("watching")
                await target.come(text)
                target.check(controller)


@asynchronous
async def test_withdrawn_and_expired_while_it_waits(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        withdrawn = controller.token("a")
        controller.token("b", lifetime=7200)
        async with controller.serving() as notes:
            await notes.until("watching", 2)
            controller.store.withdraw(jti_of(withdrawn), controller.clock().timestamp())
            await notes.until("ended")
            await refused(Target(tmp_path / "t"), withdrawn, TokenNotFound)
            controller.clock.ahead = 7300
            await notes.until("ended", 2)
        states = {token.name: token.state(controller.clock().timestamp()) for token in controller.store.read()}
        assert states == {"a": "withdrawn", "b": "expired"}
        controller.store.tidy(controller.clock().timestamp())
        assert all(token.key is None for token in controller.store.read())


@asynchronous
async def test_a_controller_does_not_become_a_target(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        controller.allow_list.add(EVE.entry("controller"))
        text = controller.token()
        held = verify_token(text, now=controller.clock().timestamp())
        assert held.key is not None
        proof = init_proof(held.key, EVE.identity.public_key, held.jti)
        relay.init = lambda frame: [eves_init(text, proof=proof)]
        async with controller.serving() as notes:
            await notes.until("watching")
            with pytest.raises(TokenError):
                await Target(tmp_path / "t").come(text)
        assert [entry.role for entry in controller.targets] == ["controller"]


@asynchronous
async def test_the_controller_may_come_later(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        error = await refused(target, text, NoWatcher)
        assert error.code == "no_watcher" and target.written == []
        coming = asyncio.ensure_future(target.come(text, seconds=None))
        await asyncio.sleep(0.3)
        async with controller.serving():
            await coming
        target.check(controller)


@asynchronous
async def test_one_attempt_at_a_time_on_a_machine(tmp_path: Path) -> None:
    async with BootstrapRelay(instead=[]).running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        text = controller.token()
        first = asyncio.ensure_future(Target(tmp_path / "t", timeouts=Timeouts(message=30)).come(text))
        async with asyncio.timeout(30):
            while not relay.seen:
                await asyncio.sleep(0.02)
        await refused(Target(tmp_path / "t"), text, BootstrapPending)
        await relay.sockets[0].close()
        with pytest.raises(RelayClosed):
            await first


@asynchronous
async def test_no_log_has_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("websockets", "websockets.client", "websockets.server", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    logging.getLogger("websockets.server").setLevel(logging.WARNING)  # the relay of the test itself
    async with BootstrapRelay().running() as relay:
        controller, target = Controller(tmp_path / "c", relay.url), Target(tmp_path / "t")
        text = controller.token()
        held = verify_token(text, now=controller.clock().timestamp())
        async with controller.serving() as notes:
            await notes.until("watching")
            await target.come(text)
    assert held.key is not None
    secrets = [text, text.split(".")[2], text.split(".")[3], held.key.hex(), repr(held.key)]
    proof = next(frame["proof"] for frame in relay.seen if frame["type"] == "bootstrap_init")
    for record in caplog.records:
        for secret in (*secrets, proof):
            assert secret not in record.getMessage()


@asynchronous
async def test_a_watch_is_renewed(tmp_path: Path) -> None:
    async with BootstrapRelay().running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        controller.token()
        async with controller.serving(pace=dataclasses.replace(BRISK, renew=0.05)) as notes, asyncio.timeout(30):
            while len(relay.seen) < 4:
                await asyncio.sleep(0.02)
            assert notes.of("watching") == [relay.seen[0]["jti"]]  # reported once
    assert Pace().renew < 300 - 2 * Pace().again


@asynchronous
async def test_a_relay_that_limits_watches_gets_time(tmp_path: Path) -> None:
    refusals = iter([True, True])

    def watch(frame: Frame) -> list[Raw]:
        if next(refusals, False):
            return [{"type": "error", "code": "rate_limited"}]
        return [{"type": "bootstrap_watching", "jti": frame["jti"]}]

    async with BootstrapRelay(watch=watch).running() as relay:
        controller = Controller(tmp_path / "c", relay.url)
        for number in range(3):
            controller.token(f"web-{number}")
        async with controller.serving() as notes:
            await notes.until("watching", 3)
            assert not notes.of("lost") and len(relay.sockets) == 1

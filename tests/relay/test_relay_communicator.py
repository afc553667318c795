"""The consumer, tested as any Channels consumer: with WebsocketCommunicator, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.test import override_settings

from amesh_django.relay.consumer import RelayConsumer
from amesh_django.relay.hub.current import stop_hub
from amesh_django.relay.routing import websocket_urlpatterns
from tests.relay.relay_world import JTI, OTC, asynchronous

OPEN = {"type": "ack", "message": "session_open"}
FOUND = {"type": "peer_found"}


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def error(code: str) -> dict[str, str]:
    return {"type": "error", "code": code}


@asynccontextmanager
async def connected(count: int, application: Any = None, **options: Any) -> AsyncIterator[list[WebsocketCommunicator]]:
    communicators = [
        WebsocketCommunicator(application or RelayConsumer.as_asgi(), "/ws", **options) for _ in range(count)
    ]
    try:
        for communicator in communicators:
            assert await communicator.connect() == (True, None)
        yield communicators
    finally:
        for communicator in communicators:
            await communicator.disconnect()
        await stop_hub()


async def match(target: WebsocketCommunicator, controller: WebsocketCommunicator) -> None:
    await target.send_json_to({"type": "listen", "otc": OTC})
    assert await target.receive_json_from() == OPEN
    await controller.send_json_to({"type": "connect", "otc": OTC})
    assert await controller.receive_json_from() == FOUND
    assert await target.receive_json_from() == FOUND


@asynchronous
async def test_a_pairing() -> None:
    async with connected(2) as (target, controller):
        await match(target, controller)
        await target.send_json_to({"type": "data", "payload": "from the target"})
        assert await controller.receive_json_from() == {"type": "data", "payload": "from the target"}
        await controller.send_json_to({"type": "data", "payload": "from the controller"})
        assert await target.receive_json_from() == {"type": "data", "payload": "from the controller"}
        await controller.send_json_to({"type": "done"})
        assert await target.receive_json_from() == {"type": "done"}
        assert await controller.receive_nothing()
        # The code and both connections are free again.
        await match(controller, target)


@asynchronous
async def test_mounted_by_a_router() -> None:
    async with connected(2, URLRouter([*websocket_urlpatterns])) as (target, controller):
        await match(target, controller)


@asynchronous
async def test_a_side_that_disconnects() -> None:
    async with connected(2) as (target, controller):
        await match(target, controller)
        await controller.disconnect()
        assert await target.receive_json_from() == error("peer_disconnected")


@asynchronous
async def test_a_token() -> None:
    async with connected(2) as (controller, target):
        await controller.send_json_to({"type": "bootstrap_watch", "jti": JTI})
        assert await controller.receive_json_from() == {"type": "bootstrap_watching", "jti": JTI}
        init = {"type": "bootstrap_init", "jti": JTI, "targetPubKey": "k", "proof": "p", "targetSig": "s"}
        await target.send_json_to(init)
        assert await controller.receive_json_from() == init
        await controller.send_json_to({"type": "bootstrap_ack", "jti": JTI, "publicKey": "K", "controllerSig": "S"})
        assert (await target.receive_json_from())["controllerPubKey"] == "K"
        await target.send_json_to(init)
        assert await target.receive_json_from() == {"type": "bootstrap_reject", "error": "token_already_used"}


@asynchronous
async def test_errors_leave_the_connection_open() -> None:
    async with connected(1) as (client,):
        for sent, code in (
            ({"type": "connect", "otc": OTC}, "otc_not_found"),
            ({"type": "listen", "otc": "12345"}, "invalid_otc"),
            ({"type": "nonsense"}, "unknown_type"),
            ([], "invalid_message"),
            ({"type": "bootstrap_watch"}, "missing_jti"),
        ):
            await client.send_json_to(sent)
            assert await client.receive_json_from() == error(code)
        await client.send_to(text_data="{")
        assert await client.receive_json_from() == error("invalid_message")
        await client.send_to(bytes_data=b"{}")
        assert await client.receive_json_from() == error("invalid_message")
        await client.send_json_to({"type": "listen", "otc": OTC})
        assert await client.receive_json_from() == OPEN


@asynchronous
async def test_messages_without_a_session_are_ignored() -> None:
    async with connected(1) as (client,):
        await client.send_json_to({"type": "data", "payload": "x"})
        await client.send_json_to({"type": "done"})
        assert await client.receive_nothing()


@asynchronous
async def test_a_message_that_is_too_long_closes_the_connection() -> None:
    with override_settings(AMESH={"RELAY": {"MAX_MESSAGE_BYTES": 1024}}):
        async with connected(1) as (client,):
            await client.send_to(text_data="x" * 1025)
            assert await client.receive_output() == {"type": "websocket.close", "code": 1009}


@asynchronous
async def test_a_full_relay_closes_the_connection() -> None:
    with override_settings(AMESH={"RELAY": {"MAX_CONNECTIONS": 1}}):
        async with connected(2) as (_, late):
            assert await late.receive_output() == {"type": "websocket.close", "code": 1013}


@asynchronous
async def test_a_web_page_that_is_not_allowed_is_rejected() -> None:
    client = WebsocketCommunicator(RelayConsumer.as_asgi(), "/ws", headers=[(b"origin", b"https://evil.example")])
    assert await client.connect() == (False, 1008)
    await client.wait()
    await stop_hub()

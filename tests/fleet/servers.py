"""A hub for the tests: its allow list, its servers, and what it would send them."""

from __future__ import annotations

import time
from typing import Any

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import feed, servers
from amesh_django.models import Server
from amesh_django.test import EphemeralDevice
from authmesh.protocol.fleet.feed import FeedMessage
from tests.fleet.peers import Peer

URL = "https://server.example/amesh/"


def hub(by: str = "alice") -> DatabaseAllowList:
    return DatabaseAllowList(by=by)


def laptops(count: int, **options: Any) -> list[EphemeralDevice]:
    """Trust some controllers, all in one change."""
    found = [EphemeralDevice(f"laptop {number}") for number in range(count)]
    hub().add_all([one.entry(**options) for one in found])
    return found


def add_server(url: str = URL, device: EphemeralDevice | None = None, **options: Any) -> tuple[Server, EphemeralDevice]:
    """Trust a device as a target, and make it a server of this hub."""
    device = device or EphemeralDevice("server")
    hub().add(device.entry("target"))
    return servers.add(device.identity.device_id, url, by="alice", **options), device


def follow(other: Peer, **options: Any) -> Server:
    """Make the other end of a delivery a server of this hub."""
    hub().add(other.device.entry("target"))
    return servers.add(other.device.identity.device_id, other.url, **options)


def message(server: Server, *, after: int | None = None, epoch: str | None = None, **options: Any) -> FeedMessage:
    """What the hub would send to a server that has all up to a serial; by default, all but the changes of this epoch after it was added."""
    newest = servers.head()
    return feed.message_for(
        server,
        epoch=newest.epoch if epoch is None else epoch,
        after=newest.revision if after is None else after,
        now=options.pop("now", time.time()),
        **options,
    )


def told(found: FeedMessage) -> list[tuple[str, str]]:
    """The events of a message, as pairs of a word and a device ID."""
    return [(event.event, event.device_id) for event in found.events]

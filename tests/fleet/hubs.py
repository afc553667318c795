"""A hub as a server sees it: it signs messages with a key of its own, and remembers what its list has said."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.test import AmeshClient, EphemeralDevice
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.encoding import b64url_encode, format_time
from authmesh.protocol.fleet.events import FeedEvent, Trusted, key_hash
from authmesh.protocol.fleet.feed import Acknowledgement, FeedMessage

PATH = "/amesh/feed"
EPOCH = "e" * 32


class TestHub:
    """A hub. Its list has an epoch, and each event that is made gets the next serial.

    Args:
        server: device ID of the server.
        device: its key. Defaults to a new one, which the server does not know.
        epoch: epoch of its list.
    """

    __test__ = False

    def __init__(self, server: str, device: EphemeralDevice | None = None, *, epoch: str = EPOCH) -> None:
        self.device, self.server, self.epoch = device or EphemeralDevice("hub"), server, epoch
        self._serials = itertools.count(1)
        #: Empty if there is nobody to ask.
        self.url = ""
        self.sent = 0

    @property
    def id(self) -> str:
        return self.device.identity.device_id

    @property
    def by(self) -> str:
        """The name under which a server stores what it does."""
        return f"hub {self.id}"

    def trusted(self, *permissions: str) -> TestHub:
        """Let the server follow this hub."""
        DatabaseAllowList(by="person").add(self.device.entry(permissions=dict.fromkeys(permissions, True)))
        return self

    def event(self, name: Any, device: EphemeralDevice, serial: int | None = None, **options: Any) -> FeedEvent:
        """Return the next event."""
        key = device.identity.public_key
        found = FeedEvent(
            serial=next(self._serials) if serial is None else serial,
            event=name,
            device_id=device.identity.device_id,
            key=key_hash(key),
            at=options.pop("at", dt.datetime.now(dt.UTC)),
            **options,
        )
        return found

    def trust(self, device: EphemeralDevice, serial: int | None = None, **options: Any) -> FeedEvent:
        """Return the next event, which lets a device in."""
        about = Trusted(device.identity.public_key, device.identity.friendly_name, **options)
        return self.event("trust", device, serial, trusted=about)

    def message(self, *events: FeedEvent, **changes: Any) -> FeedMessage:
        """Return a message with events, after all that was sent before."""
        last = max((event.serial for event in events), default=self.sent)
        found = FeedMessage(
            issuer=self.id,
            audience=self.server,
            url=self.url,
            epoch=self.epoch,
            after=min(self.sent, *[event.serial - 1 for event in events]) if events else self.sent,
            head=last,
            issued_at=int(time.time()),
            events=events,
            until=last,
        )
        return dataclasses.replace(found, **changes)

    def list(self, revoked: Mapping[EphemeralDevice, int] | Sequence[EphemeralDevice] = (), /, **changes: Any) -> str:
        """Return the signed list of keys that it has revoked: device → serial. *replaced* has device → the one with its new key."""
        found = dict(revoked) if isinstance(revoked, Mapping) else dict.fromkeys(revoked, 1)
        now = int(time.time())
        at = changes.pop("at", dt.datetime.now(dt.UTC))
        replaced = changes.pop("replaced", {})
        claims = {
            "iss": self.id,
            "sub": "https://hub.example/amesh/",
            "iat": now,
            "exp": now + 600,
            "ttl": 60,
            "epoch": self.epoch,
            "serial": max([self.sent, *found.values()]),
            "revoked": [
                {"key": b64url_encode(key_hash(one.identity.public_key)), "serial": serial, "at": format_time(at)}
                | ({"next": replaced[one].identity.device_id} if one in replaced else {})
                for one, serial in found.items()
            ],
        }
        headers = {"typ": changes.pop("typ", "amesh-revocations+jwt")}
        return jwt.encode({**claims, **changes}, self.device._key, algorithm="ES256", headers=headers)

    def post(self, message: FeedMessage, **options: Any) -> Any:
        """Send a message, and return the response."""
        return AmeshClient(self.device, **options).post(PATH, message.to_json(), content_type="application/json")

    def say(self, *events: FeedEvent, status: int = 200, **changes: Any) -> Acknowledgement:
        """Send events, and return what the server acknowledges. Its signature is verified."""
        response = self.post(self.message(*events, **changes))
        assert response.status_code == status, response.content
        found = response.json()
        answer = Acknowledgement(found["epoch"], found["applied"], needs_list=found.get("need") == "list")
        if found["epoch"] == self.epoch:
            self.sent = max(self.sent, found["applied"])
        return dataclasses.replace(
            answer,
            refused=[(one["serial"], one["why"]) for one in found["refused"]],  # type: ignore[arg-type]
        )

    def greet(self, revoked: Mapping[EphemeralDevice, int] | Sequence[EphemeralDevice] = (), **changes: Any) -> Any:
        """Send the signed list, with which every epoch begins."""
        of_list = {"at": changes.pop("at")} if "at" in changes else {}
        return self.say(revocations=self.list(revoked, **of_list), **changes)


def row(device: EphemeralDevice) -> Device:
    """Return the row of a device."""
    return Device.objects.get(device_id=device.identity.device_id)


def status(device: EphemeralDevice) -> int:
    """Return how a request of a device is answered."""
    return AmeshClient(device).get(CHECK_PATH).status_code

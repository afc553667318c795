"""Helpers for the tests of pairing in the admin: a person at the page, and a device at the other end of a relay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from amesh_django.models import PairingSession
from authmesh.pairing import ControllerOperator, Met, Paired, Pairing
from tests.admin.people import logged_in
from tests.commands.pairing_terminals import Background, wrong
from tests.support.services import until

PAIR = "/admin/amesh/pairingsession/"
#: Permissions of a person who may pair devices, and no more.
MAY_PAIR = ("view_device", "pair_device")


@dataclass
class Screen(ControllerOperator):
    """The screen of the device, and the person at it, who looks whether this server says “Verified”."""

    says: bool = True
    code: Future[str] = field(default_factory=Future)
    asked: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    def show_verification_code(self, code: str, met: Met) -> None:
        self.code.set_result(code)

    async def confirm_verified(self, met: Met) -> bool:
        self.asked.set()
        await asyncio.to_thread(self.answered.wait, 30)
        return self.says


class Desk:
    """A person at the page.

    Args:
        user: the person.
        background: the relay, and what runs the other devices.
    """

    def __init__(self, user: User, background: Background) -> None:
        self.user = user
        self.client: Client = logged_in(user)
        self.background = background
        self.page = ""
        self.state: dict[str, Any] = {}

    def begin(self, **given: Any) -> None:
        response = self.client.post(PAIR, given)
        assert response.status_code == 302, response.content.decode()
        self.page = response["Location"]
        assert self.page.startswith(PAIR)

    @property
    def row(self) -> PairingSession:
        return PairingSession.objects.get(token=self.page.split("/")[-2])

    def look(self) -> str:
        """Return what the page shows now, as its script asks for it."""
        response = self.client.get(f"{self.page}state/")
        assert response.status_code == 200
        self.state = response.json()
        return str(self.state["html"])

    def sees(self, text: str, seconds: float = 30) -> str:
        """Wait until the page shows a text, and return what it shows."""
        until(lambda: text in self.look(), seconds)
        return str(self.state["html"])

    def code(self) -> str:
        """Wait for the one-time code, and return it."""
        self.sees("amesh invite")
        return self.row.code

    def press(self, what: str, **given: str) -> Any:
        return self.client.post(f"{self.page}{what}/", given, follow=True)

    def types(self, code: str) -> Any:
        return self.press("answer", code=code, device=self.row.device_id)

    def invite(self, other: Pairing, screen: Screen) -> Future[Paired]:
        """Run the command on a device, and wait until the page shows the device."""
        paired = self.background.submit(other.invite(self.code(), screen))
        self.sees("Verification code")
        return paired

    def pair(self, other: Pairing, **given: Any) -> Paired:
        """Do all that a person does."""
        screen = Screen()
        self.begin(**given)
        paired = self.invite(other, screen)
        self.types(screen.code.result(30))
        self.sees("Verified")
        screen.answered.set()
        self.sees("Paired")
        return paired.result(30)


def types_wrong(desk: Desk, screen: Screen) -> None:
    desk.types(wrong(screen.code.result(30)))


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Wait at the end until no ceremony runs any more: each cancels itself if its row is gone."""
    yield
    PairingSession.objects.all().delete()
    for thread in threading.enumerate():
        if thread.name == "amesh-pairing":
            thread.join(30)
            assert not thread.is_alive()
    connection.close()

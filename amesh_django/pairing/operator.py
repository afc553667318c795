"""The person at this server, as the ceremony sees them: they look at a page, which another process may serve."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.db import DatabaseError

from amesh_django.models import PairingSession
from amesh_django.trust.sealing import now, storable
from authmesh.device.allow_list import limit_reached
from authmesh.pairing import Met, Step, TargetOperator
from authmesh.pairing.options import Blocking
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing.codes import parse_entered

from . import errors, sessions
from .chosen import Chosen
from .entering import Seen, seen

#: Seconds between two looks at the row.
INTERVAL_SECONDS = 0.3


class PageOperator(TargetOperator):
    """Writes each step to the row of a pairing, and reads answers from it.

    Args:
        row: the row, which this process has claimed.
        person_seconds: the longest wait for an answer of a person.
        blocking: runs a function with the database, one at a time.
    """

    def __init__(self, row: PairingSession, person_seconds: float, blocking: Blocking) -> None:
        self.row = row
        self.chosen = Chosen.from_json(row.chosen_json)
        self.is_stored = False
        self.shown: Seen | None = None
        self._seconds = person_seconds
        self._blocking = blocking
        self._new: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._asked: asyncio.Future[str] | None = None

    # --- what the ceremony calls -------------------------------------------------------------------------------------

    def progress(self, step: Step) -> None:
        if step == "matched":
            self._show(code="", ends_at=None)
        elif step == "verified":
            self._show(step=PairingSession.Step.CONFIRM, ends_at=self._end(self._seconds))
        elif step == "stored":
            self.is_stored = True

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        self._show(step=PairingSession.Step.WAITING, code=code, ends_at=self._end(seconds))

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        peer = met.peer
        self.shown = await self._blocking(seen, encode_public_key(peer.public_key))
        self._show(
            step=PairingSession.Step.CODE,
            device_id=peer.device_id,
            public_key=encode_public_key(peer.public_key),
            name=storable(peer.name),
            ends_at=self._end(self._seconds),
        )
        self._asked = asyncio.get_running_loop().create_future()
        try:
            return await self._asked
        finally:
            self._asked = None

    async def confirm_peer(self, met: Met) -> bool:
        return True  # the page has shown the device with the field for its code

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        if self.chosen.replaces in {entry.device_id for entry in controllers}:
            return self.chosen.replaces
        raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')

    # --- the row -----------------------------------------------------------------------------------------------------

    def try_again(self) -> None:
        """Show that the verification code was wrong, and that there is another one-time code soon."""
        empty = {"code": "", "device_id": "", "public_key": "", "name": "", "ends_at": None}
        self._show(step=PairingSession.Step.STARTING, wrong=self.row.wrong + 1, **empty)

    async def watch(self) -> None:
        """Write what is new, and pass on answers, until the person does not want the pairing any more.

        Raises:
            PairingCanceled, PairingAbandoned, PairingChanged, PairingLost: the ceremony must end.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            new, self._new = self._new, {}
            try:
                heard = await self._blocking(sessions.exchange, self.row, new)
            except DatabaseError:  # such as a lock. If it lasts, the next exchange says that this process is gone
                self._new = new | self._new
                continue
            if heard.is_canceled:
                raise errors.PairingCanceled()
            # A page without JavaScript is not loaded again while a person types. The ceremony itself ends that wait.
            unseen = (now() - heard.seen_at).total_seconds()
            if unseen > sessions.ABANDONED_SECONDS and self.row.step != PairingSession.Step.CODE:
                raise errors.PairingAbandoned()
            if heard.answer is not None and self._asked is not None and not self._asked.done():
                self._asked.set_result(parse_entered(heard.answer) or "")

    def _show(self, **columns: Any) -> None:
        self._new |= columns
        self._changed.set()

    @staticmethod
    def _end(seconds: float) -> dt.datetime:
        return now() + dt.timedelta(seconds=seconds)

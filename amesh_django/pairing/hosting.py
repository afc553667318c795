"""Running the ceremony of a pairing that a person began on a page: in a thread of this process, or wherever Celery runs the task."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from django.db import connections

from amesh_django.audit.recording import record
from amesh_django.conf import amesh_settings
from amesh_django.models import AuditEvent, PairingSession
from amesh_django.server import server_device
from amesh_django.trust.chain import Actor
from authmesh.commands.relays import relay_address
from authmesh.pairing import Pairing, Timeouts
from authmesh.pairing.options import Blocking
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.pairing.errors import WrongVerificationCode

from . import errors, sessions
from .entering import ChosenAllowList
from .operator import PageOperator

T = TypeVar("T")

logger = logging.getLogger("amesh_django.pairing")

#: Number of wrong verification codes after which a pairing ends. Each ends its ceremony: another one-time code is needed.
MAX_WRONG = 3
#: What the audit log names in place of a command.
SUBJECT = "admin"

#: Called with the primary key of a row, to have the task run that calls :func:`run`. May raise.
Sender = Callable[[int], None]
_sender: Sender | None = None


def connect(sender: Sender | None) -> None:
    """Set what hands a pairing to Celery (``AMESH["PAIRING_TASK"]``)."""
    global _sender
    _sender = sender


def relay_url() -> str:
    """Return the address of the relay over which people pair devices in the admin.

    Raises:
        InvalidRelayAddress: ``AMESH_RELAY_URL`` is not an address of a relay.
    """
    return relay_address(amesh_settings().RELAY_URL)


def start(row: PairingSession) -> None:
    """Have the ceremony of a pairing run, and return at once.

    Raises:
        PairingNotTaken: the task could not be handed to Celery. The pairing has failed.
    """
    if not amesh_settings().PAIRING_TASK:
        start_here(row.pk)
        return
    try:
        if _sender is None:
            raise errors.PairingNotTaken()
        _sender(row.pk)
    except Exception as error:  # any that a broker and its library may raise
        logger.error("A pairing could not be handed to Celery (%s).", type(error).__name__)
        refused = errors.PairingNotTaken()
        sessions.finish(row, refused)
        raise refused from None


def start_here(pk: int) -> None:
    """Run the ceremony of a pairing in a thread of this process.

    Args:
        pk: primary key of its row.
    """
    threading.Thread(target=run, args=(pk,), name="amesh-pairing", daemon=True).start()


def run(pk: int, timeouts: Timeouts | None = None) -> None:
    """Run the ceremony of a pairing to its end, if no other process has begun it. Never raises.

    Args:
        pk: primary key of its row.
        timeouts: the longest waits.
    """
    try:
        asyncio.run(_run(pk, timeouts or Timeouts()))
    except Exception as error:  # the database is down: the page says that this process is gone
        logger.error("A pairing ended early (%s).", type(error).__name__)


async def _run(pk: int, timeouts: Timeouts) -> None:
    async with _thread("rows") as rows, _thread("list") as blocking:
        row = await rows(sessions.claim, pk, f"{socket.gethostname()}:{os.getpid()}"[:100])
        if row is None:
            return
        operator = PageOperator(row, timeouts.person, rows)
        error = await _watched(operator, _pair(operator, timeouts, blocking))
        if operator.is_stored:  # what happened after that changes nothing
            error = None
        if error is not None:
            await rows(_record, AuditEvent.Kind.PAIRING_FAILED, row, error.code)
        await rows(sessions.finish, row, error)


async def _watched(operator: PageOperator, pairing: Coroutine[Any, Any, None]) -> AmeshError | None:
    """Run the ceremony until it ends, or until the person does not want it any more. Return the reason if it has failed."""
    tasks = [asyncio.ensure_future(pairing), asyncio.ensure_future(operator.watch())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first = next(task for task in tasks if task.done())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)  # a device that is being stored is stored first
    error = first.exception()
    if error is None or isinstance(error, AmeshError):
        return error
    logger.error("A pairing ended with an error (%s).", type(error).__name__)
    return errors.PairingBroken()


async def _pair(operator: PageOperator, timeouts: Timeouts, blocking: Blocking) -> None:
    """Run one ceremony, and further ones if the verification code was wrong: no ceremony lets anyone guess twice."""
    row = operator.row
    trusted = ChosenAllowList(
        operator.chosen,
        by=Actor(row.by, "user"),
        is_wanted=lambda: sessions.is_wanted(row),
        shown=lambda: operator.shown,
    )
    device = await blocking(server_device)
    pairing = Pairing(relay=row.relay, device=device, allow_list=trusted, timeouts=timeouts, blocking=blocking)
    for left in reversed(range(MAX_WRONG)):
        await blocking(_record, AuditEvent.Kind.PAIRING_BEGUN, row)
        try:
            await pairing.listen(operator, permissions=operator.chosen.granted())
            return
        except WrongVerificationCode as error:
            if not left:
                raise
            await blocking(_record, AuditEvent.Kind.PAIRING_FAILED, row, error.code)
            operator.try_again()


def _record(kind: str, row: PairingSession, reason: str = "") -> None:
    record(kind, by=Actor(row.by, "user"), subject=SUBJECT, reason_code=reason)


@asynccontextmanager
async def _thread(name: str) -> AsyncIterator[Blocking]:
    """Yield a function that runs others one after the other in a thread, which closes its database connections at the end."""
    pool = ThreadPoolExecutor(1, f"amesh-pairing-{name}")
    loop = asyncio.get_running_loop()

    def blocking(function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        return loop.run_in_executor(pool, function, *args)

    try:
        yield blocking
    finally:
        await loop.run_in_executor(pool, connections.close_all)
        pool.shutdown()

"""When a mail about devices that wait is due: at most one in five minutes, from whichever process comes first.

A row says when the last mail was begun, and the revision up to which devices were told of. The process that changes the time in it sends the mail, in
a thread of its own: a mail server may take any time, and neither a request nor the sweeper waits for it. The revision is moved once a
mail was sent, so that what a process did not finish is tried again, and a device that comes meanwhile is in the next mail.
"""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connections, transaction
from django.db.models import Max
from django.utils import timezone

from amesh_django.conf import amesh_settings
from amesh_django.models import ApprovalMail
from amesh_django.trust import current_list
from amesh_django.trust.database import database

from . import digest, mailer
from .waiting import queue, waiting

logger = logging.getLogger("amesh_django.approvals")

#: Seconds between two mails.
PAUSE_SECONDS = 300.0
#: Seconds that a process that ends waits for a mail that it sends.
END_SECONDS = 5.0


def is_wanted() -> bool:
    """Return True if the settings want mails, and say how one is sent."""
    try:
        found = amesh_settings()
    except ImproperlyConfigured:
        return False
    return found.REQUIRE_APPROVAL and found.APPROVAL_MAIL and mailer.is_configured()


def due_in(now: dt.datetime) -> float | None:
    """Return the seconds until a mail is due; None if nobody waits of whom no mail has told.

    Args:
        now: the time, as Django's ``timezone.now`` returns it.

    Raises:
        django.db.Error: the database cannot be used.
    """
    row = _row()
    if not queue(now).order_by().filter(revision__gt=row.told).exists():
        return None
    if row.tried_at is None:
        return 0.0
    since = (now - row.tried_at).total_seconds()
    return min(PAUSE_SECONDS, max(0.0, PAUSE_SECONDS - since))  # also if the clock was set back


def send_if_due(now: dt.datetime | None = None) -> float | None:
    """Send the mail if it is due and no other process sends it. Return what :func:`due_in` does afterwards.

    Args:
        now: the time. Defaults to the current time.

    Raises:
        AmeshError: the list cannot be verified, so nothing was sent.
        django.db.Error: the database cannot be used.
    """
    moment = now or timezone.now()
    seconds = due_in(moment)
    if seconds != 0.0:
        return seconds
    sealed = current_list()
    found = sealed.snapshot()
    if not _is_mine(moment):
        return due_in(moment)
    told = queue(moment).order_by().aggregate(told=Max("revision"))["told"]
    newest = queue(moment).order_by("-pending_since", "-pk")[: digest.MAX_NAMED]
    devices = [device for device in newest if found.matches(sealed, device)]
    if told is not None and digest.send(devices, waiting(moment)):
        ApprovalMail.objects.using(database()).filter(pk=1, told__lt=told).update(told=told)
    return due_in(moment)


def _row() -> ApprovalMail:
    return ApprovalMail.objects.using(database()).filter(pk=1).first() or ApprovalMail()


def _is_mine(now: dt.datetime) -> bool:
    """Change the time in the row, and return False if another process has done so meanwhile."""
    row, rows = _row(), ApprovalMail.objects.using(database())
    if row.tried_at is None:
        try:
            with transaction.atomic(using=database()):
                rows.create(pk=1, tried_at=now)
        except IntegrityError:
            return False
        return True
    if 0 <= (now - row.tried_at).total_seconds() < PAUSE_SECONDS:
        return False
    return bool(rows.filter(pk=1, tried_at=row.tried_at).update(tried_at=now))


class _Post:
    """The thread of this process that sends mails. It ends if nobody waits of whom no mail has told."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_asked = self._is_busy = False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        with self._changed:
            self._is_asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="amesh-approvals", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Return True as soon as no mail is being sent, or False after some seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_asked and not self._is_busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_asked, self._is_busy = False, True
            seconds = _tried()
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                if seconds is None and not self._is_asked:
                    self._thread = None
                    return
                self._changed.wait_for(lambda: self._is_asked, seconds)


def _tried() -> float | None:
    try:
        return send_if_due()
    except Exception as error:  # in a thread, nobody else would hear of it
        logger.error("The mail about approvals was not sent (%s). It is tried again.", type(error).__name__)
        return PAUSE_SECONDS
    finally:
        connections.close_all()


_post = _Post()


def begin() -> None:
    """Send a mail as soon as it is due, in a thread, if the settings want that. Never blocks, and never raises."""
    if is_wanted():
        _post.ask()


def sweep(now: dt.datetime) -> None:
    """Begin if a mail is due: the process that added the device may have ended. Called by the sweeper.

    Args:
        now: the time, as Django's ``timezone.now`` returns it.

    Raises:
        django.db.Error: the database cannot be used.
    """
    if is_wanted() and due_in(now) == 0.0:
        _post.ask()


def on_list_changed(**kwargs: Any) -> None:
    """Begin, because a change of the allow list was committed. Receiver of ``list_changed``."""
    begin()


def wait(seconds: float = END_SECONDS) -> bool:
    """Wait until no mail is being sent, some seconds at most. Return True if none is."""
    return _post.wait(seconds)


def _after_fork() -> None:
    """Begin without a thread: threads do not outlive a fork."""
    global _post
    _post = _Post()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: wait())

"""The database of the allow list: which one it is, its transactions, and errors that another attempt may not meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.models import AllowListSeal

T = TypeVar("T")

#: How often writers are locked out again after a conflict. Each attempt waits for the writer that is in its way.
_MAX_CONFLICTS = 30


def database() -> str:
    """Return the alias of the database to which the list is written. The list is read from it too, never from a replica."""
    return router.db_for_write(AllowListSeal)


def close_stale(connection: BaseDatabaseWrapper) -> bool:
    """Close a connection that was open and does not work any more. Return True if that was so.

    The server has closed it while it was idle: it was restarted, or it or a firewall ended the session. A connection in a
    transaction is left alone, because what the transaction has done is lost.
    """
    if connection.connection is None or connection.in_atomic_block or not connection.autocommit:
        return False
    if connection.is_usable():
        return False
    connection.close()
    return True


def is_conflict(error: DatabaseError) -> bool:
    """Return True for an error that a second attempt may not meet: a lock, a deadlock, a serialization failure."""
    cause = error.__cause__
    code = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
    text = str(error).lower()
    return code in ("40001", "40P01", "55P03") or "locked" in text or "deadlock" in text or "lock wait" in text


def without_writers(using: str, work: Callable[[], T]) -> T:
    """Run *work* in a transaction that has locked the seal row.

    With REPEATABLE READ, the database returns an error if the row was changed while the transaction waited for the lock. Then all of
    it is tried again, unless an outer transaction is open.
    """
    is_nested = connections[using].in_atomic_block
    attempt = 1
    while True:
        try:
            with transaction.atomic(using=using):
                list(AllowListSeal.objects.using(using).select_for_update().filter(pk=1))
                return work()
        except OperationalError as error:
            if is_nested or attempt == _MAX_CONFLICTS or not is_conflict(error):
                raise
        attempt += 1


def _holds_seal() -> None:
    """Do nothing. If this function is to be called on commit, the open transaction has locked the seal row, and maybe changed it."""


def read_for_itself(connection: BaseDatabaseWrapper) -> None:
    """Let the open transaction read the list for itself until it ends, because it holds the lock of the seal row."""
    if connection.in_atomic_block:
        transaction.on_commit(_holds_seal, using=connection.alias)


def reads_for_itself(connection: BaseDatabaseWrapper) -> bool:
    """Return True if this connection may see changes that can still be rolled back: its own, or those of a test case."""
    if not connection.in_atomic_block:
        return False
    is_of_test = getattr(connection.atomic_blocks[0], "_from_testcase", False)
    return is_of_test or any(hook[1] is _holds_seal for hook in connection.run_on_commit)

"""The database of the allow list: which one it is, its transactions, and errors that another attempt may not meet."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db import DatabaseError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max, Model, QuerySet

from amesh_django.models import AllowListSeal

T = TypeVar("T")
_M = TypeVar("_M", bound=Model)

#: How often writers are locked out again after a conflict. Each attempt waits for the writer that is in its way.
_MAX_CONFLICTS = 30
#: Numbers and primary keys from here on were forged: amesh does not come to them by counting.
MAX_COUNTED = 2**62


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


def insert_rows(rows: QuerySet[_M], new: Sequence[_M], batch_size: int) -> None:
    """Insert rows, all or none, even if forged rows have taken the primary keys that the database would give them.

    Args:
        rows: a query set of the table that can write.
        new: the rows, not saved, without primary keys.
        batch_size: number of rows that one statement inserts.
    """
    for attempt in range(int(_is_exhausted(rows)), 3):
        if attempt:
            highest = rows.filter(pk__gte=0, pk__lt=MAX_COUNTED).aggregate(found=Max("pk"))["found"] or 0
            first = highest + 1 if attempt == 1 else secrets.randbelow(MAX_COUNTED)
            for pk, row in enumerate(new, first):
                row.pk = pk
        try:
            with transaction.atomic(using=rows.db):
                rows.bulk_create(new, batch_size=batch_size)
            return
        except DatabaseError as error:
            if attempt == 2 or is_conflict(error):
                raise


def _is_exhausted(rows: QuerySet[Any]) -> bool:
    """Return True if there may be no primary key after the highest one that the table has ever had.

    SQLite then rolls back the whole transaction that inserts a row, not only a savepoint.
    """
    connection = connections[rows.db]
    if connection.vendor != "sqlite":
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM sqlite_sequence WHERE name = %s AND typeof(seq) = 'integer' AND seq BETWEEN 0 AND %s",
            [rows.model._meta.db_table, MAX_COUNTED],
        )
        return cursor.fetchone() is None or rows.filter(pk__gte=MAX_COUNTED).exists()


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

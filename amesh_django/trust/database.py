"""The database of the allow list, and a connection to it that does not work any more."""

from __future__ import annotations

from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.models import AllowListSeal


def database() -> str:
    """Return the alias of the database to which the list is written. The list is read from it too, never from a replica."""
    return router.db_for_write(AllowListSeal)


def close_stale(connection: BaseDatabaseWrapper) -> bool:
    """Close a connection that was open, had an error, and does not work any more. Return True if that was so.

    The server has closed it while it was idle: it was restarted, or it or a firewall ended the session. A connection in a
    transaction is left alone, because what the transaction has done is lost.
    """
    if connection.connection is None or connection.in_atomic_block or not connection.autocommit:
        return False
    connection.close_if_unusable_or_obsolete()
    return connection.connection is None

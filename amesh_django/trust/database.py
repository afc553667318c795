"""The database of the allow list."""

from __future__ import annotations

from django.db import router

from amesh_django.models import AllowListSeal


def database() -> str:
    """Return the alias of the database to which the list is written. The list is read from it too, never from a replica."""
    return router.db_for_write(AllowListSeal)

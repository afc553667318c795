"""The database that the list lives in."""

from __future__ import annotations

from django.db import router

from amesh_django.models import AllowListSeal


def database() -> str:
    """The database that the list is written to; it is read from there too, never from a replica."""
    return router.db_for_write(AllowListSeal)

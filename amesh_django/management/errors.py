"""Errors of Django, explained to a person who runs a command."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from amesh_django.models import Device
from amesh_django.trust.database import database
from authmesh.commands.words import first_line
from authmesh.protocol.errors import AllowListUnavailable, AmeshError


class Misconfigured(AmeshError):
    """The settings of the project are not valid."""

    code = "misconfigured"
    default_message = "The settings of the project are not valid."


class DatabaseProblem(AmeshError):
    """The database can't be used, or is not migrated."""

    code = "database_error"
    default_message = "The database cannot be used."


def explain(error: Exception) -> AmeshError | None:
    """Return what an error of Django means for the person who runs a command, or None if it is a bug."""
    if isinstance(error, ImproperlyConfigured):
        return Misconfigured(str(error))
    if isinstance(error, AllowListUnavailable) and isinstance(error.__cause__, Error):
        error = error.__cause__
    if not isinstance(error, Error):
        return None
    why = first_line(error)
    try:
        tables = connections[database()].introspection.table_names()
    except Error:
        return DatabaseProblem(
            f"The database cannot be used ({why}).", hint="Check DATABASES, and that the database server is running."
        )
    if Device._meta.db_table not in tables:
        return DatabaseProblem(
            "The database does not have the tables of amesh yet.", hint="To create them, run manage.py migrate."
        )
    return DatabaseProblem(
        f"The database returned an error ({why}).", hint="If amesh was updated, run manage.py migrate."
    )

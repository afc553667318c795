"""``manage.py amesh_init``: the identity of this server, in the directory that the settings name."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar

from django.db import Error

from amesh_django import lifecycle
from amesh_django.conf import amesh_settings
from amesh_django.management.base import AmeshCommand, call_of
from amesh_django.trust import current_list
from authmesh import commands

#: What becomes of the list in the database.
_RESEAL = (
    f"The list stays in the database, and lets nobody in until you accept it anew: {call_of('integrity')} --reseal"
)
_SHARED = "The list stays as it is: AMESH['SEAL_KEY_FILE'] seals it. They are let in as before."


def _init(context: commands.Context, **options: Any) -> None:
    fate = _RESEAL if amesh_settings().SEAL_KEY_FILE is None else _SHARED
    try:
        commands.INIT.run(dataclasses.replace(context, fate=fate), **options)
    finally:
        lifecycle.reset()
    is_sealed = False
    if amesh_settings().SEAL_KEY_FILE is None:
        with contextlib.suppress(Error):  # not migrated yet: then no list is there either
            is_sealed = current_list().read_seal() is not None
    if is_sealed:
        context.console.warn(
            "The database holds a list of trusted devices that was sealed by another identity. Nobody on it is let in until you "
            f"have looked at it and accepted it: {call_of('integrity')} --reseal"
        )


class Command(AmeshCommand):
    """See :mod:`authmesh.commands`."""

    spec: ClassVar[commands.Command] = dataclasses.replace(commands.INIT, run=_init)

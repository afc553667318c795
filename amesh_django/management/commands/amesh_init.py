"""``manage.py amesh_init``: the identity of this server, in the directory that the settings name."""

import contextlib
from typing import Any

from django.db import Error

from amesh_django import lifecycle
from amesh_django.conf import amesh_settings
from amesh_django.management.base import AmeshCommand
from amesh_django.trust import current_list
from amesh_django.trust.verified import other_secret
from authmesh.commands.context import Context
from authmesh.commands.init import INIT
from authmesh.protocol.errors import Run


class Command(AmeshCommand):
    spec = INIT

    def run(self, context: Context, **options: Any) -> None:
        try:
            super().run(context, **options)
        finally:
            lifecycle.reset()
        if _has_foreign_seal():
            context.console.warn(
                (
                    f"The database has an allow list that another identity has sealed. All requests are rejected. {other_secret()} If this "
                    "is the only host, examine the list, and accept it with ",
                    Run("integrity", "--reseal"),
                    ".",
                )
            )


def _has_foreign_seal() -> bool:
    """Return True if there is an allow list that was sealed with a key that a new identity does not have."""
    if None not in amesh_settings().seal_secrets:
        return False
    with contextlib.suppress(Error):  # not migrated, so there is no list
        return current_list().read_seal() is not None
    return False

"""``manage.py amesh_revoke``: at a hub, it also says which servers have confirmed it."""

from contextlib import suppress
from typing import Any

from amesh_django.fleet import overview, servers
from amesh_django.management.base import AmeshCommand
from authmesh.commands.context import Context
from authmesh.commands.devices import REVOKE
from authmesh.protocol.errors import AmeshError, Run


class Command(AmeshCommand):
    spec = REVOKE

    def run(self, context: Context, **options: Any) -> None:
        super().run(context, **options)
        with suppress(AmeshError):  # the devices are revoked, and the command has said what else is wrong
            done, count = overview.acknowledged(servers.head().revision)
            if count:
                which = f"{done} of {count} servers have confirmed it, and the others are being told."
                context.console.say((f"{which} To see them, run ", Run("servers"), "."))

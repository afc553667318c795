"""``manage.py amesh_invite``: also makes the device that it pairs with a server of this hub."""

from typing import Any

from django.core.management.base import CommandParser

from amesh_django.fleet import servers
from amesh_django.management.pairing import PairingCommand
from amesh_django.management.servers import add_scope_arguments, add_server, scope_of
from authmesh.commands.context import Context
from authmesh.commands.pairing.invite import INVITE, pair
from authmesh.commands.terminal.errors import UsageProblem


class Command(PairingCommand):
    spec = INVITE
    _url: str | None
    _scope: dict[str, Any]

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--url",
            metavar="URL",
            help="The device is a server, and this one its hub: carry revocations there from now on. URL is the address of "
            "amesh_django.urls there, such as https://api.example/amesh/.",
        )
        add_scope_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self._url = options["url"]
        self._scope = {"enroll": options["enroll"], "groups": options["group"], "all_devices": options["all_devices"]}
        super().handle(*args, **options)

    def pair(self, context: Context, **options: Any) -> None:
        if self._url is None:
            if any(self._scope.values()):
                raise UsageProblem("--enroll, --group and --all-devices need --url. Nothing was done.")
            super().pair(context, **options)
            return
        scope_of_events, groups = scope_of(**self._scope)
        url = self._url if self._url.endswith("/") else f"{self._url}/"
        servers.check(url, scope_of_events, groups)  # before two people meet for nothing
        entry = pair(context, **options)
        add_server(context, entry.device_id, url, scope_of_events=scope_of_events, groups=groups)
        context.console.step({"step": "server", "deviceId": entry.device_id, "url": url})

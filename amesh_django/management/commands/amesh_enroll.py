"""``manage.py amesh_enroll``: this server becomes a controller of another one, and its hub if that is wanted."""

from typing import Any

from django.core.management.base import CommandParser

from amesh_django import lifecycle
from amesh_django.management.base import AmeshCommand
from amesh_django.management.servers import add_scope_arguments, add_server, scope_of
from authmesh.commands.context import Context
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.tokens.enroll import ENROLL, enroll_device, enrolled_json


class Command(AmeshCommand):
    spec = ENROLL
    _as_hub: bool
    _scope: dict[str, Any]

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--as-hub",
            action="store_true",
            help="This server is a hub: carry revocations to the other one from now on.",
        )
        add_scope_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self._as_hub = options["as_hub"]
        self._scope = {"enroll": options["enroll"], "groups": options["group"], "all_devices": options["all_devices"]}
        super().handle(*args, **options)

    def run(self, context: Context, **options: Any) -> None:
        if any(self._scope.values()) and not self._as_hub:
            raise UsageProblem("--enroll, --group and --all-devices need --as-hub. Nothing was done.")
        scope_of_events, groups = scope_of(**self._scope)
        try:
            done = enroll_device(context, **options)
        finally:
            lifecycle.reset()
        answer = enrolled_json(done)
        if self._as_hub:
            add_server(context, done.server.device_id, done.url, scope_of_events=scope_of_events, groups=groups)
            answer["tells"] = scope_of_events
        context.console.result(answer)

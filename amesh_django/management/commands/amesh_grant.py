"""``manage.py amesh_grant``: also groups and expiry, which only a list in a database has."""

from typing import Any

from django.core.management.base import CommandParser

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.management.base import AmeshCommand
from amesh_django.management.deciding import moment, report
from amesh_django.management.home import as_model_time
from authmesh.commands.context import Context
from authmesh.commands.granting import GRANT, chosen, effect, wanted
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.protocol.errors import Run


class Command(AmeshCommand):
    spec = GRANT
    _group: list[str]
    _expires: str | None

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--group", metavar="G", action="append", default=[], help="Add to a group. May be given several times."
        )
        parser.add_argument(
            "--expires",
            metavar="TIME",
            help="Accept the devices until then: a span such as 90d, or a time. never removes it.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._group, self._expires = options["group"], options["expires"]
        super().handle(*args, **options)

    def run(self, context: Context, **options: Any) -> None:
        self._grant(context, **options)
        of_hubs = {"revoke", "enroll"} & set(options["permission"])
        if of_hubs and not options["remove"]:
            may = "revoke, suspend, and add devices" if "enroll" in of_hubs else "revoke and suspend devices"
            context.console.say(
                (
                    f"As a hub, it may now {may} here. To see when it was heard, run ",
                    Run("hubs"),
                    ". At the hub, manage.py amesh_servers lists this server.",
                )
            )

    def _grant(self, context: Context, **options: Any) -> None:
        if not self._group and self._expires is None:
            super().run(context, **options)
            return
        if self._expires is not None and options["remove"]:
            raise UsageProblem(
                "--expires and --remove contradict each other. Nothing was changed.",
                hint="Use --expires never to remove an expiry, in a command of its own.",
            )
        devices = DatabaseAllowList(by=context.home.actor)
        words = {name: options[name] for name in ("shell", "permission", "scope", "remove")}
        given, taken = wanted(**words, more=self._group)
        ids = [device.entry.device_id for device in chosen(context, options["devices"])]
        if self._expires == "never":
            if any((*given, *taken)):
                raise UsageProblem(
                    "--expires never stands alone. Nothing was changed.", hint="Use a command of its own."
                )
            report(context, devices.set_expiry(ids, None), lambda device: "does not expire")
            return
        end = as_model_time(moment("--expires", self._expires, context.now())) if self._expires is not None else None
        expires = f"expires {end:%Y-%m-%d %H:%M %Z}".rstrip() if end is not None else ""
        done = " and ".join(filter(None, (effect(given, taken), expires)))
        report(context, devices.grant(ids, given, taken=taken, expires_at=end), lambda device: done)

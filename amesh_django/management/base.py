"""The common part of all ``manage.py amesh_*`` commands."""

from __future__ import annotations

import getpass
import os
import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any, ClassVar, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter

from amesh_django.trust.chain import Actor
from amesh_django.trust.sealing import storable
from authmesh.commands.context import Context
from authmesh.commands.home import Home
from authmesh.commands.spec import FAILED, INTERRUPTED, WRONG_USAGE, Command, Failure, attempt
from authmesh.commands.terminal.console import forget_stdout
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.protocol.display import clean, without_tokens
from authmesh.protocol.errors import AmeshError

from .console import DjangoConsole
from .errors import Misconfigured, explain
from .home import DatabaseHome
from .worker import DatabaseThread

#: Commands that change the allow list of the server.
CHANGES = frozenset(
    {
        "approve",
        "deny",
        "suspend",
        "lift",
        "reinstate",
        "revoke",
        "grant",
        "group",
        "rename",
        "map",
        "purge",
        "prune",
        "trust",
    }
)


class _HelpFormatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Django's order of options, and the paragraphs of a description."""


class AmeshCommand(BaseCommand):
    """A management command made from a command of :mod:`authmesh.commands`, or described in the same way.

    Attributes:
        spec: the command.
    """

    spec: ClassVar[Command]
    # A person who sets up or repairs a server needs these commands while a check still fails.
    requires_system_checks = []  # noqa: RUF012
    _by = ""
    _called_from_command_line: bool  # an attribute of Django that its type stubs lack

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = self.spec.description

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return Django's parser. It reports wrong usage as JSON if ``--json`` is given, and never repeats a bootstrap token."""
        parser = super().create_parser(prog_name, subcommand, **{"formatter_class": _HelpFormatter, **kwargs})
        report = parser.error
        as_json = self._called_from_command_line and "--json" in sys.argv
        parser.error = self._report_usage if as_json else lambda message: report(without_tokens(message))  # type: ignore[method-assign]
        return parser

    def _report_usage(self, message: str) -> NoReturn:
        DjangoConsole(self, as_json=True).error(UsageProblem.code, message)
        sys.exit(WRONG_USAGE)

    def add_arguments(self, parser: CommandParser) -> None:
        self.spec.add_arguments(parser)
        if self.spec.name in CHANGES:
            parser.add_argument(
                "--by",
                metavar="PERSON",
                help="Who makes the change, for the records. Defaults to your user, before sudo.",
            )

    def home(self) -> Home:
        """Return the home of this server.

        Raises:
            ImproperlyConfigured: ``AMESH`` is not valid.
        """
        return DatabaseHome(self.actor())

    def actor(self) -> str:
        """Return the person who runs the command: ``--by``, or the user of the operating system, before sudo if there was one."""
        return Actor(f"{self._by} (manage.py)", "command") if self._by else _actor()

    def run(self, context: Context, **options: Any) -> None:
        """Run the command. A subclass can do more."""
        self.spec.run(context, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command, and exit with its exit code.

        Raises:
            CommandError: it failed, and was called by ``call_command`` or with ``--traceback``.
        """
        self._by = storable(clean(options["by"])) if options.get("by") else ""
        console = DjangoConsole(
            self,
            as_json=options["json"],
            no_input=options.get("no_input", False),
            owns_terminal=self._called_from_command_line,
            in_color=False if options["no_color"] else True if options["force_color"] else None,
        )
        try:
            failure = self._attempt(console, options)
            self.stdout.flush()
        except BrokenPipeError:
            forget_stdout()
            sys.exit(FAILED)
        if failure is None:
            return
        if not self._called_from_command_line or options["traceback"]:
            if failure.exit_code == INTERRUPTED:
                raise KeyboardInterrupt
            raise CommandError(failure.message, returncode=failure.exit_code)
        console.error(failure.code, failure.message)
        sys.exit(failure.exit_code)

    def _attempt(self, console: DjangoConsole, options: dict[str, Any]) -> Failure | None:
        try:
            with DatabaseThread() as blocking:
                context = Context(console, self.home(), blocking=blocking)
                return attempt(self.spec, context, self.spec.options(options), run=self.run, translate=explain)
        except ImproperlyConfigured as error:
            return Failure(FAILED, Misconfigured.code, str(error))
        except AmeshError as error:  # the device directory cannot be found
            return Failure(FAILED, error.code, error.text(console.spell))


def _actor() -> str:
    try:
        return Actor(f"{os.environ.get('SUDO_USER') or getpass.getuser()} (manage.py)", "command")
    except (KeyError, OSError):  # a user ID without a name, as in many containers
        return Actor("manage.py", "command")

"""The common part of all ``manage.py amesh_*``: options, the list in the database, errors as Django wants them."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any, ClassVar, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.server import server_enrolment
from amesh_django.trust.database import database
from amesh_django.trust.owner import open_device, server_directory
from authmesh import commands
from authmesh.commands import words
from authmesh.pairing import Blocking
from authmesh.protocol.display import clean, without_tokens
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError
from authmesh.protocol.keys import encode_public_key

from .console import DjangoConsole
from .worker import DatabaseThread

_TYPES = {"number": int, "seconds": float}


class Misconfigured(AmeshError):
    """The settings of the project are wrong; the sentence says which."""

    code = "misconfigured"


class DatabaseProblem(AmeshError):
    """The database is down, or not migrated."""

    code = "database_error"


def call_of(command: str) -> str:
    """How a command with its arguments is called here: ``sign-test`` → ``manage.py amesh_sign_test``."""
    name, space, arguments = command.partition(" ")
    return f"manage.py amesh_{name.replace('-', '_')}{space}{arguments}"


def explain(error: Exception) -> AmeshError | None:
    """What an error of Django means for whoever typed the command; None for a bug."""
    if isinstance(error, ImproperlyConfigured):
        return Misconfigured(str(error))
    if isinstance(error, AllowListIntegrityFailure):  # a list that can't be read is refused like a broken one
        error = error.__cause__ if isinstance(error.__cause__, Error) else error
    if not isinstance(error, Error):
        return None
    first_line = str(error).partition("\n")[0]
    try:
        tables = connections[database()].introspection.table_names()
    except Error:
        return DatabaseProblem(f"The database can't be used ({first_line}). Check DATABASES, and that it runs.")
    if Device._meta.db_table not in tables:
        return DatabaseProblem("The tables of amesh are not in the database yet. Make them: manage.py migrate")
    return DatabaseProblem(f"The database refused ({first_line}). If amesh was updated, run: manage.py migrate")


def _actor() -> str:
    try:
        return f"{getpass.getuser()} (manage.py)"
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "manage.py"


def _past(public_key: bytes) -> str | None:
    row = Device.objects.using(database()).filter(public_key=encode_public_key(public_key)).first()
    if row is None or row.revoked_at is None:
        return None
    by = f" by {clean(row.revoked_by)}" if row.revoked_by else ""
    why = f": {clean(row.revoke_reason)}" if row.revoke_reason else ""
    return f"It was revoked here {words.when(format_time(row.revoked_at))}{by}{why}. Trusting it undoes that."


def _add(parser: CommandParser, option: commands.Option) -> None:
    settings: dict[str, Any] = {"help": option.help.replace("%", "%%")}
    if option.kind == "flag":
        settings["action"] = "store_true"
    elif option.kind == "switch":
        settings |= {"action": argparse.BooleanOptionalAction, "default": None}
    else:
        settings |= {"type": _TYPES.get(option.kind, str), "metavar": option.metavar, "default": option.default}
        if option.choices:
            settings |= {"choices": option.choices}
        if option.multiple:
            settings |= {"action": "append"}
    if not option.is_argument:
        parser.add_argument(*option.flags, dest=option.name, required=option.required, **settings)
    elif option.required:
        parser.add_argument(option.name, **settings)
    else:
        parser.add_argument(option.name, nargs="?", **settings)


class AmeshCommand(BaseCommand):
    """A command that ``amesh`` has as well, or that is described in the same way.

    Attributes:
        spec: what it is.
    """

    spec: ClassVar[commands.Command]
    # Whoever sets a server up or mends it needs these commands while a check still fails.
    requires_system_checks = []  # noqa: RUF012
    _called_from_command_line: bool  # Django's; its type stubs leave it out

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = self.spec.help

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """See :class:`BaseCommand`. With ``--json`` wrong usage is told as JSON too."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        told = parser.error
        as_json = self._called_from_command_line and "--json" in sys.argv
        parser.error = self._wrong_usage if as_json else lambda message: told(without_tokens(message))  # type: ignore[method-assign]
        return parser

    def _wrong_usage(self, message: str) -> NoReturn:
        DjangoConsole(self, as_json=True).error("usage", message)
        sys.exit(2)

    def add_arguments(self, parser: CommandParser) -> None:
        """The options of :attr:`spec`."""
        for option in (*self.spec.options, *self.spec.common):
            _add(parser, option)

    def context(self, console: DjangoConsole, blocking: Blocking) -> commands.Context:
        """What the shared functions get here.

        Args:
            console: of this run.
            blocking: how what blocks is run beside an event loop.

        Raises:
            ImproperlyConfigured: ``AMESH`` is wrong.
        """
        actor = _actor()
        return commands.Context(
            console=console,
            directory=server_directory(),
            device=open_device,
            allow_list=lambda: DatabaseAllowList(by=actor),
            command=call_of,
            actor=actor,
            past=_past,
            blocking=blocking,
            enrolment=server_enrolment,
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it.

        Raises:
            CommandError: it failed, and was called by ``call_command`` or with ``--traceback``.
        """
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
            commands.forget_stdout()
            sys.exit(1)
        if failure is None:
            return
        if not self._called_from_command_line or options["traceback"]:
            if failure.exit_code == commands.INTERRUPTED:
                raise KeyboardInterrupt
            raise CommandError(failure.message, returncode=failure.exit_code)
        console.error(failure.code, failure.message)
        sys.exit(failure.exit_code)

    def _attempt(self, console: DjangoConsole, options: dict[str, Any]) -> commands.Failure | None:
        own = {option.name: options[option.name] for option in self.spec.options}
        for option in self.spec.options:
            if option.multiple:
                own[option.name] = tuple(own[option.name] or ())
        try:
            with DatabaseThread() as blocking:
                context = self.context(console, blocking)
                return commands.attempt(self.spec, context, own, translate=explain)
        except ImproperlyConfigured as error:
            return commands.Failure(1, Misconfigured.code, str(error))
        except AmeshError as error:  # there is no such device directory
            return commands.Failure(1, error.code, str(error))

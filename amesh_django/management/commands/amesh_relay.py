"""``manage.py amesh_relay``: start a relay."""

from __future__ import annotations

import os
import resource
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

from amesh_django.relay import conf

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3001
RELAY_ONLY = "amesh_django.relay.asgi.application"


class Command(BaseCommand):
    """Runs until SIGTERM or Ctrl-C."""

    help = (
        "Start a relay: it brings devices together that pair, and forwards what they say without being able to read it. Serves /ws, "
        "/health and /metrics. With REDIS_URL several of them are one."
    )
    # A relay needs neither a database nor an identity; of the settings it reads its own and says what is wrong with them.
    requires_system_checks = []  # noqa: RUF012

    def add_arguments(self, parser: CommandParser) -> None:
        """Where to listen, and what to serve."""
        parser.add_argument(
            "--host",
            default=os.environ.get("HOST") or DEFAULT_HOST,
            help=f"Address to listen at; HOST, else {DEFAULT_HOST}. 0.0.0.0 or :: is every address of this machine.",
        )
        parser.add_argument(
            "--port", default=os.environ.get("PORT") or str(DEFAULT_PORT), help=f"Port; PORT, else {DEFAULT_PORT}."
        )
        parser.add_argument(
            "--application",
            default=RELAY_ONLY,
            metavar="PATH",
            help="What to serve instead of the relay alone, such as mysite.asgi.application with the relay mounted in it.",
        )

    def handle(self, *args: Any, host: str, port: str, application: str, **options: Any) -> None:
        """Serve.

        Raises:
            CommandError: it can't be started.
        """
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise CommandError(f"{port!r} is no port. Say --port, or set PORT, to a number from 1 to 65535.")
        try:
            settings = conf.relay_settings()
            from amesh_django.relay.hub.current import make_exchange
            from amesh_django.relay.server import OTHER_FILES, RelayServer

            make_exchange(settings)  # so that what is wrong with it is said now

            app = import_string(application.replace(":", "."))
            files = _raise_file_limit(settings.MAX_CONNECTIONS + 2 * OTHER_FILES + 500)
            server = RelayServer(app, host=host, port=int(port), files=files, bodies=application != RELAY_ONLY)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        except ImportError as error:
            raise CommandError(
                f"{application} can't be imported ({error}). Check --application: a dotted path to an ASGI application."
            ) from None
        if files < settings.MAX_CONNECTIONS + 2 * OTHER_FILES:
            self.stderr.write(
                f"This process may open {files} files, too few for {settings.MAX_CONNECTIONS} connections. Raise the limit "
                "(LimitNOFILE= of systemd, ulimit -n), or lower AMESH['RELAY']['MAX_CONNECTIONS']."
            )
        shared = "shared through Redis" if conf.redis_url(settings) else "alone, in memory"
        shown = f"[{host}]" if ":" in host else host
        self.stdout.write(f"Relay at ws://{shown}:{port}/ws, {shared}. Ctrl-C stops it.")
        self.stdout.flush()
        server.run()
        if server.abort_start:
            raise CommandError(
                f"{shown}:{port} can't be listened at. Is another relay running there? Say another --port. Else see that --host is an "
                "address of this machine, and that this user may take the port."
            )


def _raise_file_limit(wanted: int) -> int:
    """As far as this user may. Returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft

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
    """Runs a relay until SIGTERM or Ctrl-C."""

    help = (
        "Start a relay: it connects devices that pair, and forwards their messages without being able to read them. Serves /ws, /health "
        "and /metrics. With REDIS_URL, several processes form one relay."
    )
    # A relay needs neither a database nor an identity, and reports what is wrong with its own settings.
    requires_system_checks = []  # noqa: RUF012

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--host",
            default=os.environ.get("HOST") or DEFAULT_HOST,
            help=f"Address to listen on. Defaults to HOST, or {DEFAULT_HOST} if HOST is not set. 0.0.0.0 or :: is every address of this "
            "machine.",
        )
        parser.add_argument(
            "--port",
            default=os.environ.get("PORT") or str(DEFAULT_PORT),
            help=f"Port to listen on. Defaults to PORT, or {DEFAULT_PORT} if PORT is not set.",
        )
        parser.add_argument(
            "--application",
            default=RELAY_ONLY,
            metavar="PATH",
            help="ASGI application to serve instead of the relay alone, such as mysite.asgi.application with the relay mounted in it.",
        )

    def handle(self, *args: Any, host: str, port: str, application: str, **options: Any) -> None:
        """Run the relay.

        Raises:
            CommandError: the relay cannot be started.
        """
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise CommandError(f"{port!r} is not a valid port. Set --port or PORT to a number from 1 to 65535.")
        try:
            settings = conf.relay_settings()
            # Here, because the extra `relay` is optional.
            from amesh_django.relay.hub.current import make_exchange
            from amesh_django.relay.server import OTHER_FILES, RelayServer

            make_exchange(settings)  # reports what is wrong with it before the server starts

            app = import_string(application.replace(":", "."))
            files = _raise_file_limit(settings.MAX_CONNECTIONS + 2 * OTHER_FILES + 500)
            server = RelayServer(app, host=host, port=int(port), files=files, bodies=application != RELAY_ONLY)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        except ImportError as error:
            raise CommandError(
                f"{application} cannot be imported ({error}). Set --application to the dotted path of an ASGI application."
            ) from None
        if files < settings.MAX_CONNECTIONS + 2 * OTHER_FILES:
            self.stderr.write(
                f"This process may open {files} files, which is not enough for {settings.MAX_CONNECTIONS} connections. Raise the limit "
                "(LimitNOFILE= of systemd, ulimit -n), or lower AMESH['RELAY']['MAX_CONNECTIONS']."
            )
        shared = "shared through Redis" if conf.redis_url(settings) else "alone, in memory"
        shown = f"[{host}]" if ":" in host else host
        self.stdout.write(f"Relay at ws://{shown}:{port}/ws, {shared}. Ctrl-C stops it.")
        self.stdout.flush()
        server.run()
        if server.abort_start:
            raise CommandError(
                f"The relay cannot listen on {shown}:{port}. If another program uses the port, choose another one with --port. Otherwise "
                "check that --host is an address of this machine, and that this user may use the port."
            )


def _raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files as far as this user may, and return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft

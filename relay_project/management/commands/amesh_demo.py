"""``manage.py amesh_demo``: run the main use case for real, and check it."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser

from authmesh import keystore
from authmesh.protocol.errors import AmeshError
from relay_project.demo.play import LAPTOP, USER, Play
from relay_project.demo.stage import DemoError, Stage


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


class Command(BaseCommand):
    """Runs servers and devices in a temporary folder. The exit code is 1 if a check fails."""

    help = (
        "Run the main use case for real: servers and devices in a temporary folder, pairing over a relay and by bootstrap token, signed "
        "and forged requests, machines that enroll, a tampered allow list, and a hub, at which revoking in the admin reaches two more servers. The exit code is 1 if a check fails."
    )
    # The demo has a server and a database of its own, so problems of this project do not matter.
    requires_system_checks = []  # noqa: RUF012

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--keep",
            action="store_true",
            help="Keep the server running until Ctrl-C, and print how to log in to its admin.",
        )
        parser.add_argument(
            "--backend",
            choices=("tpm2", "encrypted-file"),
            help="Key store for the keys of all devices. Defaults to the best one of this machine. tpm2 uses the TPM that "
            "AMESH_TPM_TCTI names.",
        )

    def handle(self, *args: Any, keep: bool, backend: str | None, **options: Any) -> None:
        """Run the demo.

        Raises:
            CommandError: a check failed, or the demo could not continue.
        """
        if backend is not None:
            try:
                keystore.choose(backend)
            except AmeshError as error:
                raise CommandError(str(error)) from None
        stage = Stage(self._say, marks=self._marks(), title=self.style.MIGRATE_HEADING)
        before = signal.signal(signal.SIGTERM, _terminated)  # so that the temporary folder and the servers are removed
        try:
            with tempfile.TemporaryDirectory(prefix="amesh-demo-", ignore_cleanup_errors=True) as folder:
                self._say(
                    "A hub and three servers, a laptop that they trust, three machines, and a stranger. Their files are in"
                )
                self._say(f"{folder} and is removed at the end.")
                play = Play(Path(folder), stage, backend)
                play.perform((lambda url: self._wait(url, play.password, folder)) if keep else None)
        except KeyboardInterrupt:
            self._say("\nStopped. All files and servers of the demo were removed.")
            sys.exit(130)
        except httpx.HTTPError as error:
            raise CommandError(f"The server did not answer: {error}. Try again.") from error
        except (DemoError, AmeshError) as error:
            raise CommandError(str(error)) from error
        finally:
            signal.signal(signal.SIGTERM, before)
        if stage.failures:
            raise CommandError(f"{stage.failures} of {stage.checks} checks failed; they are marked above.")
        self._say("")
        self._say(self.style.SUCCESS(f"All {stage.checks} checks passed."))

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _marks(self) -> tuple[str, str]:
        good, bad = "✓", "✗"
        try:
            (good + bad).encode(getattr(self.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            good, bad = "ok", "NO"
        return self.style.SUCCESS(good), self.style.ERROR(bad)

    def _wait(self, url: str, password: str, folder: str) -> None:
        """Print how to use the server, and wait until Ctrl-C."""
        self._say(f"""
The server keeps running until Ctrl-C. Machines send requests, one waits for approval, and one server is behind.

  admin     {url}/admin/amesh/
  user      {USER}
  password  {password}

The laptop is revoked now. To trust it again, and to send a request as the laptop, run:

  export DJANGO_DATA_DIR={folder}/data
  AUTH_MESH_DIR={folder}/{LAPTOP} amesh export-key |
    AUTH_MESH_DIR={folder}/server manage.py amesh_trust - --role controller --yes
  AUTH_MESH_DIR={folder}/{LAPTOP} amesh fetch {url}/api/hello
""")
        try:
            signal.pause()
        except KeyboardInterrupt:
            self._say("\nStopping the server, and removing its folder.")

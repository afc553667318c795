"""The programs that the demo runs, in a folder of its own: the two command lines, and the server."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings

from authmesh.keystore.tpm.place import NONE, VARIABLE

from .screen import Screen, screen
from .stage import DemoError, Stage

HOST = "127.0.0.1"
_START_SECONDS, _STOP_SECONDS = 30.0, 10.0
_MANAGE = [sys.executable, str(settings.BASE_DIR / "manage.py")]
_AMESH = [sys.executable, "-m", "authmesh"]
#: A developer's own device, database and settings have no part in the demo.
_NOT_OURS = ("AMESH_", "AUTH_MESH_", "DJANGO_", "REDIS_URL", "GUNICORN_", "WEB_CONCURRENCY", "SCRIPT_NAME")


def _tpm(backend: str | None) -> dict[str, str]:
    """The TPM of the environment is not ours either, unless it is asked for."""
    if backend == "tpm2":
        return {VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {}
    return {} if backend is None else {VARIABLE: NONE}


class Programs:
    """Runs commands as a person would, and shows them.

    Args:
        folder: where all that they make lies.
        stage: where they are shown.
        backend: where the keys are to live; None takes the best of this machine.

    Attributes:
        tpm: the variable that says which TPM the programs use, if any is named.
    """

    def __init__(self, folder: Path, stage: Stage, backend: str | None = None) -> None:
        self.folder = folder
        self._stage = stage
        self.tpm = _tpm(backend)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        self._environment = {
            **kept,
            **self.tpm,
            "HOME": str(folder),
            "DJANGO_SETTINGS_MODULE": "relay_project.settings",
            "PYTHONPATH": str(settings.BASE_DIR),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }

    def environment(self, device: str) -> dict[str, str]:
        """What makes a command act as one of the devices."""
        return {
            **self._environment,
            "AUTH_MESH_DIR": str(self.folder / device),
            "DJANGO_DATA_DIR": str(self.folder / ("data" if device == "server" else f"data-{device}")),
        }

    def manage(
        self, *words: str, secrets: Mapping[str, str] | None = None, fails: bool = False, quietly: bool = False
    ) -> str:
        """A command of the server: ``manage.py …``. Its secrets go by environment, never on the command line."""
        if not quietly:
            self._stage.command(["manage.py", *words])
        return self._run([*_MANAGE, *words], {**self.environment("server"), **(secrets or {})}, fails)

    def migrate(self, device: str) -> None:
        """Make the tables of a server."""
        self._stage.command(["manage.py", "migrate", "--verbosity=0"])
        self._run([*_MANAGE, "migrate", "--verbosity=0"], self.environment(device), False)

    @contextmanager
    def at_terminal(self, device: str, *words: str, relay: str) -> Iterator[Screen]:
        """A command on a terminal, of a device that knows the relay's address."""
        self._stage.command(words)
        program, *rest = words
        argv = [*(_MANAGE if program == "manage.py" else _AMESH), *rest]
        environment = {**self.environment(device), "AMESH_RELAY_URL": relay}
        with screen(argv, environment, " ".join(words)) as found:
            yield found

    def amesh(self, device: str, *words: str) -> str:
        """A command of another device: ``amesh …``."""
        self._stage.command(["amesh", *words])
        return self._run([*_AMESH, *words], self.environment(device), False)

    def _run(self, argv: list[str], environment: Mapping[str, str], fails: bool) -> str:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8"
        )
        printed = done.stdout + done.stderr
        if bool(done.returncode) != fails:
            raise DemoError(f"That command ended with {done.returncode}. It printed:\n{printed}")
        return printed if fails else done.stdout

    @contextmanager
    def server(self, device: str = "server", *, secrets: Mapping[str, str] | None = None) -> Iterator[Server]:
        """A server, up inside the block. One process: nonces lie in its memory, so there must not be a second."""
        address = f"{HOST}:{_free_port()}"
        if importlib.util.find_spec("gunicorn"):
            shown = ["gunicorn", "relay_project.wsgi", "--workers", "1", "--threads", "4", "--bind", address]
            argv = [sys.executable, "-m", *shown]
        else:
            shown = ["manage.py", "runserver", "--noreload", address]
            argv = [*_MANAGE, *shown[1:]]
        environment = {**self.environment(device), **(secrets or {})}
        with self._serve(shown, argv, environment, address, f"{device}.log") as server:
            yield server

    @contextmanager
    def relay(self) -> Iterator[Server]:
        """A relay, up inside the block."""
        host, _, port = (address := f"{HOST}:{_free_port()}").partition(":")
        shown = ["manage.py", "amesh_relay", "--host", host, "--port", port]
        with self._serve(shown, [*_MANAGE, *shown[1:]], self.environment("relay"), address, "relay.log") as server:
            yield server

    @contextmanager
    def _serve(
        self, shown: list[str], argv: list[str], environment: Mapping[str, str], address: str, log: str
    ) -> Iterator[Server]:
        server = Server(argv, environment, address, self.folder / log)
        self._stage.command(shown)
        try:
            server.start()
            yield server
        finally:
            server.stop()


class Server:
    """One process that serves.

    Args:
        argv: its command line.
        environment: of the process.
        address: host and port.
        log: file for what it prints.

    Attributes:
        url: where it answers.
    """

    def __init__(self, argv: list[str], environment: Mapping[str, str], address: str, log: Path) -> None:
        self.url = f"http://{address}"
        self._argv = argv
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            DemoError: it does not.
        """
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"The server did not start. The end of its log:\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and all that it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text("utf-8", "replace")

    def _answers(self) -> bool:
        host, _, port = self.url.removeprefix("http://").partition(":")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=0.2):
            return True
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port

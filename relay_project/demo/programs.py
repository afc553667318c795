"""The programs that the demo runs in a folder of its own: the two command lines, and the servers."""

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
#: Prefixes of variables that are removed, so that the demo does not use a developer's own device, database and settings.
_NOT_OURS = ("AMESH_", "AUTH_MESH_", "DJANGO_", "REDIS_URL", "GUNICORN_", "WEB_CONCURRENCY", "SCRIPT_NAME")


def _tpm(backend: str | None) -> dict[str, str]:
    """Return the variable that chooses the TPM. The TPM of the environment is used only if the demo asks for a TPM."""
    if backend == "tpm2":
        return {VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {}
    return {} if backend is None else {VARIABLE: NONE}


class Programs:
    """Runs commands as a person would, and shows them.

    Args:
        folder: the folder for all files.
        stage: shows the commands.
        backend: the key store for all keys. Defaults to the best one of this machine.

    Attributes:
        tpm: the environment variable that chooses the TPM of the programs, if there is one.
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
            "PYTHONPATH": os.pathsep.join(str(settings.BASE_DIR / folder) for folder in ("", "cli")),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }

    def environment(self, device: str) -> dict[str, str]:
        """Return the environment in which a command acts as one of the devices."""
        return {
            **self._environment,
            "AUTH_MESH_DIR": str(self.folder / device),
            "DJANGO_DATA_DIR": str(self.folder / ("data" if device == "server" else f"data-{device}")),
        }

    def manage(
        self,
        *words: str,
        device: str = "server",
        secrets: Mapping[str, str] | None = None,
        fails: bool = False,
        quietly: bool = False,
    ) -> str:
        """Run ``manage.py …`` on a server. Secrets are passed in the environment, never on the command line."""
        if not quietly:
            self._stage.command(["manage.py", *words])
        return self._run([*_MANAGE, *words], {**self.environment(device), **(secrets or {})}, fails)

    @contextmanager
    def background(self, *words: str) -> Iterator[None]:
        """Run ``manage.py …`` on the server during the block."""
        self._stage.command(["manage.py", *words, "&"])
        with (self.folder / "background.log").open("wb") as log:
            process = subprocess.Popen(
                [*_MANAGE, *words],
                env=self.environment("server"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def migrate(self, device: str) -> None:
        """Create the database tables of a server."""
        self._stage.command(["manage.py", "migrate", "--verbosity=0"])
        self._run([*_MANAGE, "migrate", "--verbosity=0"], self.environment(device), False)

    @contextmanager
    def at_terminal(self, device: str, *words: str, relay: str) -> Iterator[Screen]:
        """Run a command of a device on a terminal, with the address of the relay in its environment."""
        self._stage.command(words)
        program, *rest = words
        argv = [*(_MANAGE if program == "manage.py" else _AMESH), *rest]
        environment = {**self.environment(device), "AMESH_RELAY_URL": relay}
        with screen(argv, environment, " ".join(words)) as found:
            yield found

    def amesh(self, device: str, *words: str, quietly: bool = False, typed: str = "") -> str:
        """Run ``amesh …`` on another device, with a text as its input."""
        if not quietly:
            self._stage.command(["amesh", *words])
        return self._run([*_AMESH, *words], self.environment(device), False, typed)

    def _run(self, argv: list[str], environment: Mapping[str, str], fails: bool, typed: str = "") -> str:
        done = subprocess.run(argv, env=environment, input=typed, capture_output=True, text=True, encoding="utf-8")
        printed = done.stdout + done.stderr
        if bool(done.returncode) != fails:
            raise DemoError(f"The command ended with exit code {done.returncode}. It printed:\n{printed}")
        return printed if fails else done.stdout

    @contextmanager
    def server(self, device: str = "server", *, secrets: Mapping[str, str] | None = None) -> Iterator[Server]:
        """Run a server during the block. It is a single process, because the nonces are in its memory."""
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
        """Run a relay during the block."""
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
    """A process that serves HTTP.

    Args:
        argv: the command line.
        environment: the environment.
        address: host and port.
        log: the file for its output.

    Attributes:
        url: the URL of the server.
    """

    def __init__(self, argv: list[str], environment: Mapping[str, str], address: str, log: Path) -> None:
        self.url = f"http://{address}"
        self._argv = argv
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            DemoError: the process does not answer in time.
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
        """End the process, and all processes that it started."""
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
        """Return its output so far."""
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

"""TPMs in software for the tests: swtpm, and swtpm behind the resource manager tpm2-abrmd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authmesh.keystore.tpm import link as tpm_link
from authmesh.keystore.tpm.place import load_library, open_connection
from authmesh.keystore.tpm.turn import Turn
from tests.support import services
from tests.support.services import HOST, Server, free_port, program


@dataclass
class Swtpm(Server):
    """A TPM that stores its seeds in a folder. `stop(SIGKILL)` cuts its power, `start()` starts it again."""

    @property
    def tcti(self) -> str:
        """The value of AMESH_TPM_TCTI."""
        return f"swtpm:host={HOST},port={self.port}"

    @property
    def environ(self) -> dict[str, str]:
        return {"AMESH_TPM_TCTI": self.tcti}

    def loaded(self) -> list[int]:
        """Return the handles of all loaded objects and sessions, of all programs."""

        def handles(library: Any, context: Any) -> list[int]:
            found = []
            for first in (0x80000000, 0x02000000):
                _, capability = context.get_capability(library.TPM2_CAP.HANDLES, first, 64)
                listed = capability.data.handles
                found += [int(listed[at]) for at in range(len(listed)) if int(listed[at]) >> 24 == first >> 24]
            return found

        listed: list[int] = self._with_context(handles)
        return listed

    def clear(self) -> None:
        """Create new seeds, so that all wrapped keys are lost."""
        self._with_context(lambda library, context: context.clear(library.ESYS_TR.LOCKOUT))

    def set_owner_password(self, password: str) -> None:
        self._with_context(lambda library, context: context.hierarchy_change_auth(library.ESYS_TR.OWNER, password))

    def _with_context(self, work: Callable[[Any, Any], Any]) -> Any:
        library = load_library()
        context, tcti = open_connection(library, self.tcti)
        try:
            return work(library, context)
        finally:
            context.close()
            tcti.close()


def forget(tcti: str) -> None:
    """Close the connection of this process to a TPM, so that the next use is like the first one of a new process."""
    link = tpm_link._links.pop(tcti, None)
    if link is not None:
        link.leave()


def _two_ports() -> int:
    """Return a free port whose next port is also free. The TCTI of swtpm uses the next one for control."""
    while True:
        port = free_port()
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port + 1))
            services._handed_out.add(port + 1)
            return port


@contextmanager
def running_swtpm() -> Iterator[Swtpm]:
    """Yield a new TPM that is running."""
    binary = program("swtpm", package="swtpm libtss2-tcti-swtpm0")
    folder = Path(tempfile.mkdtemp(prefix="amesh-swtpm-"))
    port = _two_ports()
    argv = [str(binary), "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    argv += ["--server", f"type=tcp,bindaddr={HOST},port={port}", "--ctrl", f"type=tcp,bindaddr={HOST},port={port + 1}"]
    swtpm = Swtpm(argv=argv, port=port, log=folder / "output.log", cwd=folder)
    try:
        swtpm.start()
        yield swtpm
    finally:
        forget(swtpm.tcti)
        swtpm.stop()
        for file in Turn(swtpm.tcti)._files:
            file._path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


class Abrmd(dict[str, str]):
    """A TPM behind the resource manager tpm2-abrmd, on a separate D-Bus, and the variables that name it."""

    def __init__(self, swtpm: Swtpm, folder: Path) -> None:
        bus = f"unix:path={folder}/bus"
        super().__init__({"DBUS_SESSION_BUS_ADDRESS": bus, "AMESH_TPM_TCTI": "tabrmd:bus_type=session"})
        self._log = folder / "output.log"
        daemon = program("tpm2-abrmd", package="tpm2-abrmd libtss2-tcti-tabrmd0", folders=[Path("/usr/sbin")])
        self._daemon = [daemon, "--session", "--allow-root", f"--tcti={swtpm.tcti}"]
        self._ask = [program("dbus-send", package="dbus-bin"), "--session", "--print-reply"]
        self._ask += ["--dest=org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner"]
        self._processes: list[subprocess.Popen[bytes]] = []
        bus_daemon = program("dbus-daemon", package="dbus-daemon")
        try:
            self._start([bus_daemon, "--session", "--nofork", "--nopidfile", f"--address={bus}"])
            services._wait_until((folder / "bus").exists)
            self._start(self._daemon)
            services._wait_until(self._is_there)
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Kill the resource manager and start another."""
        process = self._processes.pop()
        process.kill()
        process.wait()
        services._wait_until(lambda: not self._is_there())
        self._start(self._daemon)
        services._wait_until(self._is_there)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _start(self, argv: Sequence[str | Path]) -> None:
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(argv, env={**os.environ, **self}, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def _is_there(self) -> bool:
        question = [*self._ask, "string:com.intel.tss2.Tabrmd"]
        return b"true" in subprocess.run(question, env={**os.environ, **self}, capture_output=True).stdout


@contextmanager
def running_abrmd() -> Iterator[Abrmd]:
    """Yield a new TPM behind a resource manager."""
    with running_swtpm() as swtpm, tempfile.TemporaryDirectory(prefix="amesh-dbus-") as folder:
        abrmd = Abrmd(swtpm, Path(folder))
        try:
            yield abrmd
        finally:
            abrmd.stop()

"""A small fleet that lives, for ``make demo KEEP=1``: machines that send requests, one that waits, and a server that is behind."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx

from authmesh.client import AmeshAuth
from authmesh.device import LocalDevice
from authmesh.protocol.errors import AmeshError

from .fleet import READ
from .programs import Programs, Server

#: The machines that come with the token, and the one of them that nobody approves.
TILLS = ("till-berlin-01", "till-berlin-02", "till-paris-01", "till-madrid-01")
NEW = "till-madrid-01"
_PAUSE = 2.0


class Living:
    """A fleet at the server of the demo.

    Args:
        programs: runs the commands.
        server: the server, which runs.
        device: returns the local device of a name.
    """

    def __init__(self, programs: Programs, server: Server, device: Callable[[str], LocalDevice]) -> None:
        self._run = programs
        self._server = server
        self._device = device
        self._end = threading.Event()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Let machines enroll, and let them send requests during the block."""
        made = self._manage(
            "amesh_enroll_token", "--name", "tills", "--uses", str(len(TILLS)), "--scope", READ, "--url",
            f"{self._server.url}/amesh/",
        )  # fmt: skip
        (token,) = re.findall(r"AMESH_ENROLL_TOKEN=(\S+)", made)
        with ThreadPoolExecutor(len(TILLS)) as pool:
            for name, done in [
                (name, pool.submit(self._run.amesh, name, "enroll", "-", "--name", name, quietly=True, typed=token))
                for name in TILLS
            ]:
                done.result()
                if name != NEW:
                    self._manage("amesh_approve", name, "--yes")
        self._manage("amesh_grant", TILLS[2], "--expires", "5d")
        thread = threading.Thread(target=self._send, name="living", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(10)

    def _manage(self, *words: str) -> str:
        return self._run.manage(*words, quietly=True)

    def _send(self) -> None:
        """Send requests until the end: most are accepted, and some are not."""
        readings = f"{self._server.url}/api/readings"
        turns = itertools.cycle(
            [(name, "GET") for name in TILLS[:3]] + [(TILLS[0], "POST"), (NEW, "GET"), ("stranger", "GET")]
        )
        while not self._end.is_set():
            name, method = next(turns)
            with suppress(httpx.HTTPError, AmeshError):
                httpx.request(method, readings, auth=AmeshAuth(self._device(name)), timeout=10, trust_env=False)
            self._end.wait(_PAUSE / len(TILLS))

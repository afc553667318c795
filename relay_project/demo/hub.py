"""The act of a hub: two more servers follow the server, and reject a laptop that is revoked once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx

from authmesh.client import AmeshAuth
from authmesh.device import LocalDevice

from .programs import Programs, Server
from .stage import DemoError, Stage

#: The servers that follow the hub.
FOLLOWERS = ("north", "south")
_SECONDS, _PAUSE = 30.0, 0.01


class Hub:
    """The server as a hub of two others.

    Args:
        stage: shows what happens.
        programs: runs the commands.
        laptop: the device that all three trust.
        hub_id: device ID of the hub.
        init: further options of ``amesh_init``.
    """

    def __init__(self, stage: Stage, programs: Programs, laptop: LocalDevice, hub_id: str, init: Sequence[str]) -> None:
        self._stage = stage
        self._run = programs
        self._laptop = laptop
        self._hub_id = hub_id
        self._init = init
        self._urls: dict[str, str] = {}
        self._servers: dict[str, Server] = {}

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Start the two servers, pair the hub with them, and carry changes to them during the block."""
        stage, run = self._stage, self._run
        stage.act("The server becomes a hub: two more servers follow it")
        line = run.amesh("laptop", "export-key", quietly=True).strip()
        with ExitStack() as stack, ThreadPoolExecutor(len(FOLLOWERS)) as pool:
            list(pool.map(lambda name: self._prepare(name, line), FOLLOWERS))
            for name in FOLLOWERS:
                self._servers[name] = stack.enter_context(run.server(name))
                self._urls[name] = self._servers[name].url
            for name in FOLLOWERS:
                self._pair(name)
            listed = run.manage("amesh_servers")
            stage.output(listed)
            stage.check("the hub lists both servers", all(name in listed for name in FOLLOWERS), "amesh_servers")
            answers = [self._status(name) for name in FOLLOWERS]
            stage.check("both accept the laptop", answers == [200] * len(FOLLOWERS), ", ".join(map(str, answers)))
            stack.enter_context(run.background("amesh_propagate", "--watch"))
            yield

    @contextmanager
    def revoking(self) -> Iterator[None]:
        """Ask both servers all the time while the laptop is revoked in the block, and show when each rejected it."""
        start = time.monotonic()
        with ThreadPoolExecutor(len(FOLLOWERS)) as pool:
            found: dict[str, Future[float]] = {name: pool.submit(self._until_rejected, name) for name in FOLLOWERS}
            yield
        for name, future in found.items():
            stage_word = f"{(future.result() - start) * 1000:.0f} ms after the form was sent"
            self._stage.check(f"{name} rejects the laptop", True, stage_word)

    def leave(self, name: str) -> None:
        """Stop a server, so that it falls behind."""
        self._servers[name].stop()

    def _prepare(self, name: str, line: str) -> None:
        run = self._run
        run.manage("migrate", "--verbosity=0", device=name, quietly=True)
        run.manage("amesh_init", "--name", name, "--max-controllers", "10", *self._init, device=name, quietly=True)
        run.manage("amesh_trust", line, "--role", "controller", "--yes", device=name, quietly=True)

    def _pair(self, name: str) -> None:
        stage, run = self._stage, self._run
        made = run.manage(
            "amesh_enroll_token", "--name", "hub", "--url", f"{self._urls[name]}/amesh/", device=name, quietly=True
        )
        (token,) = re.findall(r"AMESH_ENROLL_TOKEN=(\S+)", made)
        run.manage("amesh_enroll", "--as-hub", secrets={"AMESH_ENROLL_TOKEN": token})
        granted = run.manage("amesh_grant", self._hub_id, "--permission", "revoke", device=name)
        stage.check(f"{name} lets the hub revoke devices there", "As a hub" in granted, "amesh_grant")

    def _until_rejected(self, name: str) -> float:
        deadline = time.monotonic() + _SECONDS
        while self._status(name) == 200:
            if time.monotonic() > deadline:
                raise DemoError(f"{name} still accepts the laptop after {_SECONDS:.0f} seconds.")
            time.sleep(_PAUSE)
        return time.monotonic()

    def _status(self, name: str) -> int:
        with httpx.Client(auth=AmeshAuth(self._laptop), timeout=30, trust_env=False) as client:
            return client.get(f"{self._urls[name]}/api/hello").status_code

"""The acts of a fleet: machines enroll with one token, a person approves them, scopes, rotation, and expiry."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from authmesh.client import AmeshAuth
from authmesh.device import LocalDevice

from .programs import Programs, Server
from .stage import Stage

#: The machines, and the one that waits longest for approval.
MACHINES = ("sensor-1", "sensor-2", "sensor-3")
WAITING = "sensor-3"
READ, WRITE = "readings:read", "readings:write"
#: Requests that a machine sends while it replaces its key.
_REQUESTS = 20


class Fleet:
    """Many machines at one server.

    Args:
        stage: shows what happens.
        programs: runs the commands.
        server: the server, which runs.
        device: returns the local device of a name.
    """

    def __init__(
        self,
        stage: Stage,
        programs: Programs,
        server: Server,
        device: Callable[[str], LocalDevice],
    ) -> None:
        self._stage = stage
        self._run = programs
        self._server = server
        self._device = device

    def enrolls(self) -> None:
        """Make one token, and let all machines enroll with it at the same moment. A person approves them."""
        stage, run = self._stage, self._run
        stage.act("Three machines enroll with one token, and a person approves them")
        printed = run.manage(
            "amesh_enroll_token", "--name", "sensors", "--uses", "3", "--ttl", "10m", "--scope", READ,
            "--url", f"{self._server.url}/amesh/",
        )  # fmt: skip
        token = re.findall(r"AMESH_ENROLL_TOKEN=(\S+)", printed)[0]
        stage.check("the server makes a token for three machines", True, f"{token[:24]}…")
        stage.command(["amesh", "enroll", "-", "--name", "sensor-1", "< token.txt", " (and sensor-2, sensor-3)"])
        with ThreadPoolExecutor(len(MACHINES)) as pool:
            list(
                pool.map(
                    lambda name: run.amesh(name, "enroll", "-", "--name", name, quietly=True, typed=token), MACHINES
                )
            )
        states = {entry["friendlyName"]: entry["state"] for entry in self._listed()}
        found = [states.get(name) for name in MACHINES]
        stage.check("all three are in the list, and wait", found == ["pending"] * 3, ", ".join(map(str, found)))
        self._answer("a request of sensor-1", "sensor-1", 401)
        stage.check("the log says why", "device_pending" in self._server.log(), "device_pending")
        stage.output(run.manage("amesh_approve", "sensor-1", "sensor-2", "--yes"))
        self._answer("a request of sensor-1", "sensor-1", 200)
        self._answer(f"a request of {WAITING}, which still waits", WAITING, 401)
        stage.output(run.manage("amesh_approve", WAITING, "--yes"))
        self._answer(f"a request of {WAITING}", WAITING, 200)
        stage.check("the token is in no log", token not in self._server.log(), "server.log")

    def scopes(self) -> None:
        """Call a view whose scope the machine has, and one whose scope it does not have."""
        self._stage.act("A scope opens one view, and not another")
        self._answer(f"GET /api/readings, which needs {READ}", "sensor-1", 200)
        self._answer(f"POST /api/readings, which needs {WRITE}", "sensor-1", 403, method="POST")
        self._stage.output(self._run.manage("amesh_grant", "sensor-1", "--scope", WRITE))
        self._answer(f"POST /api/readings, which needs {WRITE}", "sensor-1", 200, method="POST")

    def rotates(self) -> None:
        """Replace the key of a machine while it sends requests."""
        stage, name = self._stage, "sensor-1"
        stage.act("A machine replaces its key, and no request is rejected meanwhile")
        before = self._device(name).identity.device_id
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(lambda: [self._status(name) for _ in range(_REQUESTS)])
            stage.output(self._run.amesh(name, "rotate"))
            statuses = sent.result()
        after = self._device(name).identity.device_id
        stage.check(f"{_REQUESTS} requests during the rotation", set(statuses) == {200}, f"{statuses.count(200)} × 200")
        stage.check("the machine has another key", before != after, f"{before} → {after}")
        self._answer("a request with the new key", name, 200)

    def expires(self) -> None:
        """Let the trust in a machine expire."""
        self._stage.act("Trust in a machine ends by itself")
        self._stage.output(self._run.manage("amesh_grant", "sensor-2", "--expires", "1s"))
        time.sleep(1.1)
        self._answer("a request of sensor-2, one second later", "sensor-2", 401)
        self._stage.check("the log says why", "device_expired" in self._server.log(), "device_expired")

    def _listed(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self._run.manage("amesh_list", "--json", quietly=True))["devices"]
        return found

    def _status(self, name: str, method: str = "GET") -> int:
        url = f"{self._server.url}/api/readings"
        with httpx.Client(auth=AmeshAuth(self._device(name)), timeout=30, trust_env=False) as client:
            return client.request(method, url).status_code

    def _answer(self, what: str, name: str, status: int, *, method: str = "GET") -> None:
        found = self._status(name, method)
        self._stage.check(what, found == status, str(found), expected=str(status))

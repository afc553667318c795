"""The acts of the demo: identities, pairing, requests, a fleet, a tampered allow list, revoking in the admin, and the audit log."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx

from authmesh.client import authorization_header
from authmesh.device import LocalDevice
from authmesh.protocol.display import clean_line

from .browser import Browser
from .fleet import Fleet
from .hub import FOLLOWERS, Hub
from .living import Living
from .meeting import Meeting
from .programs import Programs, Server
from .stage import Stage

USER = "demo"
#: The name of the laptop in the allow list, before and after somebody edits the database.
LAPTOP, CHANGED = "laptop", "laptop of the boss"
#: The name of the server that enrols itself.
EDGE = "edge"
_EDIT = "UPDATE amesh_device SET friendly_name = 'laptop of the boss' WHERE friendly_name = 'laptop'"
#: Changes one event of the audit log, and undoes that.
_REWRITE = "UPDATE amesh_auditevent SET actor = actor || ' or nobody' WHERE seq = 2"
_RESTORE = "UPDATE amesh_auditevent SET actor = replace(actor, ' or nobody', '') WHERE seq = 2"
_LOGGER = " amesh_django.verification: "


class Play:
    """One run of the demo.

    Args:
        folder: an empty folder for all files.
        stage: shows what happens.
        backend: the key store for the keys of all devices. Defaults to the best one of this machine.

    Attributes:
        password: the password of the user who revokes the laptop.
    """

    def __init__(self, folder: Path, stage: Stage, backend: str | None = None) -> None:
        self._stage = stage
        self._folder = folder
        self._backend = backend
        self._run = Programs(folder, stage, backend)
        self.password = secrets.token_urlsafe(12)
        self._id: dict[str, str] = {}

    def perform(self, afterwards: Callable[[str], None] | None = None) -> None:
        """Run all acts.

        Args:
            afterwards: called with the URL of the server at the end, while the server is running.

        Raises:
            DemoError: the demo cannot continue.
        """
        self._identities()
        self._stage.act("A relay starts, which no device has to trust")
        with self._run.relay() as relay:
            self._stage.check("it answers", httpx.get(f"{relay.url}/health", trust_env=False).is_success, relay.url)
            address = f"ws{relay.url.removeprefix('http')}/ws"
            meeting = Meeting(self._stage, self._run, address)
            meeting.at_two_terminals(LAPTOP)
            meeting.by_token(self._device(LAPTOP), EDGE)
            if self._backend is not None:
                self._lives_there(EDGE)
            self._stage.check("its log names no device", "am_" not in relay.log(), "relay.log")
            self._stage.act("The server starts")
            with (
                self._run.server(secrets={"AMESH_REQUIRE_APPROVAL": "1", "AMESH_RELAY_URL": address}) as server,
                httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
            ):
                self._stage.check("it answers", client.get("/").status_code == 200, server.url)
                requests = Requests(
                    self._stage, server, client, {name: self._device(name) for name in (LAPTOP, "stranger")}
                )
                requests.accepted()
                requests.refused()
                fleet = Fleet(self._stage, self._run, server, self._device)
                fleet.enrolls()
                fleet.scopes()
                fleet.rotates()
                fleet.expires()
                self._tampered(requests)
                hub = Hub(self._stage, self._run, self._device(LAPTOP), self._id["server"], self._where)
                with hub.followed():
                    self._revoked(requests, server, hub)
                    self._audited()
                    if afterwards is not None:
                        hub.leave(FOLLOWERS[-1])
                        with Living(self._run, server, self._device).alive():
                            afterwards(server.url)

    @property
    def _where(self) -> list[str]:
        return ["--backend", self._backend] if self._backend is not None else []

    def _device(self, name: str) -> LocalDevice:
        return LocalDevice(self._folder / name, environ={**self._run.tpm, "HOME": str(self._folder)})

    def _made(self, name: str) -> None:
        self._id[name] = self._device(name).identity.device_id
        self._stage.check(f"{name} has a key of its own", True, self._id[name])
        if self._backend is not None:
            self._lives_there(name)

    def _lives_there(self, name: str) -> None:
        found = self._device(name).identity.storage_backend
        self._stage.check(f"the key of {name} is in the chosen key store", found == self._backend, found)

    def _identities(self) -> None:
        self._stage.act("Each device creates its identity: the server, a laptop, and a stranger")
        self._run.migrate("server")
        where = self._where
        self._run.manage("amesh_init", "--name", "server", "--max-controllers", "10", *where)
        self._made("server")
        for name in (LAPTOP, "stranger"):
            self._run.amesh(name, "init", "--name", name, *where)
            self._made(name)

    def _list(self) -> str:
        return self._run.manage("amesh_list")

    def _tampered(self, requests: Requests) -> None:
        stage = self._stage
        stage.act("Somebody edits the allow list in the database, outside Django")
        self._sql(_EDIT)
        requests.get("the laptop's next request", LAPTOP, 500, "allow_list_integrity_failure", reason="rows_mismatch")
        report = self._run.manage("amesh_integrity", fails=True)
        stage.output(report)
        stage.check(
            "amesh_integrity shows what differs", CHANGED in report and self._id[LAPTOP] in report, "exit code 1"
        )
        stage.output(self._run.manage("amesh_integrity", "--reseal", "--yes"))
        requests.get("the laptop's next request", LAPTOP, 200, CHANGED)

    def _sql(self, statement: str) -> None:
        self._stage.command(["sqlite3", "db.sqlite3", f'"{statement}"'])
        with closing(sqlite3.connect(self._folder / "data" / "db.sqlite3", timeout=20)) as connection, connection:
            connection.execute(statement)

    def _revoked(self, requests: Requests, server: Server, hub: Hub) -> None:
        stage = self._stage
        stage.act("A person revokes the laptop once, in the admin of the hub")
        self._run.manage(
            "createsuperuser", "--noinput", "--username", USER, "--email", "demo@localhost",
            secrets={"DJANGO_SUPERUSER_PASSWORD": self.password},
        )  # fmt: skip
        browser = Browser()
        try:
            login = browser.open(f"{server.url}/admin/")
            inside = browser.submit(login, login.form("username", "password"), username=USER, password=self.password)
            stage.check("logs in", "Site administration" in inside.text, f"{server.url}/admin/")
            devices = browser.open(f"{server.url}/admin/amesh/device/")
            stage.check("finds the laptop in the list of devices", self._id[LAPTOP] in devices.text, CHANGED)
            chosen = devices.form("action", "_selected_action")
            asked = browser.submit(
                devices, chosen, action="revoke_selected", _selected_action=chosen.boxes["_selected_action"]
            )
            form = asked.form("reason")
            stage.check(
                "chooses “Revoke selected devices”, and is asked for a reason",
                form.method == "post",
                "a page with a form",
            )
            with hub.revoking():
                done = browser.submit(asked, form, reason="Left on a train. Asked for by its owner.")
            stage.check("gives a reason", f"Revoked: {CHANGED} ({self._id[LAPTOP]})" in done.text, "Revoked")
        finally:
            browser.close()
        requests.get("the laptop's next request", LAPTOP, 401, "unauthorized", reason="device_revoked")
        self._stage.check("the laptop is no longer in the list", self._id[LAPTOP] not in self._list(), "amesh_list")

    def _audited(self) -> None:
        stage = self._stage
        stage.act("Who did what is in the audit log, and nobody can edit it unnoticed")
        stage.output(self._run.manage("amesh_audit", "--device", self._id[LAPTOP]))
        report = self._run.manage("amesh_audit", "--seal", "--verify")
        stage.output(report)
        stage.check("amesh_audit verifies the log", "as amesh wrote it" in report, "exit code 0")
        self._sql(_REWRITE)
        report = self._run.manage("amesh_audit", "--verify", fails=True)
        stage.output(report)
        stage.check("amesh_audit names the event that was edited", "changed 2" in report, "changed 2")
        self._sql(_RESTORE)
        report = self._run.manage("amesh_audit", "--verify")
        stage.check("without the edit, it verifies the log again", "as amesh wrote it" in report, "exit code 0")


class Requests:
    """Signed requests over HTTP, and their responses.

    Args:
        stage: shows them.
        server: the server, whose log has the reason of a rejection.
        client: sends the requests.
        devices: the devices that sign, by name.
    """

    def __init__(self, stage: Stage, server: Server, client: httpx.Client, devices: dict[str, LocalDevice]) -> None:
        self._stage = stage
        self._server = server
        self._client = client
        self._devices = devices

    def accepted(self) -> None:
        """Send requests that the laptop signed, to a view of each kind."""
        self._stage.act("Signed requests are accepted, and the server knows the name of the device")
        self.get("GET /api/hello", LAPTOP, 200, LAPTOP)
        body = b'{"temperature": 21.5}'
        self._send(f"POST /api/hello {body.decode()}", self._signed("POST", "/api/hello?room=a%20b", body), 200, LAPTOP)
        self._send("POST /hooks/event, a webhook", self._signed("POST", "/hooks/event", os.urandom(64)), 200, LAPTOP)
        self._send(
            "GET /protected/status, behind the middleware", self._signed("GET", "/protected/status"), 200, LAPTOP
        )

    def refused(self) -> None:
        """Send requests that are replayed, forged, unsigned, or signed by the stranger."""
        self._stage.act("All other requests are rejected; the reason is in the server's log only")
        body = b'{"amount": 100}'
        request = self._signed("POST", "/api/hello", body)
        self._send(f"POST /api/hello {body.decode()}", request, 200, LAPTOP)
        self._send("the same request again", request, 401, "unauthorized", reason="replay_detected")
        forged = self._signed("POST", "/api/hello", body)
        forged = self._client.build_request("POST", "/api/hello", content=b'{"amount": 900}', headers=forged.headers)
        self._send("one byte of the body changed", forged, 401, "unauthorized", reason="invalid_signature")
        self.get("a good signature, by the stranger", "stranger", 401, "unauthorized", reason="unknown_device")
        unsigned = self._client.build_request("GET", "/protected/status")
        self._send("no signature", unsigned, 400, "missing_header", reason="missing_header")

    def get(self, what: str, device: str, status: int, answer: str, *, reason: str = "") -> None:
        """Send a signed GET request, and check the response."""
        self._send(what, self._signed("GET", "/api/hello", device=device), status, answer, reason=reason)

    def _signed(self, method: str, target: str, body: bytes = b"", *, device: str = LAPTOP) -> httpx.Request:
        header = authorization_header(method, target, body, device=self._devices[device])
        headers = {"Authorization": header, "Content-Type": "application/json"}
        return self._client.build_request(method, target, content=body or None, headers=headers)

    def _send(self, what: str, request: httpx.Request, status: int, answer: str, *, reason: str = "") -> None:
        before = len(self._server.log())
        response = self._client.send(request)
        said = _said(response)
        logged = self._server.log()[before:]
        reasons = [line.partition(_LOGGER)[2] for line in logged.splitlines() if _LOGGER in line]
        why = f"   log: {reason}" if any(reason in line for line in reasons) and reason else ""
        holds = response.status_code == status and said == answer and bool(why) == bool(reason)
        shown = f"{response.status_code} {clean_line(said)}{why}"
        self._stage.check(what, holds, shown, expected=f"{status} {answer} {reason}".strip())


def _said(response: httpx.Response) -> str:
    """Return the name in a greeting, or the code of an error."""
    try:
        found = response.json()
    except ValueError:
        return f"({response.headers.get('Content-Type')}, not JSON)"
    return str(found.get("hello") or found.get("error"))

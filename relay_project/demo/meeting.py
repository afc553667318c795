"""The acts in which devices start to trust each other: by people at two terminals, and by a bootstrap token."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx

from authmesh.client import authorization_header
from authmesh.device import LocalDevice

from .programs import Programs
from .stage import Stage


class Meeting:
    """Pairing over a relay.

    Args:
        stage: shows what happens.
        programs: runs the commands.
        relay: the address of the relay.
    """

    def __init__(self, stage: Stage, programs: Programs, relay: str) -> None:
        self._stage = stage
        self._run = programs
        self._relay = relay

    def at_two_terminals(self, laptop: str) -> None:
        """Pair twice: first with a mistyped verification code, then with the right one."""
        stage = self._stage
        stage.act("The verification code is mistyped: nothing is stored")
        self._pair(laptop, lambda code: f"{(int(code) + 1) % 1_000_000:06}", ends=(1, 1))
        stage.check("the server trusts no device", not self._trusted("server"), "amesh_list")
        stage.act("Server and laptop pair: a one-time code in one direction, a verification code in the other")
        self._pair(laptop, str, ends=(0, 0))
        for device, role in (("server", "controller"), (laptop, "target")):
            trusted = self._trusted(device)
            shown = ", ".join(f"{entry['deviceId']} as {entry['role']}" for entry in trusted)
            stage.check(f"the {device} lists the other one", [entry["role"] for entry in trusted] == [role], shown)

    def _trusted(self, device: str) -> list[dict[str, str]]:
        """Return the devices that a device trusts, as its command lists them."""
        run = self._run
        if device == "server":
            listed = run.manage("amesh_list", "--json", quietly=True)
        else:
            listed = run.amesh(device, "list", "--json", quietly=True)
        entries: list[dict[str, str]] = json.loads(listed)["devices"]
        return entries

    def _pair(self, laptop: str, types: Callable[[str], str], *, ends: tuple[int, int]) -> None:
        stage = self._stage
        with self._run.at_terminal("server", "manage.py", "amesh_listen", relay=self._relay) as here:
            code = "".join(here.read(r"One-time code\s+(\d{3})\W?(\d{3})"))
            stage.check("the server shows a one-time code", True, code)
            with self._run.at_terminal(laptop, "amesh", "invite", code, relay=self._relay) as there:
                shown = "".join(there.read(r"Verification code\s+(\d{3})\W?(\d{3})"))
                stage.check(f"the {laptop} shows a verification code", True, shown)
                here.read(r"Verification code: ")
                here.type(types(shown))
                right = types(shown) == shown
                if right:
                    here.read("Verified")
                    there.read(r"\[y/N\] ")
                    there.type("y")
                codes = here.end(), there.end()
                said = (
                    "Verified" if right else "This may be an attack" if "may be an attack" in here.text else here.text
                )
                stage.check(
                    f"{types(shown)} is typed on the server", codes == ends, said, expected=f"exit codes {ends}"
                )

    def by_token(self, laptop: LocalDevice, name: str) -> None:
        """Start a second server without a person, which enrols itself on the first request."""
        stage, run = self._stage, self._run
        stage.act("A second server starts without a person, with a bootstrap token in its environment")
        with run.at_terminal(
            "laptop", "amesh", "provision", "--name", name, "--ttl", "10m", relay=self._relay
        ) as waiting:
            (token,) = waiting.read(r"AMESH_BOOTSTRAP_TOKEN=(amesh-bt-v1\.\S+)\s")
            stage.check("the laptop creates a token and waits", True, f"{token[:24]}…")
            run.migrate(name)
            with run.server(name, secrets={"AMESH_BOOTSTRAP_TOKEN": token}) as server:
                header = authorization_header("GET", "/api/hello", device=laptop)
                answer = httpx.get(
                    f"{server.url}/api/hello", headers={"Authorization": header}, timeout=60, trust_env=False
                )
                found = answer.json().get("hello")
                stage.check(
                    "the laptop's first request enrols it, and is accepted",
                    answer.status_code == 200,
                    f"{answer.status_code} {found}",
                    expected="200",
                )
                stage.check("the token is in no log", token not in server.log(), "edge.log")
            stage.check("the laptop has stored it", waiting.end() == 0, "target")
        targets = [entry["friendlyName"] for entry in self._trusted("laptop") if entry["role"] == "target"]
        stage.check("the laptop lists both servers", name in targets and len(targets) == 2, "amesh list")
        tokens = json.loads(run.amesh("laptop", "provision", "--list", "--json", quietly=True))["tokens"]
        stage.check("the token is used up", [each["state"] for each in tokens] == ["used"], "amesh provision --list")

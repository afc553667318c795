"""The acts in which devices that have never met come to trust each other: by people at two terminals, and by a token."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx

from authmesh.client import authorization_header
from authmesh.device import LocalDevice

from .programs import Programs
from .stage import Stage


class Meeting:
    """Pairing over a relay.

    Args:
        stage: where it is shown.
        programs: runs the commands.
        relay: address of the relay.
    """

    def __init__(self, stage: Stage, programs: Programs, relay: str) -> None:
        self._stage = stage
        self._run = programs
        self._relay = relay

    def at_two_terminals(self, laptop: str) -> None:
        """First a code is mistyped, then it is typed right."""
        stage = self._stage
        stage.act("A code is mistyped: nothing is stored")
        self._pair(laptop, lambda code: f"{(int(code) + 1) % 1_000_000:06}", ends=(1, 1))
        listed = self._run.manage("amesh_list", quietly=True)
        stage.check("the server trusts nobody", "am_" not in listed.partition("\n\n")[2], "amesh_list")
        stage.act("Server and laptop pair: one code there, another one back")
        here, there = self._pair(laptop, str, ends=(0, 0))
        for who, text in (("the server", here), (f"the {laptop}", there)):
            found = re.search(r"Paired: (\S+) .* is stored as (\w+)", text)
            stage.check(f"{who} says whom it trusts", found is not None, " as ".join(found.groups()) if found else text)

    def _pair(self, laptop: str, types: Callable[[str], str], *, ends: tuple[int, int]) -> tuple[str, str]:
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
                return here.text, there.text

    def by_token(self, laptop: LocalDevice, name: str) -> None:
        """A second server, with nobody at it: it enrols itself on the first request."""
        stage, run = self._stage, self._run
        stage.act("A second server starts, with nobody at it but a token in its environment")
        with run.at_terminal(
            "laptop", "amesh", "provision", "--name", name, "--ttl", "10m", relay=self._relay
        ) as waiting:
            (token,) = waiting.read(r"AMESH_BOOTSTRAP_TOKEN=(amesh-bt-v1\.\S+)\s")
            stage.check("the laptop makes a token and waits", True, f"{token[:24]}…")
            run.migrate(name)
            with run.server(name, secrets={"AMESH_BOOTSTRAP_TOKEN": token}) as server:
                header = authorization_header("GET", "/api/hello", device=laptop)
                answer = httpx.get(
                    f"{server.url}/api/hello", headers={"Authorization": header}, timeout=60, trust_env=False
                )
                found = answer.json().get("hello")
                stage.check(
                    "the laptop's first request enrols it, and is let in",
                    answer.status_code == 200,
                    f"{answer.status_code} {found}",
                    expected="200",
                )
                stage.check("the token is in no log", token not in server.log(), "edge.log")
            stage.check("the laptop has stored it", waiting.end() == 0, "target")
        listed = run.amesh("laptop", "list")
        stage.check("and lists both servers", name in listed and listed.count("target") >= 2, "amesh list")
        spent = run.amesh("laptop", "provision", "--list")
        stage.check("the token is used up", "used by am_" in spent, "amesh provision --list")

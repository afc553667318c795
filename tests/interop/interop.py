"""`python -m tests.interop.interop`: the TypeScript implementation and this one, in all eight combinations of relay, target and controller.

It is not part of `make test`, for the TypeScript packages cannot be installed wherever the tests run. Give it the commands that are
that implementation's relay (which listens where HOST and PORT say) and its command line; what the terminals showed goes to stderr:

    python -m tests.interop.interop --relay "bun packages/relay/src/start.ts" \\
        --cli "bun --define '__VERSION__=\\"0.7.0\\"' packages/cli/src/sea.ts"

What requests between the two look like is tried by `tests.interop.interop_sdk`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.relay.relay_world import address, serving
from tests.support.services import HOST, Server, run, serve
from tests.support.terminal import Terminal, terminal

OURS, THEIRS = "ours", "TypeScript"
#: The longest time of a step, in seconds. Each step starts programs that compute Argon2id, here and in TypeScript.
SECONDS = 180.0


@dataclass
class Machine:
    """A device of one of the two implementations."""

    kind: str
    cli: list[str]
    path: Path
    relay: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {"AUTH_MESH_DIR": str(self.path), "HOME": str(self.path.parent), "AMESH_RELAY_URL": self.relay}

    @property
    def v1(self) -> list[str]:
        return ["--v1"] if self.kind == OURS else []

    def run(self, *words: str) -> str:
        return run([*self.cli, *words], env=self.env)

    def init(self, name: str) -> None:
        self.run("init", "--name", name, "--backend", "encrypted-file")

    def at_terminal(self, *words: str, v1: bool = True) -> Any:
        return terminal([*self.cli, *words, *(self.v1 if v1 else ())], self.env, seconds=SECONDS)

    @property
    def device_id(self) -> str:
        return str(json.loads((self.path / "identity.json").read_text("utf-8"))["deviceId"])

    def peers(self) -> list[tuple[str, str]]:
        """Device ids and roles of its list, read by itself from a list that verifies."""
        listed = self.run("list", *(["--json"] if self.kind == OURS else []))
        found = self.file()
        assert all(device_id in listed for device_id, _ in found), listed
        return found

    def file(self) -> list[tuple[str, str]]:
        """Device ids and roles as they stand in the file; none if there is no file yet."""
        if not (self.path / "allow_list.json").exists():
            return []
        file = json.loads((self.path / "allow_list.json").read_text("utf-8"))
        return [(entry["deviceId"], entry["role"]) for entry in file["devices"]]


def _digits(side: Terminal, pattern: str) -> str:
    """The six digits that come after what the pattern says."""
    side.expect(pattern)
    while not (found := re.match(r"\W*(\d{3})[  ]?(\d{3})", side.shown[side._looked_at :])):
        assert side._read(), side.shown
    return "".join(found.groups())


def _until_sessions(server: Server, sessions: int) -> None:
    """Until the relay has that many sessions. Theirs shows a code before the relay has it."""
    deadline = time.monotonic() + SECONDS
    while (found := httpx.get(server.url + "/health", timeout=SECONDS).json()["sessions"]) != sessions:
        assert time.monotonic() < deadline, f"The relay has {found} sessions, not {sessions}."
        time.sleep(0.02)


def nothing_stored(*machines: Machine) -> None:
    """Check that no side has stored another device."""
    for machine in machines:
        stored = machine.file()
        assert not stored, f"{machine.path.name} ({machine.kind}) stored {stored} in spite of a wrong code"


def pair(relay: Server, target: Machine, controller: Machine, *, types: Callable[[str], str] = str) -> tuple[int, int]:
    """Two people at two terminals; the exit codes."""
    _until_sessions(relay, 0)  # the end of the pairing before
    with target.at_terminal("listen") as here:
        code = _digits(here, "One-time code" if target.kind == OURS else "pairing code:")
        _until_sessions(relay, 1)
        with controller.at_terminal("invite", code) as there:
            verification = _digits(there, "Verification code")
            here.expect("Verification code: ")
            here.type(types(verification) + "\n")
            if controller.kind == OURS and types is str:
                there.expect("[y/N]")
                there.type("y\n")
            ends = here.end(), there.end()
            for line in (here.shown + there.shown).splitlines():
                print(f"      | {line}", file=sys.stderr)
            return ends


def bootstrap(relay: Server, folder: Path, command: Sequence[str]) -> str:
    """Their target comes with our token, over our relay: it shows the relay its token, which only --v1 accepts."""
    controller = Machine(OURS, [sys.executable, "-m", "authmesh"], folder / "bootstrap-controller", address(relay))
    controller.init("laptop")
    for allowed in (False, True):
        target = Machine(THEIRS, [], folder / f"bootstrap-target-{allowed}")
        with controller.at_terminal("provision", "--name", "web", "--ttl", "5m", v1=allowed) as waiting:
            token = re.findall(r"AMESH_BOOTSTRAP_TOKEN=(\S+)", waiting.expect("Anyone who has this token"))[0]
            _watches(relay)
            done = subprocess.run(
                command,
                env={**os.environ, **target.env, "AMESH_BOOTSTRAP_TOKEN": token},
                capture_output=True,
                text=True,
            )
            print(done.stdout + done.stderr, waiting.shown, file=sys.stderr)
            if not allowed:
                assert not (target.path / "identity.json").exists(), "a token without proof was accepted without --v1"
                continue
            assert waiting.end() == 0, waiting.shown
        assert done.returncode == 0, f"the target ended with {done.returncode}; the output above says why"
        assert target.file() == [(controller.device_id, "controller")], target.file()
        assert controller.peers() == [(target.device_id, "target")], controller.peers()
        # Its key lies under another name than its device id.
        assert Machine(OURS, controller.cli, target.path).peers() == target.file()
    return "enrolled by our token; without --v1 refused"


def _watches(server: Server) -> None:
    """Until the controller waits at the relay."""
    deadline = time.monotonic() + SECONDS
    while "amesh_relay_watches" in (text := httpx.get(server.url + "/metrics", timeout=SECONDS).text) and not re.search(
        r"^amesh_relay_watches(?:_total)? [1-9]", text, re.MULTILINE
    ):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


@contextmanager
def _relay(kind: str, command: Sequence[str], folder: Path) -> Iterator[Server]:
    if kind == OURS:
        with serving(folder, MATCH_SECONDS=600, FINISH_SECONDS=600) as server:
            yield server
    else:
        # It takes its port from the environment.
        starter = ["sh", "-c", 'PORT="$1"; export PORT; shift; exec "$@"', "sh", "{port}", *command]
        with serve(starter, env={"HOST": HOST}) as server:
            yield server


def combination(kinds: Sequence[str], commands: Mapping[str, list[str]], relay_command: Sequence[str]) -> None:
    """Pair, with a wrong code and with the right one, and look at both sides after each.

    Args:
        kinds: the implementations of relay, target and controller.
        commands: the command line of each implementation.
        relay_command: starts the TypeScript relay.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amesh-interop-")))
        relay = stack.enter_context(_relay(kinds[0], relay_command, folder))
        target, controller = [
            Machine(kind, commands[kind], folder / name, address(relay))
            for kind, name in zip(kinds[1:], ("target", "controller"), strict=True)
        ]
        for machine, name in ((target, "server"), (controller, "laptop")):
            machine.init(name)
        pair(relay, target, controller, types=lambda code: f"{(int(code) + 1) % 1_000_000:06}")
        nothing_stored(target, controller)
        assert pair(relay, target, controller) == (0, 0), "an exit code is not 0"
        assert target.peers() == [(controller.device_id, "controller")], target.peers()
        assert controller.peers() == [(target.device_id, "target")], controller.peers()
        # Each reads what the other has written: the directories are the same.
        for machine in (target, controller):
            other = OURS if machine.kind == THEIRS else THEIRS
            swapped = Machine(other, commands[other], machine.path, machine.relay)
            assert swapped.peers() == machine.peers()


def main() -> int:
    """Print a line for each combination; the exit code is 1 if one does not work."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.interop", description=__doc__)
    parser.add_argument("--relay", required=True, type=shlex.split, help="command that starts the TypeScript relay")
    parser.add_argument("--cli", required=True, type=shlex.split, help="command that is the TypeScript command line")
    parser.add_argument(
        "--bootstrap", type=shlex.split, help="command that enrols with AMESH_BOOTSTRAP_TOKEN, in TypeScript"
    )
    arguments = parser.parse_args()
    commands = {OURS: [sys.executable, "-m", "authmesh"], THEIRS: arguments.cli}
    failures = 0
    for kinds in itertools.product((OURS, THEIRS), repeat=3):
        try:
            combination(kinds, commands, arguments.relay)
            verdict = "paired; a wrong code stored nothing"
        except (AssertionError, RuntimeError) as error:
            failures += 1
            verdict = f"FAILED: {error}"
        print(f"relay {kinds[0]:<11} target {kinds[1]:<11} controller {kinds[2]:<11} {verdict}", flush=True)
    if arguments.bootstrap:
        with (
            tempfile.TemporaryDirectory(prefix="amesh-interop-") as folder,
            serving(Path(folder), FINISH_SECONDS=600) as relay,
        ):
            try:
                verdict = bootstrap(relay, Path(folder), arguments.bootstrap)
            except (AssertionError, RuntimeError) as error:
                failures += 1
                verdict = f"FAILED: {error}"
            print(f"bootstrap, target TypeScript: {verdict}")
    return bool(failures)


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    sys.exit(main())

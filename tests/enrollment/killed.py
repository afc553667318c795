"""Enroll machines at a server, each killed one step later than the one before, and again after that; print what is left.

``python -m tests.enrollment.killed DIR`` reads the token from stdin. A step is a call that changes the disk.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh.client import enrolling
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.device.servers import ServerStore
from authmesh.protocol.enrollment import EnrollmentToken, parse_token
from tests.pairing.bootstrap.bootstrap_killed import KILLED, Killer, fork
from tests.support import cheap_keys


def enroll(token: EnrollmentToken, path: Path, killer: tuple[int, bool] | None) -> None:
    """Make one attempt."""
    if killer is not None:
        Killer(killer[0], before=killer[1])
    enrolling.enroll(token, directory=path, name=path.name)


def look(path: Path) -> dict[str, Any]:
    """Return what is in a device directory."""
    if not (path / "identity.json").exists():
        return {"id": None}
    device = LocalDevice(path, environ={})
    device.sign(b"")
    return {
        "id": read_identity(path).device_id,
        "targets": [entry.device_id for entry in FileAllowList(device).read() if entry.role == "target"],
        "servers": [server.device_id for server in ServerStore(path).read()],
    }


def main(folder: Path) -> None:
    cheap_keys.use(CHEAP_ARGON2)
    token = parse_token(sys.stdin.read())
    found: list[dict[str, Any]] = []
    for before in (True, False):
        for at in range(1, 200):
            path = folder / f"{'before' if before else 'after'}-{at}"
            ended = fork(functools.partial(enroll, token, path, (at, before)))
            left = look(path)
            then = fork(functools.partial(enroll, token, path, None))
            found.append({"at": path.name, "ended": ended, "left": left, "then": then, "after": look(path)})
            if ended != KILLED:
                break
    print(json.dumps({"server": token.issuer, "found": found}))


if __name__ == "__main__":
    os.environ.pop(enrolling.ENROLL_VARIABLE, None)
    main(Path(sys.argv[1]))

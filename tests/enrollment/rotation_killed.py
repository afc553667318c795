"""Replace the key of a device again and again, each time killed one step later, and print what is left.

``python -m tests.enrollment.rotation_killed DIR URL…``. A step is a call that changes the disk.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh.client import fetch, forget_devices
from authmesh.commands import app
from authmesh.device import LocalDevice, read_identity, replacing
from authmesh.protocol.errors import KeyStoreError
from tests.pairing.bootstrap.bootstrap_killed import KILLED, Killer, fork
from tests.support import cheap_keys


def rotate(words: list[str], killed_at: int | None) -> None:
    """Make one attempt."""
    if killed_at is not None:
        Killer(killed_at, before=True)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- this process ends
    code = app.run(["rotate", *words])
    if code:
        os._exit(code)


def keys_let_in(path: Path, urls: list[str]) -> list[list[int]]:
    """Return what each server answers to each key that is there."""
    found = replacing.read_replacement(path)
    devices = []
    for one in [found.old, found.new] if found is not None else [read_identity(path)]:
        with suppress(KeyStoreError):
            device = LocalDevice(path, identity=one)
            device.sign(b"")
            devices.append(device)
    return [[fetch(f"{url}check", device=device).status_code for device in devices] for url in urls]


def main(path: Path, urls: list[str]) -> None:
    cheap_keys.use(CHEAP_ARGON2)
    os.environ["AUTH_MESH_DIR"] = str(path)
    found = []
    for at in range(1, 200):
        ended = fork(functools.partial(rotate, [], at))
        left = keys_let_in(path, urls)
        forget_devices()
        default = [fetch(f"{url}check").status_code for url in urls]
        then = fork(functools.partial(rotate, ["--finish"], None))
        found.append(
            {
                "at": at,
                "ended": ended,
                "left": left,
                "default": default,
                "then": then,
                "after": keys_let_in(path, urls),
            }
        )
        if ended != KILLED:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Enroll machines at the same moment, each a process of its own, and print what became of them.

``python -m tests.enrollment.crowd DIR NUMBER`` reads the token from stdin.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh.client import enrolling
from authmesh.device import LocalDevice, init_device, read_identity
from authmesh.files.clock import utc_now
from authmesh.protocol.enrollment import EnrollmentToken, parse_token
from authmesh.protocol.enrollment_errors import EnrollmentTokenUsedUp
from tests.support import cheap_keys

ENROLLED, USED_UP, FAILED = 0, 3, 4


def machine(token: EnrollmentToken, path: Path, ready: int, start: int) -> int:
    """Be one machine, which says that it is ready, and starts when the other end of a pipe is closed."""
    init_device(path, path.name, now=utc_now())
    LocalDevice(path).sign(b"")
    os.write(ready, b".")
    os.close(ready)
    os.read(start, 1)
    try:
        enrolling.enroll(token, directory=path)
    except EnrollmentTokenUsedUp:
        return USED_UP
    return ENROLLED


def main(folder: Path, number: int) -> None:
    cheap_keys.use(CHEAP_ARGON2)
    enrolling.TIMEOUT_SECONDS = 60.0
    token = parse_token(sys.stdin.read())
    (all_ready, ready), (start, go) = os.pipe(), os.pipe()
    pids = {}
    for count in range(number):
        path = folder / f"m{count}"
        pid = os.fork()
        if pid == 0:
            os.close(go)
            code = FAILED
            try:
                code = machine(token, path, ready, start)
            finally:
                os._exit(code)
        pids[pid] = path
    os.close(ready)
    while os.read(all_ready, 1):  # until each is ready, or has ended
        pass
    os.close(go)
    ended = {pids[pid]: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}
    print(json.dumps({read_identity(path).device_id: code for path, code in ended.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Enroll a device again and again, killed one step later each time, and print what is left. `python -m tests.pairing.bootstrap.bootstrap_killed DIR [django]`.

A step is a call that changes the disk; the process is killed before or after it. The children are forked and leave by `os._exit`, as
with `kill -9`: nothing is cleaned up.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 9
STEPS = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync")


class Killer:
    """End this process at a given step."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.count, self._at, self._before = 0, at, before
        for name in STEPS:
            setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at and self._before:
                os._exit(KILLED)
            result = real(*args, **options)
            if self.count == self._at:
                os._exit(KILLED)
            return result

        return step


def enroll(path: Path, text: str, controller: Any, trust: Any, *, answers: bool) -> None:
    """Make one attempt, with the relay and the controller in this process."""
    from authmesh.pairing.bootstrap import enrolment as bootstrap_enrolment
    from authmesh.protocol.pairing.errors import PeerSilent

    async def present(token: Any, init: str, public_key: bytes, *, confirmed: Any, **options: Any) -> None:
        if not answers:
            raise PeerSilent()
        confirmed()

    bootstrap_enrolment.present = present
    bootstrap_enrolment.Enrolment(directory=path, environ={}, trust=trust).run(text, seconds=0)


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, django: bool) -> None:
    from amesh_django.test.devices import EphemeralDevice
    from authmesh.device import FileAllowList, LocalDevice
    from authmesh.pairing.bootstrap.staging import Staging, Trust
    from authmesh.protocol.pairing.token import build_token

    controller = EphemeralDevice("laptop")
    text = build_token(
        public_key=controller.identity.public_key,
        name="web-1",
        relay="ws://127.0.0.1:9/ws",
        issued_at=int(time.time()),
        lifetime=3600,
        sign=controller.sign,
    )
    # The keys are cheap to make, because only the order of the steps is tested.
    from amesh_django.test.devices import CHEAP_ARGON2
    from tests.support import cheap_keys

    cheap_keys.use(CHEAP_ARGON2)
    found: list[dict[str, Any]] = []

    def look(path: Path, database: Path | None) -> dict[str, Any]:
        """Return what is in the directory, seen from a process of its own."""
        read, write = os.pipe()

        def work() -> None:
            state: dict[str, Any] = {"identity": (path / "identity.json").exists()}
            if state["identity"]:
                device = LocalDevice(path, environ={})
                state["id"] = device.identity.device_id
                device.sign(b"")
                if django:
                    state["controllers"] = listed(path, database)
                else:
                    state["controllers"] = [e.device_id for e in FileAllowList(device).read() if e.role == "controller"]
            staged = Staging(path, {})
            state["acknowledged"] = staged.recorded() is not None
            if staged.path.exists() and (staged.path / "identity.json").exists():
                state["staged"] = json.loads((staged.path / "identity.json").read_text())["deviceId"]
            state["files"] = sorted(
                str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock")
            )
            os.write(write, json.dumps(state).encode())

        code = fork(work)
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        assert code == 0, f"it cannot be opened: {path}"
        state: dict[str, Any] = json.loads(text)
        return state

    def listed(path: Path, database: Path | None) -> list[str]:
        use(path, database)
        from amesh_django.allow_list import DatabaseAllowList

        return [entry.device_id for entry in DatabaseAllowList().read() if entry.role == "controller"]

    def use(path: Path, database: Path | None) -> None:
        from django.conf import settings
        from django.db import connections

        settings.AMESH = {"DIR": str(path)}
        settings.DATABASES["default"]["NAME"] = str(database)
        connections["default"].settings_dict["NAME"] = str(database)

    def trust(path: Path, database: Path | None) -> Any:
        if not django:
            return Trust()
        use(path, database)
        from amesh_django.server import DatabaseTrust

        return DatabaseTrust()

    if django:
        import django as framework

        framework.setup()
        template = os.environ["TEST_DB_NAME"]
    for before in (True, False):
        for at in range(1, 500):
            path = folder / f"{'before' if before else 'after'}-{at}"
            database = None
            if django:
                database = folder / f"{path.name}.sqlite3"
                source, copy = sqlite3.connect(template), sqlite3.connect(database)
                source.backup(copy)
                source.close()
                copy.close()

            def killed(
                path: Path = path, at: int = at, before: bool = before, database: Path | None = database
            ) -> None:
                store = trust(path, database)
                Killer(at, before=before)
                enroll(path, text, controller, store, answers=True)

            def again(path: Path = path, database: Path | None = database) -> None:
                enroll(path, text, controller, trust(path, database), answers=True)

            def later(path: Path = path, database: Path | None = database) -> None:
                """Enroll without an answer: the token has been used, so an acknowledged device must do without one."""
                enroll(path, text, controller, trust(path, database), answers=False)

            ended = fork(killed)
            left = look(path, database)
            code = None
            if not left["identity"]:
                code = fork(later if left["acknowledged"] else again)
            found.append({"at": path.name, "ended": ended, "left": left, "then": code, "after": look(path, database)})
            shutil.rmtree(path)
            if ended != KILLED:
                break
    print(json.dumps({"controller": controller.identity.device_id, "found": found}))


if __name__ == "__main__":
    if sys.argv[2:] == ["django"]:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    main(Path(sys.argv[1]), sys.argv[2:] == ["django"])

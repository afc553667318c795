"""Section 5: one whole pairing over a relay on the same machine, without the typing."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from authmesh.device import FileAllowList, LocalDevice, init_device
from authmesh.files.clock import utc_now
from authmesh.pairing import ControllerOperator, Met, Pairing, TargetOperator, Timeouts
from tests.bench.figures import Row, Section, Target, interleave, percentile
from tests.bench.world import World
from tests.relay.relay_world import address, serving

LIMIT_SECONDS = 0.5
ROUNDS = 20
_TIMEOUTS = Timeouts(connect=30, message=60, person=60)


class _Target(TargetOperator):
    """Types at once what the controller shows."""

    def __init__(self, code: asyncio.Future[str], verification: asyncio.Future[str]) -> None:
        self._code, self._verification = code, verification

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        self._code.set_result(code)

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        return await self._verification

    async def confirm_peer(self, met: Met) -> bool:
        return True


class _Controller(ControllerOperator):
    """Says yes at once."""

    def __init__(self, verification: asyncio.Future[str]) -> None:
        self._verification = verification

    def show_verification_code(self, code: str, met: Met) -> None:
        self._verification.set_result(code)

    async def confirm_verified(self, met: Met) -> bool:
        return True


async def _pair(relay: str, server: Path, laptop: Path, version: Any) -> None:
    """From two closed directories to two stored entries; what a key costs to unlock is in it, on both sides."""
    loop = asyncio.get_running_loop()
    code, verification = loop.create_future(), loop.create_future()
    devices = [LocalDevice(path, environ={"HOME": str(path)}) for path in (server, laptop)]
    target, controller = [
        Pairing(relay=relay, device=device, allow_list=FileAllowList(device), version=version, timeouts=_TIMEOUTS)
        for device in devices
    ]
    listening = asyncio.ensure_future(target.listen(_Target(code, verification)))
    await asyncio.wait({listening, code}, return_when=asyncio.FIRST_COMPLETED)
    if not code.done():
        listening.result()
    await asyncio.gather(listening, controller.invite(code.result(), _Controller(verification)))


def _seconds(relay: str, folder: Path, version: int) -> float:
    server, laptop = folder / "server", folder / "laptop"
    for path in (server, laptop):
        (path / "allow_list.json").unlink(missing_ok=True)
    start = time.perf_counter()
    asyncio.run(_pair(relay, server, laptop, version))
    return time.perf_counter() - start


def _unlocked(folder: Path) -> float:
    """What unlocking the two keys costs alone."""
    start = time.perf_counter()
    for name in ("server", "laptop"):
        path = folder / name
        LocalDevice(path, environ={"HOME": str(path)}).sign(os.urandom(32))
    return time.perf_counter() - start


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    say("pairing")
    section = Section(
        "pairing",
        "One whole pairing",
        "Encrypted-file keys on both sides, unlocked in it (Argon2id); sealed files; a relay process on this machine.",
    )
    folder = Path(tempfile.mkdtemp(prefix="amesh-bench-pairing-"))
    try:
        for name in ("server", "laptop"):
            init_device(
                folder / name, name, now=utc_now(), backend="encrypted-file", environ={"HOME": str(folder / name)}
            )
        with serving(folder) as relay:
            where = address(relay)
            _seconds(where, folder, 2)
            samples = interleave(
                min(ROUNDS, world.scale.rounds),
                {
                    "version 2": lambda: _seconds(where, folder, 2),
                    "version 1": lambda: _seconds(where, folder, 1),
                    "unlocking both keys alone": lambda: _unlocked(folder),
                },
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    section.rows += [
        Row(name, "ms", [seconds * 1000 for seconds in found], note="both in one process, so in turns" * (i == 2))
        for i, (name, found) in enumerate(samples.items())
    ]
    section.targets.append(
        Target("a pairing of version 2, 90 of 100 within", percentile(samples["version 2"], 0.9), LIMIT_SECONDS, "s")
    )
    return section

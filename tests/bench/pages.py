"""Section 9: how long the server takes for each page of the admin, and how many queries, with a large fleet on PostgreSQL."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable
from pathlib import Path

from authmesh.device import init_device
from tests.bench.figures import Row, Section, Target, percentile
from tests.bench.world import World
from tests.support import databases
from tests.support.services import run

#: Milliseconds that a page may take at the server.
PAGE_MS = 300.0
_SERVERS, _SHARE_WAITING, _EVENTS_A_DEVICE = 50, 100, 10


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Fill a database with a fleet, and load each page several times."""
    devices = world.scale.sizes[-1]
    say(f"pages: a fleet of {devices}")
    world.postgres.execute("CREATE DATABASE bench_pages")
    database = world.postgres.django("bench_pages")
    databases.migrate(database)
    directory = Path(world.folder) / "server-pages"
    init_device(directory, "bench", backend="encrypted-file", now=dt.datetime.now(dt.UTC))
    fleet = {"devices": devices, "waiting": max(1, devices // _SHARE_WAITING), "servers": _SERVERS}
    fleet |= {"events": devices * _EVENTS_A_DEVICE, "rounds": 9 if devices > 1000 else 1}
    environment = {
        **databases.environment(database),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "AUTH_MESH_DIR": str(directory),
    }
    printed = run([sys.executable, "-m", "tests.bench.pages_worker", json.dumps(fleet)], env=environment)
    found = json.loads(printed.splitlines()[-1])
    rows = [Row(name, "ms", page["ms"], note=f"{page['queries']} queries") for name, page in found.items()]
    slowest = max(rows, key=lambda row: percentile(row.samples, 0.5))
    return Section(
        "pages",
        "The pages of the admin",
        f"PostgreSQL, {devices:,} devices, of which {fleet['waiting']:,} wait, {_SERVERS} servers, {fleet['events']:,} older events in "
        "the log. From the request to the rendered response, in one process.",
        rows=rows,
        targets=[Target(f"the slowest page ({slowest.name})", percentile(slowest.samples, 0.5), PAGE_MS, "ms")],
    )

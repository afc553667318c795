"""A hub that measures: a process that revokes at once what it is told to, and the lists of devices that it and its servers trust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from amesh_django.test.devices import EphemeralDevice
from tests.fleet.sites import Site, introduce
from tests.support.services import ROOT

_REVOKER = """
import json, sys, time
from tests import celery_app
import django
django.setup()
from amesh_django.allow_list import DatabaseAllowList
print("ready", flush=True)
for line in sys.stdin:
    start = time.time()
    DatabaseAllowList(by="operator").revoke(line.strip(), reason="lost")
    print(json.dumps([start, time.time()]), flush=True)
"""


class Revoker:
    """A process of a hub that revokes devices.

    Args:
        process: the process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def revoke(self, device_id: str) -> tuple[float, float]:
        """Revoke a device. Return when that began and when it ended, in Unix seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(device_id, file=self._process.stdin, flush=True)
        start, end = json.loads(self._process.stdout.readline())
        return start, end


@contextmanager
def revoker(hub: Site) -> Iterator[Revoker]:
    """Run the process during the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", _REVOKER],
        cwd=ROOT,
        env={**os.environ, **hub.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Revoker(process)
    finally:
        process.communicate(timeout=30)


def trust_all(site: Site, devices: Sequence[EphemeralDevice], role: str = "controller") -> None:
    """Trust many devices in one change."""
    keys = [(device.identity.public_key.hex(), device.identity.friendly_name) for device in devices]
    site.python(
        "from authmesh.protocol.allow_list import DeviceEntry\nfrom authmesh.protocol.keys import device_id\n"
        f"trusted.add_all([DeviceEntry(device_id(bytes.fromhex(key)), bytes.fromhex(key), name, "
        f"'2026-01-01T00:00:00.000Z', 'handshake', {role!r}, {{}}) for key, name in {keys!r}])"
    )


def follow(hub: Site, urls: Sequence[tuple[str, str]]) -> None:
    """Carry changes of a hub to servers that it trusts as targets: pairs of device ID and address."""
    hub.python(f"from amesh_django.fleet import servers\nfor name, url in {list(urls)!r}:\n    servers.add(name, url)")


def pair(hub: Site, server: Site) -> None:
    """Pair a hub with a server, and carry changes to it."""
    introduce(hub, server)
    follow(hub, [(server.device_id, server.url)])

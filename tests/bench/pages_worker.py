"""The process of section 9: ``python -m tests.bench.pages_worker JSON`` fills the database, loads the pages, and prints the figures."""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
import time
from typing import Any

import django

django.setup()

from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402 -- Django comes first
from django.conf import settings  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import CaptureQueriesContext, setup_test_environment  # noqa: E402
from django.urls import reverse  # noqa: E402
from django.utils import timezone  # noqa: E402

from amesh_django import lifecycle  # noqa: E402
from amesh_django.allow_list import DatabaseAllowList  # noqa: E402
from amesh_django.decisions import Grant  # noqa: E402
from amesh_django.fleet import servers  # noqa: E402
from amesh_django.models import AuditEvent, Device, DeviceActivity, RequestCount, Server  # noqa: E402
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry  # noqa: E402
from authmesh.protocol.keys import public_key_bytes  # noqa: E402
from tests.admin.people import logged_in, staff  # noqa: E402

ADMIN = "/admin/amesh/"
_EVENTS = """
    INSERT INTO amesh_auditevent (seq, at, kind, actor_type, actor, device_id, subject, address, reason_code, text, data, revision, mac, link)
    SELECT -g, now() - g * interval '1 minute', (ARRAY['revoke', 'trust', 'refusal', 'suspend'])[1 + g %% 4], 'user',
           'person ' || g %% 50, 'am_' || lpad((g %% 100000)::text, 16, '0'), 'machine ' || g %% 100000, '10.0.0.0/24', '', '', '{}',
           NULL, repeat('0', 64), repeat('0', 64)
    FROM generate_series(1, %s) AS g
"""


def entries(count: int, role: Any, name: str) -> list[DeviceEntry]:
    curve, moment = ec.SECP256R1(), dt.datetime.now(dt.UTC)
    keys = (public_key_bytes(ec.generate_private_key(curve)) for _ in range(count))
    return [DeviceEntry.new(key, f"{name} {number}", role, added_at=moment) for number, key in enumerate(keys)]


def fill(fleet: dict[str, int]) -> None:
    """Make the fleet."""
    with connection.cursor() as cursor:
        cursor.execute(_EVENTS, [fleet["events"]])
    settings.AMESH = {"MAX_CONTROLLERS": 10_000_000}
    lifecycle.reset()
    trusted = DatabaseAllowList(by="bench")
    trusted.add_all(entries(fleet["devices"] - fleet["waiting"], CONTROLLER, "machine"))
    trusted.add_all(entries(fleet["servers"], TARGET, "server"))
    settings.AMESH = {"MAX_CONTROLLERS": 10_000_000, "REQUIRE_APPROVAL": True}
    lifecycle.reset()
    DatabaseAllowList(by="bench").add_all(entries(fleet["waiting"], CONTROLLER, "new machine"))
    trusted.put_group("tills", ["orders:read"])
    members = Device.objects.filter(role="controller").order_by("id").values_list("device_id", flat=True)
    trusted.grant(list(members[: min(1000, fleet["devices"] // 2)]), Grant(groups=["tills"]))
    now = timezone.now()
    for number, device in enumerate(Device.objects.filter(role="target").order_by("id")):
        servers.add(device.device_id, f"https://server{number}.example/amesh/", by="bench")
    pks = list(Device.objects.filter(role="controller").values_list("pk", flat=True))
    chosen = random.Random(1)
    seen = [DeviceActivity(device_id=pk, last_seen_at=now - dt.timedelta(hours=chosen.random() * 1500)) for pk in pks]
    DeviceActivity.objects.bulk_create(seen, batch_size=5000)
    some = Device.objects.filter(role="controller").order_by("id").values_list("device_id", flat=True)[:1000]
    hour = now.replace(minute=0, second=0, microsecond=0)
    counts = [
        RequestCount(period="hour", start=hour - dt.timedelta(hours=n), device_id=name, route="api/", times=7)
        for name in ("", *some)
        for n in range(24)
    ]
    RequestCount.objects.bulk_create(counts, batch_size=5000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def pages() -> dict[str, str]:
    """Return the name and the address of each page."""
    device = Device.objects.filter(role="controller").order_by("id")[0]
    event = AuditEvent.objects.latest("id").pk
    listed, day = f"{ADMIN}device/", (timezone.now() - dt.timedelta(days=2)).date().isoformat()
    return {
        "start": ADMIN,
        "index": "/admin/",
        "devices": listed,
        "devices, last page": f"{listed}?p={Device.objects.count() // 50}",
        "devices, trusted": f"{listed}?state=trusted",
        "devices, waiting": f"{listed}?state=pending",
        "devices, quiet": f"{listed}?seen=quiet",
        "devices, found by name": f"{listed}?q=machine+77",
        "device": f"{listed}{device.pk}/change/",
        "revoke": f"{listed}revoke/?devices={device.device_id}",
        "log": f"{ADMIN}auditevent/",
        "log, found by name": f"{ADMIN}auditevent/?q=machine+77",
        "log, of one kind": f"{ADMIN}auditevent/?kind=revoke",
        "log, of one person": f"{ADMIN}auditevent/?by=person+7",
        "log, of a day": f"{ADMIN}auditevent/?since={day}&until={day}",
        "event": f"{ADMIN}auditevent/{event}/change/",
        "servers": f"{ADMIN}server/",
        "server": f"{ADMIN}server/{Server.objects.first().pk}/change/",  # type: ignore[union-attr]
        "tokens": f"{ADMIN}enrollmenttoken/",
        "token, new": f"{ADMIN}enrollmenttoken/add/",
        "approvals": f"{ADMIN}device/approvals/",
        "add by hand": reverse("admin:amesh_device_add_by_hand"),
        "pair": f"{ADMIN}pairingsession/",
        "groups": f"{ADMIN}devicegroup/",
        "group": reverse("admin:amesh_devicegroup_change", args=["tills"]),
    }


def load(client: Client, url: str, rounds: int) -> dict[str, Any]:
    """Load a page once to warm up, and then several times."""
    client.get(url)
    found = []
    with CaptureQueriesContext(connection) as queries:
        response = client.get(url)
        count = len(queries)  # the next request forgets them
    if response.status_code != 200:
        raise RuntimeError(f"{url}: {response.status_code}")
    for _ in range(rounds):
        start = time.perf_counter()
        client.get(url)
        found.append((time.perf_counter() - start) * 1000)
    return {"ms": found, "queries": count}


def main() -> None:
    """Fill, load, print."""
    fleet = json.loads(sys.argv[1])
    fill(fleet)
    setup_test_environment()
    client = logged_in(staff("root", is_superuser=True))
    print(json.dumps({name: load(client, url, fleet["rounds"]) for name, url in pages().items()}))


if __name__ == "__main__":
    main()

"""Tests of a project, as in docs/integration.md."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from django.test import TestCase, override_settings

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.test import AmeshAPIClient, AmeshClient, EphemeralDevice


def test_a_permission(amesh_client: AmeshClient, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    assert amesh_client.get("/internal/report/").json() == {"device": "test device"}
    writer = AmeshAPIClient(amesh_trust(permissions={"notes.write": True}))
    assert writer.post("/api/notes/", {"text": "milk"}, format="json").status_code == 201
    DatabaseAllowList().revoke(amesh_client.device.identity.device_id)


class ReportTest(TestCase):
    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        EphemeralDevice("test server").write(Path(folder), max_controllers=10)
        self.enterContext(override_settings(AMESH={"DIR": folder}))
        device = EphemeralDevice("sensor")
        DatabaseAllowList().add(device.entry())
        self.client = AmeshClient(device)

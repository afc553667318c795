"""Events in the Open Cybersecurity Schema: the classes, and what each requires."""

from __future__ import annotations

import json

import pytest
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit.ocsf import as_ocsf
from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent
from authmesh.device import LocalDevice
from tests.commands.test_management import call
from tests.trust.test_database_allow_list import entry

#: Class → the members that the published schema requires, beside those of every event, and its activities.
CLASSES = {
    3002: ({"user", "service"}, range(1, 6)),
    3004: ({"entity"}, range(1, 14)),
    3005: ({"user"}, range(1, 5)),
    6003: ({"actor", "api", "src_endpoint"}, range(1, 5)),
}
BASE = {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}


@pytest.mark.parametrize("kind", EventKind.values)
def test_each_kind_has_what_its_class_requires(kind: str) -> None:
    event = AuditEvent(kind=kind, at=timezone.now(), actor="alice", actor_type="user", mac="f" * 64, data="{}")
    found = as_ocsf(event)
    required, activities = CLASSES[found["class_uid"]]
    assert found.keys() >= BASE | required
    assert found["activity_id"] in activities
    assert found["type_uid"] == found["class_uid"] * 100 + found["activity_id"]
    assert found["category_uid"] == found["class_uid"] // 1000
    json.dumps(found)


@pytest.mark.django_db
def test_the_command_prints_one_line_for_each_event(amesh_server: LocalDevice) -> None:
    devices = DatabaseAllowList(by="alice")
    devices.add(entry(1))
    devices.set_permissions(entry(1).device_id, {"shell": True})
    devices.revoke(entry(1).device_id, reason="lost")
    lines = [json.loads(line) for line in call("audit", "--ocsf").out.splitlines()]
    assert [line["type_uid"] for line in lines] == [300406, 300501, 300409]
    assert lines[0]["entity"] == {"uid": entry(1).device_id, "name": "caller", "type": "device"}
    assert lines[1]["privileges"] == ['{"shell":true}']
    assert (lines[2]["comment"], lines[2]["actor"]["user"]["name"]) == ("lost", "alice")
    assert call("audit", "--ocsf", "--json").code == call("audit", "--ocsf", "--verify").code == 2

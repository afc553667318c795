"""The list of the audit log: what its filters and its search find, its pages, what it links to, and what that costs."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from amesh_django.admin.log import choosing, paging
from amesh_django.admin.log.choosing import LogForm
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit.recording import record
from amesh_django.enrollment import tokens
from amesh_django.fleet import servers
from amesh_django.models import AuditEvent, Device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.chain import Actor, new_event
from tests.admin.people import JOURNAL, Trust, break_seal, logged_in, page_of, revoke, staff, text_of


def lines(client: Client, **given: Any) -> list[str]:
    """Return the sentences of a page of the log."""
    response = client.get(JOURNAL, given)
    assert response.status_code == 200
    return [strip_tags(str(line["sentence"])) for line in response.context["lines"]]


def write(count: int, *, start: dt.datetime | None = None, seconds: float = 1, **columns: Any) -> None:
    """Write genuine events without a place."""
    sealed = current_list()
    sealed.unlock()
    begin = start or timezone.now()
    given = {"kind": "export", "by": "bob", **columns}
    kind = given.pop("kind")
    moments = (begin + dt.timedelta(seconds=seconds * n) for n in range(count))
    AuditEvent.objects.bulk_create(
        new_event(sealed.log_keys(), kind, at=at, data={"n": n}, **given) for n, at in enumerate(moments)
    )


def test_each_event_is_a_sentence_with_links(trust: Trust, root: Client) -> None:
    device = trust("till-berlin-04")
    revoke(root, device, reason="sold to a broker")
    response = root.get(JOURNAL)
    first = response.context["lines"][0]
    assert strip_tags(first["sentence"]) == "root revoked till-berlin-04: sold to a broker"
    assert f'<a href="{page_of(device)}"><bdi>till-berlin-04</bdi></a>' in first["sentence"]
    event = root.get(first["page"])
    assert text_of(event).startswith("root revoked till-berlin-04: sold to a broker | ")
    html = event.content.decode()
    for query in (f"device={device.device_id}", "by=root", "kind=revoke"):
        assert f'href="{JOURNAL}?{query}"' in html
    assert f'<a href="{page_of(device)}"><bdi>till-berlin-04</bdi></a>' in html


def test_links_lead_only_to_what_exists_and_may_be_viewed(
    trust: Trust, root: Client, settings: Any, django_capture_on_commit_callbacks: Any
) -> None:
    device = trust("laptop")
    edge = EphemeralDevice("edge")
    DatabaseAllowList(by="alice").add(edge.entry("target"))
    with django_capture_on_commit_callbacks(execute=True):
        made = tokens.make(
            url="https://a.example/amesh/",
            name="tills",
            uses=3,
            lifetime=60,
            by="anna",
            scopes=[],
            groups=[],
            user_id=None,
            approved=True,
            device_seconds=None,
        )
        row = servers.add(edge.identity.device_id, "https://edge.example/amesh/", by="anna")
    pages = {
        "view_device": page_of(device),
        "view_server": reverse("admin:amesh_server_change", args=[row.pk]),
        "view_enrollmenttoken": reverse("admin:amesh_enrollmenttoken_change", args=[made.row.pk]),
    }
    html = root.get(JOURNAL).content.decode()
    assert all(page in html for page in pages.values())
    assert "anna made the enrollment token tills" in text_of(root.get(JOURNAL))
    for permission, page in pages.items():
        html = logged_in(staff(permission, "view_auditevent", permission)).get(JOURNAL).content.decode()
        assert page in html
        assert not any(other in html for other in pages.values() if other != page)
    Device.objects.filter(pk=device.pk)._raw_delete("default")  # type: ignore[attr-defined]
    assert "laptop was added" in lines(root)
    assert page_of(device) not in root.get(JOURNAL).content.decode()


def test_filters_by_person_device_kind_and_day(trust: Trust, root: Client) -> None:
    till, phone = trust("till 1"), trust("phone")
    DatabaseAllowList(by="anna").set_permissions(till.device_id, {"shell": True})
    DatabaseAllowList(by="Anna B").set_permissions(phone.device_id, {"shell": True})
    old = dt.datetime(2026, 3, 1, 23, 30, tzinfo=timezone.get_current_timezone())
    write(1, start=old, by="carol", subject="allow list")
    assert lines(root, by="anna") == ["anna changed what till 1 may do"]
    assert lines(root, by="ann") == []
    assert lines(root, kind="trust") == ["phone was added", "till 1 was added"]
    assert (
        lines(root, device=till.device_id)
        == lines(root, device="till")
        == ["anna changed what till 1 may do", "till 1 was added"]
    )
    assert lines(root, device="till", kind="trust", by="") == ["till 1 was added"]
    carols = ["carol exported the allow list"]
    assert lines(root, since="2026-03-01", until="2026-03-01") == carols
    assert lines(root, until="2026-03-01") == carols
    assert lines(root, until="2026-02-28") == lines(root, since="2026-03-02", by="carol") == []
    assert lines(root, q="carol") == carols
    html = root.get(JOURNAL, {"by": "anna"}).content.decode()
    assert 'name="by" value="anna"' in html and "Show all events" in html
    assert "Show all events" not in root.get(JOURNAL).content.decode()


def test_the_search_finds_purged_devices_tokens_and_servers(trust: Trust, root: Client) -> None:
    device = trust("old till")
    allow_list = DatabaseAllowList(by="anna")
    allow_list.revoke(device.device_id, reason="lost")
    allow_list.purge(device.device_id)
    write(1, kind="token_made", subject="Berlin tokens")
    write(1, kind="server", subject="https://edge.example/")
    assert lines(root, q="old") == ["anna purged old till", "anna revoked old till: lost", "old till was added"]
    assert lines(root, q="berlin") == ["bob made the enrollment token Berlin tokens"]
    assert len(lines(root, q="edge")) == 1
    assert len(lines(root, q=device.device_id)) == len(lines(root, q=device.device_id[:9])) == 3
    assert lines(root, q="nothing") == []
    assert "There are no such events" in text_of(root.get(JOURNAL, {"q": "nothing"}))


def test_a_name_of_too_many_devices_says_so(trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "MAX_DEVICES", 2)
    for number in range(3):
        trust(f"till {number}")
    assert "enter more of the name" in text_of(root.get(JOURNAL, {"q": "till"}))
    assert "enter more of the name" not in text_of(root.get(JOURNAL, {"q": "till 1"}))


@pytest.mark.parametrize(
    "given",
    [
        {"since": "yesterday"},
        {"kind": "x"},
        {"until": "0001-01-01"},
        {"q": "a\0b"},
        {"since": "9999-12-31"},
        {"by": "x" * 200},
    ],
)
def test_filters_that_mean_nothing_show_no_events_and_say_why(
    trust: Trust, root: Client, given: dict[str, str]
) -> None:
    trust()
    response = root.get(JOURNAL, given)
    assert response.status_code == 200
    assert response.context["lines"] == []
    assert "No events are shown: correct the filters" in text_of(response)


def test_pages_go_through_all_events_once_in_both_directions(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "SIZE", 7)
    write(40, seconds=0)  # all at the same time
    write(10, start=timezone.now() - dt.timedelta(days=1))
    expected = list(AuditEvent.objects.order_by("-at", "-id").values_list("pk", flat=True))

    def shown(response: Any) -> list[int]:
        return [int(line["page"].split("/")[-3]) for line in response.context["lines"]]

    url, found = f"{JOURNAL}?kind=export", []
    while url:
        response = root.get(url)
        found += shown(response)
        last, url = response, response.context["older"]
        assert "kind=export" in url or not url
    assert found == expected
    back, url = shown(last), last.context["newer"]
    while url:
        response = root.get(url)
        back = shown(response) + back
        url = response.context["newer"]
    assert back == expected
    assert root.get(JOURNAL).context["newest"] == ""
    for odd in ("x", "²", "-1", "9" * 30, ""):
        assert len(root.get(JOURNAL, {"before": odd}).context["lines"]) == 7
    assert root.get(JOURNAL, {"before": "999999"}).context["lines"] == []


def test_forged_and_damaged_events_are_marked_on_any_page(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SIZE", 2)
    for number in range(4):
        trust(f"till {number}")
    AuditEvent.objects.create(
        kind="revoke", at=timezone.now(), actor="root", subject="forged", text="nice", mac="0" * 64
    )
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_auditevent SET at = 'never' WHERE seq IN (1, 3)")
    found, url = [], JOURNAL
    while url:
        response = root.get(url)
        found += [strip_tags(line["sentence"]) for line in response.context["lines"]]
        url = response.context["older"]
    assert found == [
        *["This event was damaged outside Django, and cannot be read"] * 2,
        "Amesh did not write this event: do not trust it. It claims to be: revoked",
        "till 3 was added",
        "till 1 was added",
    ]
    assert "forged" not in text_of(root.get(JOURNAL, {"kind": "revoke"}))


def test_the_log_is_shown_with_a_broken_seal_and_without_keys(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = trust("till")
    break_seal(device)
    page = text_of(root.get(JOURNAL))
    assert "does not match its seal" in page and "till was added" in page
    monkeypatch.setattr("amesh_django.admin.log.admin.sealed_or_none", lambda: None)
    assert "Not verified: the key of the audit log is not available." in text_of(root.get(JOURNAL))


def test_only_those_who_may_view_the_log_see_it(trust: Trust) -> None:
    trust()
    for permission in ("view_device", "export_auditevent", "manage_server"):
        client = logged_in(staff(permission, permission))
        assert client.get(JOURNAL).status_code == 403
        assert client.post(JOURNAL).status_code == 403
        assert (
            client.get(reverse("admin:amesh_auditevent_change", args=[AuditEvent.objects.latest("pk").pk])).status_code
            == 403
        )
    assert Client().get(JOURNAL).status_code == 302


def test_a_page_costs_the_same_with_any_number_of_events(trust: Trust, root: Client) -> None:
    def cost(**given: str) -> int:
        with CaptureQueriesContext(connection) as queries:
            assert root.get(JOURNAL, given).context["lines"]
        assert not [one["sql"] for one in queries if "COUNT(" in one["sql"].upper() and "auditevent" in one["sql"]]
        return len(queries)

    device = trust("till")
    write(1, device_id=device.device_id)
    root.get(JOURNAL)  # the first request verifies the list
    few = [cost(), cost(q="till"), cost(by="bob")]
    for number in range(30):
        trust(f"till {number}")
    write(300, device_id=device.device_id)
    root.get(JOURNAL)
    assert [cost(), cost(q="till"), cost(by="bob")] == few
    assert few[0] <= 16


@pytest.fixture
def big_log(default_database: dict[str, str], amesh_server: object) -> Iterator[str]:
    """A log of some thousand events, and the name of the database."""
    start = timezone.now() - dt.timedelta(days=90)
    for person in range(4):
        write(
            1500,
            start=start,
            seconds=5000,
            by=Actor(f"person{person}", "user"),
            device_id=f"am_{person:016}",
            kind=("export", "refusal")[person % 2],
        )
    write(3, start=start, by="rare", kind="verified")
    DatabaseAllowList(by="anna").add(EphemeralDevice("till").entry())
    yield connection.vendor


def test_the_log_is_read_by_its_indexes(big_log: str) -> None:
    middle = str(AuditEvent.objects.order_by("at")[3000].pk)
    with connection.cursor() as cursor:
        if big_log == "postgresql":
            cursor.execute("ANALYZE amesh_auditevent")
            cursor.execute("SET enable_seqscan = off")  # so that a scan means that no index can be used
        for given in (
            {}, {"before": middle}, {"after": middle}, {"by": "rare"}, {"by": "person1", "before": middle}, {"kind": "verified"},
            {"device": "am_0000000000000001"}, {"device": "am_00"}, {"device": "till"}, {"q": "till"}, {"q": "rare"},
            {"since": "2026-11-01"}, {"until": "2026-11-01", "kind": "refusal"}, {"by": "person1", "kind": "verified"},
        ):  # fmt: skip
            with CaptureQueriesContext(connection) as queries:
                paging.page(LogForm(given).chosen(), given)
            for one in queries:
                if "amesh_auditevent" not in one["sql"].partition(" WHERE ")[0]:
                    continue
                explain = "EXPLAIN" if big_log == "postgresql" else "EXPLAIN QUERY PLAN"
                cursor.execute(f"{explain} {one['sql']}")
                plan = "\n".join(str(line) for line in cursor.fetchall())
                assert "Seq Scan on amesh_auditevent" not in plan, (given, plan)
                assert re.search("INDEX|PRIMARY KEY|Index", plan), (given, plan)


def test_events_of_a_transaction_are_in_the_log(
    trust: Trust, root: Client, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        record("pairing_begun", by="anna", subject="listen")
    assert lines(root) == ["anna began to pair this server with a device"]

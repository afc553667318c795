"""Exporting the audit log from the admin: what the command prints, of what the filters show, made while it is sent."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.test import AsyncClient, Client
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import exporting
from amesh_django.models import AuditEvent
from tests.admin.people import JOURNAL, Trust, logged_in, staff
from tests.admin.test_log import write
from tests.commands.test_management import call

FORMS = ("csv", "json", "ocsf")
#: What a spreadsheet would calculate.
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\u200b=1", "\uff1d1")


def export(client: Client, form: str, **given: str) -> str:
    response = client.post(f"{JOURNAL}export/{form}/?{urlencode(given)}")
    assert response.status_code == 200, response
    assert response.streaming
    return b"".join(response.streaming_content).decode()


@pytest.fixture
def root_of_database(default_database: object, amesh_server: object) -> Client:
    return logged_in(staff("root", is_superuser=True))


def test_the_contents_are_those_of_the_command(root_of_database: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_CHUNK", 2)
    devices = DatabaseAllowList(by="anna")
    devices.put_group("tills", ["stock:read"])
    write(5, by="bob", text='a,b\n"c"')
    printed = json.loads(call("audit", "--json").out)["events"]
    assert [json.loads(line) for line in export(root_of_database, "json").splitlines()] == printed
    last = AuditEvent.objects.latest("pk")
    assert (last.kind, last.actor, last.subject, json.loads(last.data)["form"]) == (
        "export",
        "root",
        "audit log",
        "json",
    )
    last.delete()
    assert export(root_of_database, "ocsf") == call("audit", "--ocsf").out.rpartition('{"activity_id"')[0]
    AuditEvent.objects.latest("pk").delete()
    head, *rows = csv.reader(io.StringIO(export(root_of_database, "csv")))
    assert head == list(printed[0])
    for row, one in zip(rows, printed, strict=True):
        for cell, value in zip(row, one.values(), strict=True):
            assert cell == (value if isinstance(value, str) else "" if value is None else json.dumps(value))


def test_an_export_has_what_the_filters_show(trust: Trust, root: Client) -> None:
    trust("till 1"), trust("phone")
    write(3, by="bob")
    found = [json.loads(line) for line in export(root, "json", kind="export", by="bob").splitlines()]
    assert [one["actor"] for one in found] == ["bob"] * 3
    assert [json.loads(line)["subject"] for line in export(root, "json", q="till").splitlines()] == ["till 1"]
    assert export(root, "csv", by="nobody").splitlines() == [export(root, "csv").splitlines()[0]]
    links = [url for _label, url in root.get(JOURNAL, {"by": "bob", "before": "7"}).context["exports"]]
    assert links == [f"{JOURNAL}export/{form}/?by=bob" for form in FORMS]
    response = root.post(f"{JOURNAL}export/csv/?since=never")
    assert response.headers["Location"] == f"{JOURNAL}?since=never"
    assert root.post(f"{JOURNAL}export/xls/").status_code == 404


def test_a_link_makes_nobody_export(root: Client) -> None:
    count = AuditEvent.objects.count()
    for send in (root.get, root.head):
        assert send(f"{JOURNAL}export/csv/?q=any+text").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = root.cookies
    assert strict.post(f"{JOURNAL}export/csv/").status_code == 403
    assert AuditEvent.objects.count() == count


def test_an_export_is_recorded_before_its_first_byte(
    trust: Trust, root: Client, django_capture_on_commit_callbacks: Any
) -> None:
    trust("till")
    with django_capture_on_commit_callbacks(execute=True):
        response = root.post(f"{JOURNAL}export/json/?by=&kind=trust")
    event = AuditEvent.objects.latest("pk")
    assert (event.kind, event.actor, event.actor_type) == ("export", "root", "user")
    assert json.loads(event.data)["filters"] == "kind=trust"
    assert response.headers["Content-Disposition"].startswith('attachment; filename="audit-log-')
    write(1, kind="trust", subject="later")
    assert "later" not in b"".join(response.streaming_content).decode()


def test_formulas_in_a_csv_file_are_texts(trust: Trust, root: Client) -> None:
    for text in FORMULAS:
        write(1, text=text, subject=f"{text},x", by=text)
    rows = list(csv.reader(io.StringIO(export(root, "csv"), newline="")))[1:]
    assert [row[9] for row in rows] == [f"'{text}" for text in FORMULAS]
    assert [row[6] for row in rows] == [f"'{text},x" for text in FORMULAS]
    assert all(
        not cell.strip("'\u200b\t\r ").startswith(tuple("=+@")) or cell.startswith("'") for row in rows for cell in row
    )


def test_damaged_and_forged_events_are_exported(trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_CHUNK", 1)
    for number in range(3):
        trust(f"till {number}")
    AuditEvent.objects.create(kind="revoke", at=timezone.now(), subject="forged", mac="0" * 64, data="[")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_auditevent SET at = 'never' WHERE seq = 2")
    for form in FORMS:
        assert len(export(root, form).splitlines()) == 4 + (form == "csv")
    kinds = [json.loads(line)["kind"] for line in export(root, "json").splitlines()]
    assert sorted(kinds) == ["revoke", "trust", "trust", "unreadable"]


def test_only_those_who_may_export_do(trust: Trust) -> None:
    trust()
    for permissions in (("view_auditevent",), ("export_auditevent",), ("view_device", "change_device")):
        client = logged_in(staff("-".join(permissions), *permissions))
        for form in FORMS:
            assert client.get(f"{JOURNAL}export/{form}/").status_code == 403
            assert client.post(f"{JOURNAL}export/{form}/").status_code == 403
        if "view_auditevent" in permissions:
            response = client.get(JOURNAL)
            assert not response.context["exports"] and not response.context["verify"]
    assert not AuditEvent.objects.filter(kind="export").exists()
    assert export(logged_in(staff("both", "view_auditevent", "export_auditevent")), "csv")


def test_an_export_is_made_while_it_is_sent_under_asgi(
    root_of_database: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_CHUNK", 2)
    write(5)
    made: list[int] = []

    def counted(lines: Iterator[str]) -> Iterator[str]:
        for part in lines:
            made.append(len(part.splitlines()))
            yield part

    parts = exporting.parts
    monkeypatch.setattr(exporting, "parts", lambda rows, form: counted(parts(rows, form)))

    def connect() -> None:
        """Use the database of this test: the thread may have one of another test."""
        connections["default"] = connections.create_connection("default")

    async def first_of() -> tuple[list[int], str]:
        await sync_to_async(connect)()
        client = AsyncClient()
        client.cookies = root_of_database.cookies
        response = await client.post(f"{JOURNAL}export/json/")
        assert response.status_code == 200, response.headers
        stream = aiter(response)
        first = await anext(stream)
        before = list(made)
        rest = [part.decode() async for part in stream]
        await sync_to_async(connections.close_all)()
        return before, first.decode() + "".join(rest)

    before, text = asyncio.run(first_of())
    assert before == [2] and made == [2, 2, 1]
    assert len(text.splitlines()) == 5

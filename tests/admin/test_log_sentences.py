"""Each event of the audit log as a sentence, with hostile names, and without the names that an event may lack."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import pytest

from amesh_django.admin.log.sentences import DAMAGED, OTHER, SENTENCES
from amesh_django.admin.log.telling import MAX_TEXT, told
from amesh_django.audit.reading import readable
from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent

HOSTILE = '\u202e<b onclick="x">{by}%(by)s\x1b[31m\u2028'
ROW = {
    "pending_since": "",
    "user_id": "7",
    "expires_at": "2125-03-01T12:00:00+00:00",
    "suspended_until": "",
    "revoked_at": "",
}
UNTIL = {"suspended_until": "2125-03-01T12:00:00+00:00"}


def event(kind: str, data: Any = None, **columns: Any) -> AuditEvent:
    given = {"actor": "anna", "actor_type": "user", "device_id": "am_1", "subject": "till 4", **columns}
    return AuditEvent(kind=kind, at=dt.datetime.now(dt.UTC), data=json.dumps(data or {"row": ROW}), **given)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (event("trust"), "anna added till 4"),
        (event("trust", actor=""), "till 4 was added"),
        (event("trust", {"row": {"pending_since": "x"}}), "anna added till 4, which waits for approval"),
        (event("trust", actor="enrollment token 7 (tills)", actor_type="token"), "till 4 was enrolled with the enrollment token 7 (tills)"),
        (event("approve"), "anna approved till 4"),
        (event("deny", text="not ours"), "anna denied till 4: not ours"),
        (event("change"), "anna changed till 4"),
        (event("grant"), "anna changed what till 4 may do"),
        (event("scope"), "anna changed the scopes of till 4"),
        (event("group"), "anna changed the groups of till 4"),
        (event("group", {"scopes": ["a:b", "c:d"]}, device_id="", subject="tills"), "anna gave the group tills these scopes: a:b, c:d"),
        (event("group", {"removed": True}, device_id="", subject="tills"), "anna removed the group tills"),
        (event("map"), "anna mapped till 4 to a user"),
        (event("map", {"row": {"user_id": "", "id": "1"}}), "anna removed the user of till 4"),
        (event("expire"), "anna lets the key of till 4 expire March 1, 2125, 6 a.m."),
        (event("expire", {"row": {"id": "1"}}), "anna lets the key of till 4 expire at no time"),
        (event("suspend"), "anna suspended till 4"),
        (event("suspend", {"row": UNTIL}, text="audit"), "anna suspended till 4 until March 1, 2125, 6 a.m.: audit"),
        (event("suspend", actor="", text="audit"), "till 4 was suspended: audit"),
        (event("lift"), "anna lifted the suspension of till 4"),
        (event("revoke", text="sold to a broker"), "anna revoked till 4: sold to a broker"),
        (event("revoke"), "anna revoked till 4"),
        (event("revoke", actor="", subject="", text="lost"), "am_1 was revoked: lost"),
        (event("revoke", actor="", subject="", device_id=""), "an unknown device was revoked"),
        (event("reinstate"), "anna reinstated till 4"),
        (event("rotate"), "till 4 has a new key"),
        (event("purge"), "anna purged till 4"),
        (event("begin", {"devices": 3}, device_id=""), "The audit log was begun. Devices in the allow list: 3"),
        (event("reseal", {"devices": 3}, device_id=""), "anna resealed the allow list, and accepted it as it was. Devices: 3"),
        (event("rekey", device_id=""), "anna sealed the allow list and the audit log with another secret"),
        (event("archive", {"from": 1, "to": 9, "file": "a.jsonl"}), "anna moved the events 1 to 9 to the file a.jsonl"),
        (event("token_made", {"jti": "7"}, subject="tills"), "anna made the enrollment token tills"),
        (event("token_used", {"jti": "7"}, subject="tills"), "am_1 used the enrollment token tills"),
        (event("token_withdrawn", {"jti": "7"}, subject="tills"), "anna withdrew the enrollment token tills"),
        (event("pairing_begun", subject="listen"), "anna began to pair this server with a device"),
        (event("pairing_failed", reason_code="timeout"), "anna did not pair this server with a device: timeout"),
        (event("export", subject="allow list"), "anna exported the allow list"),
        (event("export", subject="something else"), "anna exported something else"),
        (event("verified", {"events": 12}), "anna verified the audit log: it is as amesh wrote it. Events: 12"),
        (event("verified", {"events": 2, "after": 9}, text="changed 4"), "anna verified the audit log after event 9: it has a fault: changed 4"),
        (event("checkpoint", {"seq": 9}), "This server signed that the audit log ended with event 9"),
        (event("setting", subject="SCOPES, URL"), "These settings were changed: SCOPES, URL"),
        (event("setting", subject=""), "The settings were noted for the first time"),
        (event("delivery", {"until": 9}, subject="https://a/"), "The server https://a/ was told of the changes up to 9"),
        (event("delivery_failed", subject="https://a/", text="It is down."), "The server https://a/ could not be told of changes: It is down."),
        (event("feed_refused", reason_code="older_list"), "A message of the hub am_1 was refused: older_list"),
        (event("hub_held", {"limit": 60}), "The hub am_1 changed 60 devices in a minute, which is the limit. Its other changes wait"),
        (event("hub_forgotten", {"hub": "am_9"}, device_id=""), "anna removed what the former hub am_9 had said"),
        (event("server", {"change": "paused"}, subject="https://a/"), "anna paused the server https://a/"),
        (event("refusal", {"times": 3}, reason_code="expired", subject="", address="10.0.0.0/24"), "Requests of am_1 from 10.0.0.0/24 were refused (expired). Number: 3"),
        (event("refusal", {"times": 3}, reason_code="expired", subject="", device_id=""), "Requests of an unknown device were refused (expired). Number: 3"),
        (event("of_tomorrow"), "anna: of_tomorrow"),
    ],
)  # fmt: skip
def test_the_sentence_of_an_event(row: AuditEvent, expected: str) -> None:
    assert told(row, True).text == expected


def test_each_kind_has_its_sentence() -> None:
    assert {key.partition(" ")[0] for key in SENTENCES} == set(EventKind.values)
    assert set(EventKind.values) <= set(SENTENCES)
    known = {*told(event("trust"), True).values}
    for sentence in (*SENTENCES.values(), OTHER):
        for form in (sentence.by, sentence.alone, sentence.by_why, sentence.alone_why):
            assert set(re.findall(r"%\((\w+)\)s", str(form))) <= known
            assert "%" not in re.sub(r"%\(\w+\)s", "", str(form))
        assert bool(sentence.by_why) == bool(sentence.alone_why)


@pytest.mark.parametrize("kind", [*EventKind.values, "of_tomorrow"])
def test_hostile_texts_are_harmless_in_each_kind(kind: str) -> None:
    data = dict.fromkeys(
        ("jti", "hub", "file", "from", "to", "until", "devices", "times", "events", "seq", "change"), HOSTILE
    )
    data |= {"scopes": [HOSTILE], "row": dict.fromkeys(ROW, HOSTILE)}
    texts = dict.fromkeys(("actor", "subject", "text", "reason_code", "address", "device_id"), HOSTILE)
    for more in ({}, {"actor": ""}, {"device_id": ""}):
        row = event(kind, data, **{**texts, **more})
        words = told(row, True, {HOSTILE: HOSTILE})
        pages = dict.fromkeys(words.links.values(), "/page/?a=1&b=2")
        for found in (words.text, str(words.html(pages))):
            assert not set(found) & set("\u202e\x1b\u2028")
        page = words.html(pages)
        assert "<b " not in page
        assert ("&amp;b=2" in page) == ("<a" in page)
        assert page.count("<bdi>") == page.count("</bdi>")
        assert words.text == words.text.strip() != ""
    for damaged in ("[]", "null", '{"row": 7, "scopes": 7, "jti": {}, "to": [1]}', "{" * 9):
        row.data = damaged
        assert told(row, True).text


def test_long_texts_are_cut_in_a_sentence() -> None:
    found = told(event("revoke", text="x" * 5000, subject="y" * 5000, actor="z" * 150), True).text
    assert len(found) < 128 + MAX_TEXT + 200 and found.endswith("…")


def test_what_amesh_did_not_write_is_not_told() -> None:
    words = told(event("revoke", text="lost", subject="forged name"), False)
    assert words.is_warning
    assert words.text == "Amesh did not write this event: do not trust it. It claims to be: revoked"
    words = told(readable(7, None), False)
    assert words.is_warning and words.text == DAMAGED
    assert told(event("verified", text="changed 4"), True).is_warning
    assert not told(event("verified"), True).is_warning


def test_names_are_links_to_the_pages_that_exist() -> None:
    words = told(event("revoke", text="a & b"), True)
    page = words.html({("device", "am_1"): "/device/7/"})
    assert page == '<bdi>anna</bdi> revoked <a href="/device/7/"><bdi>till 4</bdi></a>: <bdi>a &amp; b</bdi>'
    assert "<a" not in words.html({("device", "am_2"): "/device/7/"})
    words = told(event("token_used", {"jti": "7"}, subject="tills"), True, {"am_1": "till 4"})
    assert words.text == "till 4 used the enrollment token tills"
    assert (
        words.html({("token", "7"): "/t/"})
        == '<bdi>till 4</bdi> used the enrollment token <a href="/t/"><bdi>tills</bdi></a>'
    )

"""The admin in another language: every text of ours passes through gettext, in a form that ``makemessages`` finds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import translation
from django.utils.translation import trans_real

import amesh_django
from amesh_django import lifecycle
from amesh_django.admin.trouble import explain
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure, DeviceNotFound
from tests.admin.people import JOURNAL, LIST, REVOKE, Trust, assign, break_seal, page_of, revoke, staff

ROOT = Path(amesh_django.__file__).parent
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if "django.utils.translation" in path.read_text()]

LETTERS = re.compile(r"[^\W\d_]{2,}")
#: Attributes whose values people read or hear.
READ = {"alt", "aria-description", "aria-label", "data-copied", "data-copy", "label", "placeholder", "title"}


class Marked:
    """A catalog that encloses each text in brackets."""

    def gettext(self, message: str) -> str:
        return f"⟦{message.rpartition(trans_real.CONTEXT_SEPARATOR)[2]}⟧"

    def ngettext(self, singular: str, plural: str, number: int) -> str:
        return self.gettext(singular if number == 1 else plural)

    def to_language(self) -> str:
        return "en"


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Activate a translation that encloses each text in brackets."""
    catalog = Marked()
    with monkeypatch.context() as patch:
        patch.setattr(trans_real, "translation", lambda language: catalog)
        patch.setattr(trans_real, "_default", catalog)
        translation.activate("en")
        yield
    translation.deactivate()  # only now: what is activated before stays the catalog above


class Texts(HTMLParser):
    """Collects the texts of a page that people read or hear, but for those that are in English in any language: the system checks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._hidden = 0
        self._english = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "ul" and (self._english or values.get("lang") == "en"):
            self._english += 1
        self._hidden += tag in ("script", "style", "code")
        self.found += [value for name, value in attrs if name in READ and value]
        if tag == "input" and values.get("type") in ("submit", "button", "reset"):
            self.found.append(values.get("value") or "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "code")
        self._english -= tag == "ul" and self._english > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden and not self._english:
            self.found.append(data)


def untranslated(response: HttpResponse, *data: str) -> list[str]:
    """Return the texts of a page that no catalog can translate.

    Args:
        data: texts that are not to be translated, such as names.
    """
    texts = Texts()
    texts.feed(response.content.decode())
    rest = "\n".join(texts.found)
    while (shorter := re.sub(r"⟦[^⟦⟧]*⟧", "", rest)) != rest:
        rest = shorter
    for text in sorted(data, key=len, reverse=True):
        rest = rest.replace(text, "")
    return [line.strip() for line in rest.splitlines() if LETTERS.search(line)]


def shown_of(device: Device) -> tuple[str, ...]:
    """Return the texts about a device that are not to be translated, and a text that Django itself does not translate."""
    return (
        device.device_id,
        device.public_key,
        device.friendly_name,
        "root",
        "robot",
        "alice",
        "Amesh:",
        "amesh",
        "Search",
    )


@pytest.mark.usefixtures("marked")
def test_every_page_is_translated(trust: Trust, root: Client) -> None:
    device = trust("laptop", permissions={"shell": True})
    data = (*shown_of(device), "shell", "gone", "lost", "forged")
    robot, gone = staff("robot"), staff("gone", is_active=False)
    DatabaseAllowList(by="alice").map_user(device.device_id, robot)
    AuditEvent.objects.create(
        revision=99, device_id=device.device_id, kind="change", at=device.added_at, actor="root", mac="forged"
    )
    pages = [
        root.get(url)
        for url in (
            LIST,
            f"{LIST}?state=revoked",
            page_of(device),
            f"{REVOKE}?devices={device.device_id}",
            JOURNAL,
            reverse("admin:index"),
            reverse("admin:app_list", args=["amesh"]),
        )
    ]
    pages += [
        assign(root, device, gone),
        assign(root, device, None, amesh_revision="0"),
        assign(root, device, None),
        revoke(root, device, reason=""),
        revoke(root, device, follow=True),
        root.get(REVOKE, {"devices": device.device_id}, follow=True),
        root.get(REVOKE, {"devices": "am_nobody"}, follow=True),
        root.get(page_of(device)),
    ]
    for page in pages:
        assert page.status_code == 200
        assert "⟦" in page.content.decode()
        assert untranslated(page, *data) == []
    AuditEvent.objects.all().delete()
    assert untranslated(root.get(page_of(device)), *data) == []
    assert LogEntry.objects.get(change_message__contains="lost").change_message == "⟦Revoked. Reason: lost⟧"


@pytest.mark.usefixtures("marked")
def test_the_banner_and_the_warning_are_translated(trust: Trust, root: Client, settings: object) -> None:
    device = trust("laptop")
    data = shown_of(device)
    break_seal(device)
    for page in (root.get(LIST), root.get(reverse("admin:index")), revoke(root, device), assign(root, device, None)):
        assert untranslated(page, *data, "lost") == []
    settings.AMESH = {"DIR": "/nowhere"}  # type: ignore[attr-defined]
    lifecycle.reset()
    for page in (root.get(LIST), root.get(page_of(device)), root.get(JOURNAL)):
        assert (
            "⟦The seal of the allow list cannot be verified." in page.content.decode()
            or page.request["PATH_INFO"] != LIST
        )
        assert untranslated(page, *data, "lost") == []


@pytest.mark.usefixtures("marked")
def test_the_message_of_an_error_is_translated_and_its_commands_are_not() -> None:
    assert explain(AllowListBusy()) == f"⟦{AllowListBusy.default_message}⟧ ⟦{AllowListBusy.default_hint}⟧"
    found = explain(DeviceNotFound("<none>", hint=DeviceNotFound.default_hint))
    assert found.startswith("⟦&lt;none&gt;⟧ ⟦")
    assert f'<a href="{LIST}"><code>manage.py amesh_list</code></a>' in found
    found = explain(AllowListIntegrityFailure(reason="seal_missing"))
    assert "⟦The allow list does not match its seal." in found
    assert "<code>manage.py amesh_integrity</code>" in found
    assert explain(DatabaseError()).startswith("⟦The database returned an error (DatabaseError)")


# --- texts that makemessages finds -----------------------------------------------------------------------------------

_TRANSLATED = re.compile(r"{%\s*blocktranslate\b.*?{%\s*endblocktranslate\s*%}", re.DOTALL)
_CLASSES = re.compile(r"{% block bodyclass %}.*?{% endblock %}")
_TAG = re.compile(r"{%.*?%}|{{.*?}}|{#.*?#}", re.DOTALL)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_text_in_a_template_is_inside_a_translate_tag(path: Path) -> None:
    texts = Texts()
    texts.feed(_TAG.sub("", _CLASSES.sub("", _TRANSLATED.sub("", path.read_text()))))
    assert [text for text in texts.found if LETTERS.search(text)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "static").rglob("*.css")), ids=lambda path: path.name)
def test_styles_have_no_left_and_right(path: Path) -> None:
    """In a language that is written from right to left, they would be on the wrong side."""
    assert re.findall(r"[\w-]*\b(?:left|right)\b[\w-]*\s*:", path.read_text()) == []
    sides = re.findall(r"(?:margin|padding): \S+ (\S+) \S+ (\S+);", path.read_text())
    assert [(right, left) for right, left in sides if right != left] == []


def test_ids_and_keys_are_written_from_left_to_right(trust: Trust, root: Client) -> None:
    """One that ends with - would begin with it on an Arabic page."""
    device = trust()
    page = root.get(page_of(device)).content.decode()
    for text in (device.device_id, device.public_key):
        assert re.search(rf'<code [^>]*dir="ltr"[^>]*>{re.escape(text)}</code>', page)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_gettext_has_a_name_that_makemessages_knows(path: Path) -> None:
    names = [
        (alias.name, alias.asname)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation"
        for alias in node.names
    ]
    assert [name for name in names if name[1] not in (None, "_")] == []
    assert ("ngettext", "_") not in names

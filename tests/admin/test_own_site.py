"""An admin site of a project's own: every page is there, and links to nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from django.test import Client

from amesh_django import lifecycle
from amesh_django.fleet import servers
from amesh_django.models import Hub
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import Trust, break_seal

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin.own_site")]

START = "/ops/amesh/"


def links(client: Client, url: str) -> list[str]:
    page = client.get(url)
    if page.status_code in (301, 302):
        return [urljoin(url, page["Location"])]
    if page.status_code == 405:  # the address of a form
        return []
    assert page.status_code == 200, url
    if page.streaming or "html" not in page["Content-Type"]:
        return []
    found = re.findall(r'(?:href|action)="([^"#]*)"', page.content.decode())
    return [urljoin(url, unescape(link)) for link in found if not link.startswith("/static/")]


def walk(client: Client) -> set[str]:
    """Return the address of one page of each kind that links lead to."""
    seen, kinds, waiting = set[str](), set[str](), [START]
    while waiting:
        url = waiting.pop()
        seen.add(url)
        for link in links(client, url):
            parts = urlsplit(link)
            assert not parts.netloc and not parts.path.startswith("/admin"), f"{url} links to {link}"
            kind = re.sub(r"\d+|am_[\w-]+", "…", parts.path) + re.sub(r"=[^&]*", "", parts.query)
            if parts.path.startswith(START) and "&" not in parts.query and kind not in kinds:
                kinds.add(kind)
                waiting.append(link)
    return seen


@pytest.mark.parametrize("problem", ["", "seal", "settings"])
def test_every_page_of_a_site_of_ones_own(
    trust: Trust, root: Client, amesh_trust: Callable[..., EphemeralDevice], settings: Any, problem: str
) -> None:
    device = trust("laptop")
    api = amesh_trust(EphemeralDevice("api"), "target")
    servers.add(api.identity.device_id, "https://api.example/amesh/", by="alice")
    Hub.objects.create(device_id=api.identity.device_id, url="https://hub.example/amesh/")
    if problem == "seal":
        break_seal(device)
    if problem == "settings":
        settings.AMESH = {**settings.AMESH, "UNKNOWN": True}
        lifecycle.reset()
    found = walk(root)
    assert len(found) > 15, sorted(found)

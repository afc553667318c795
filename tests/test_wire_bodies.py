"""Bodies of every kind over HTTP: what is verified is what the view gets, whatever the client says about its length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import SERVERS, Server
from tests.wire import DOORS, LIMIT, Wire, World, exchange, head, multipart, resident_memory, send, sha256, signed

BINARY = bytes(range(256)) * 300
FORM, FORM_BODY = "application/x-www-form-urlencoded", "name=Käthe+B%C3%B6ll&tag=1&tag=2&empty=".encode()

MEBIBYTE = 1 << 20
UPLOAD = 200 * MEBIBYTE
#: How much a server process may grow while an upload of 200 MB goes through it.
GROWTH = 60 * MEBIBYTE


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("door", DOORS)
def test_bodies_reach_the_view(wire: Wire, wire_server: Server, door: str, chunked: bool) -> None:
    parts = {"photo": ("ö.jpg", BINARY), "nothing": ("empty", b"")}
    kind, form = multipart({"title": "Käthe", "note": "a\r\nb"}, parts)

    def sent(content_type: str, body: bytes) -> dict[str, object]:
        answer = signed(wire_server, wire.laptop, "POST", door, {"Content-Type": content_type}, body, chunked=chunked)
        assert answer.status == 200, answer.body
        found: dict[str, object] = answer.json
        return found

    for body in (b"", b"{}", BINARY, bytes(LIMIT)):
        expected = {"length": len(body), "sha256": sha256(body)}
        assert sent("application/octet-stream", body)["body"] == expected
    assert sent(FORM, FORM_BODY)["fields"] == {"name": ["Käthe Böll"], "tag": ["1", "2"], "empty": [""]}
    found = sent(kind, form)
    assert found["fields"] == {"title": ["Käthe"], "note": ["a\r\nb"]}
    assert found["files"] == {
        name: {"name": filename, "length": len(content), "sha256": sha256(content)}
        for name, (filename, content) in parts.items()
    }
    document = {"naïve": ["☃", 1.5, None]}
    raw = json.dumps(document).encode()
    found = sent("application/json", raw)
    assert found["data"] == document if door == "/drf" else found["body"] == {"length": len(raw), "sha256": sha256(raw)}

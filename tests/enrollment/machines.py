"""Machines that enroll: tokens as the server makes them, and requests as a machine sends them."""

from __future__ import annotations

import time
from typing import Any

from django.test import Client

from amesh_django.enrollment import tokens
from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol import enrollment
from authmesh.protocol.enrollment import EnrollmentToken

URL = "http://testserver/amesh/"
PATH = "/amesh/enroll"


def make(**options: Any) -> EnrollmentToken:
    """Make a token, and return its contents."""
    given = {"url": URL, "name": "sensors", "uses": 3, "lifetime": 3600, "by": "test", **options}
    return enrollment.parse_token(tokens.make(**given).text)


def body(token: EnrollmentToken, device: EphemeralDevice, *, now: float | None = None) -> dict[str, Any]:
    """Return the body that a machine sends."""
    return enrollment.build_request(
        token,
        public_key=device.identity.public_key,
        friendly_name=device.identity.friendly_name,
        now=int(time.time() if now is None else now),
        sign=device.sign,
    )


def post(value: Any, client: Client | None = None, **options: Any) -> Any:
    """Send a body to the server."""
    client = client or Client(enforce_csrf_checks=True)
    return client.post(PATH, value, content_type="application/json", **options)


def come(token: EnrollmentToken, device: EphemeralDevice, **options: Any) -> Any:
    """Enroll a machine, and return the response."""
    return post(body(token, device, **options))


def refusal(response: Any) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return response.status_code, response.json()["error"]

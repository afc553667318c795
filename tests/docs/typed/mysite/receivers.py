"""Receivers of signals, as in docs/monitoring.md."""

from typing import Any

from django.dispatch import receiver
from django.http import HttpRequest

from amesh_django.signals import request_accepted, request_refused
from amesh_django.verification import VerifiedDevice
from authmesh.protocol.errors import RequestError


@receiver(request_refused)
def on_refused(request: HttpRequest, error: RequestError, **kwargs: Any) -> None:
    if error.reason == "replay_detected":
        print(f"{error.device_name} ({error.device_id}): a request was received twice")


@receiver(request_accepted)
def on_accepted(request: HttpRequest, device: VerifiedDevice, seconds: float, **kwargs: Any) -> None:
    print(f"{device.friendly_name}: {request.path}, {1000 * seconds:.1f} ms")

"""Helpers for the tests of the admin: users with permissions, and their requests by Django's test client."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from amesh_django.models import Device

LIST = "/admin/amesh/device/"
REVOKE = f"{LIST}revoke/"
JOURNAL = "/admin/amesh/auditevent/"

Trust = Callable[..., Device]


def staff(name: str = "staff", *permissions: str, **options: Any) -> User:
    """Create a staff user with permissions. A permission without an app label is one of amesh."""
    user: User = get_user_model().objects.create_user(name, password="secret", **{"is_staff": True, **options})
    for permission in permissions:
        app, _dot, codename = f"amesh.{permission}".rpartition(".")
        app = app.removeprefix("amesh.")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def logged_in(user: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


def page_of(device: Device) -> str:
    return reverse("admin:amesh_device_change", args=[device.pk])


def text_of(response: HttpResponse) -> str:
    """Return the text of a page, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode())).split())


def revoke(client: Client, *devices: Device, reason: str = "lost", **options: Any) -> Any:
    names = ",".join(device.device_id for device in devices)
    return client.post(REVOKE, {"devices": names, "reason": reason}, **options)


def assign(client: Client, device: Device, user: User | None, **changes: str) -> Any:
    device = Device.objects.get(pk=device.pk)
    data = {"user": str(user.pk) if user else "", "amesh_revision": str(device.revision), **changes}
    return client.post(page_of(device), data, follow=True)


def mapped(device: Device) -> User | None:
    return Device.objects.select_related("user").get(pk=device.pk).user


def break_seal(device: Device) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET role = 'target' WHERE id = %s", [device.pk])

"""Rows that cannot be shown, because a column holds a value that amesh cannot have written, which SQLite stores without an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.utils.translation import gettext

from amesh_django.spelling import manage_py
from amesh_django.trust import current_list
from amesh_django.trust.damage import UNREADABLE
from authmesh.protocol.errors import AmeshError, Run

from .trouble import trouble

View = Callable[..., HttpResponse]


def readable(view: View) -> View:
    """Return a view of the admin that shows the banner alone if a row that was changed outside Django, or the settings, keep it from more.

    If the list matches its seal, an error of the view is a bug, and is raised.
    """

    @functools.wraps(view)
    def shown(admin: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method != "GET":
            return view(admin, request, *args, **kwargs)
        try:
            response = view(admin, request, *args, **kwargs)
            if isinstance(response, SimpleTemplateResponse) and trouble() is not None:
                response.render()
            return response
        except (*UNREADABLE, DatabaseError, ImproperlyConfigured):
            with suppress(AmeshError, ImproperlyConfigured):
                current_list().distrust()
            if trouble() is None:
                raise
        context = {
            **admin.admin_site.each_context(request),
            "title": gettext("The devices cannot be shown"),
            "opts": admin.opts,
            "command": manage_py(Run("revoke", "DEVICE_ID")),
        }
        request.current_app = admin.admin_site.name
        return TemplateResponse(request, "admin/amesh/device/damaged.html", context)

    return shown

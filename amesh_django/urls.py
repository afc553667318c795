"""``path("", include("amesh_django.urls"))``: the check address, which ``amesh doctor URL`` asks."""

from __future__ import annotations

from django.urls import path

from authmesh.protocol.check import CHECK_PATH

from . import views

app_name = "amesh_django"
urlpatterns = [path(CHECK_PATH.lstrip("/"), views.check, name="check")]

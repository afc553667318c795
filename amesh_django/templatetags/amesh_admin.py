"""``{% load amesh_admin %}``: the tags of :mod:`amesh_django.admin.tags`; none in a project without Django's admin."""

from __future__ import annotations

from django import template
from django.apps import apps

if apps.is_installed("django.contrib.admin"):  # Django loads this module in every project
    from amesh_django.admin.tags import register
else:
    register = template.Library()

__all__ = ["register"]

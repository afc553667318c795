"""``{% amesh_seal_banner %}``: the red banner of the admin, where the allow list does not match its seal."""

from __future__ import annotations

from typing import Any

from django import template

from amesh_django.admin.trouble import trouble

register = template.Library()


@register.inclusion_tag("admin/amesh/seal_banner.html")
def amesh_seal_banner() -> dict[str, Any]:
    """What is wrong with the list and how to mend it; nothing while it matches its seal."""
    return {"trouble": trouble()}

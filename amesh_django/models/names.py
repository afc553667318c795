"""Names in a JSON list, as columns hold them."""

from __future__ import annotations

import json


def names_in(text: str) -> list[str]:
    """Return the names in a JSON list; none if the row was damaged outside Django, which its MAC shows."""
    if not text:
        return []
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

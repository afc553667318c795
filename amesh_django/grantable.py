"""The names that this project grants: ``AMESH["SCOPES"]`` and ``AMESH["PERMISSIONS"]``. Without them, every name may be granted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.utils.translation import gettext as _

from authmesh.protocol.display import clean
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.scopes import SCOPES, is_grantable

from .conf import amesh_settings

Kind = Literal["scope", "permission"]

#: Members of ``permissions`` that amesh itself reads. They may be granted, whatever ``AMESH["PERMISSIONS"]`` says.
_OWN = (SCOPES, "rate", "revoke", "enroll", "shell")
#: Those of them with which a device does on this server what a person needs a permission of Django for.
_NEEDED = {"revoke": "amesh.revoke_device", "enroll": "amesh.enroll_device"}
_WILDCARD = ":*"


@dataclass(frozen=True, slots=True)
class Grantable:
    """A name in ``AMESH["SCOPES"]`` or ``AMESH["PERMISSIONS"]``.

    Attributes:
        name: the name, such as ``orders:read``.
        text: what it allows, as a sentence.
        permission: the Django permission that granting it needs, such as ``shop.view_order``; empty if there is none.
    """

    name: str
    text: str
    permission: str = ""


def grantable(kind: Kind) -> Mapping[str, Grantable] | None:
    """Return the names that may be granted, in the order of the settings; None if every name may be.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    settings = amesh_settings()
    raw = settings.SCOPES if kind == "scope" else settings.PERMISSIONS
    return None if raw is None else {name: _entry(name, value) for name, value in raw.items()}


def check_grantable(kind: Kind, names: Iterable[str]) -> None:
    """Check names before they are granted. Taking a name away needs no check.

    Raises:
        InvalidInput: a name has the wrong form, or the settings do not have it.
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    known = grantable(kind)
    for name in names:
        if kind == "scope" and not is_grantable(name):
            raise InvalidInput(
                _("%(name)s is not a scope. Nothing was changed.") % {"name": clean(name)},
                hint=_("Write it as orders:read, or orders:* for every scope below orders."),
            )
        if known is None or (kind == "permission" and name in _OWN) or _knows(known, name):
            continue
        setting = "SCOPES" if kind == "scope" else "PERMISSIONS"
        close = difflib.get_close_matches(name, [*known, *(_OWN if kind == "permission" else ())], n=1)
        raise InvalidInput(
            _("%(name)s is not in AMESH['%(setting)s']. Nothing was changed.")
            % {"name": clean(name), "setting": setting},
            hint=_("Did you mean %(name)s?") % {"name": close[0]}
            if close
            else _("Known: %(names)s.") % {"names": ", ".join(known) or _("none")},
        )


def permissions_to_grant(kind: Kind, names: Iterable[str]) -> frozenset[str]:
    """Return the Django permissions that a person needs to grant names. ``orders:*`` needs those of all that it covers.

    Nobody makes a device a hub that does what they may not do themselves.

    Args:
        names: names that :func:`check_grantable` accepts.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    known, names = grantable(kind) or {}, [*names]
    own = frozenset(_NEEDED[name] for name in names if name in _NEEDED) if kind == "permission" else frozenset()
    return own | frozenset(
        entry.permission
        for name in names
        for entry in known.values()
        if entry.permission and (entry.name == name or _covers(name, entry.name) or _covers(entry.name, name))
    )


def _knows(known: Mapping[str, Grantable], name: str) -> bool:
    """Return True if a name is in the settings, is covered by one there that ends with ``*``, or covers one of them."""
    return any(found == name or _covers(found, name) or _covers(name, found) for found in known)


def _covers(wide: str, name: str) -> bool:
    return wide.endswith(_WILDCARD) and name.startswith(wide[:-1]) and name != wide


def _entry(name: str, value: Any) -> Grantable:
    if isinstance(value, Mapping):
        return Grantable(name, str(value["text"]), str(value.get("permission", "")))
    return Grantable(name, str(value))

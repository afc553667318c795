"""Scopes: names of what a device may do, such as ``orders:read``, under the permission ``scopes`` of the allow list.

A name that is granted may end with ``*``, which stands for one or more parts: ``orders:*`` covers ``orders:read`` and
``orders:archive:read``, but not ``orders``. A name that a view asks for has no ``*``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .errors import InvalidInput

#: The permission whose value is the list of scopes.
SCOPES: Final = "scopes"
#: Longest scope, in characters.
MAX_LENGTH: Final = 100

_NAME = re.compile(r"[a-z0-9._-]+(?::[a-z0-9._-]+)*")
_WILDCARD = re.compile(r"(?:[a-z0-9._-]+:)+\*")


def is_scope(name: object) -> bool:
    """Return True if a view may ask for this scope: parts of ``a``-``z``, ``0``-``9``, ``.``, ``_`` and ``-``, with ``:`` between."""
    return isinstance(name, str) and len(name) <= MAX_LENGTH and _NAME.fullmatch(name) is not None


def is_grantable(name: object) -> bool:
    """Return True if a device may have this scope. Its last part may be ``*``, unless it is the only one."""
    return is_scope(name) or (
        isinstance(name, str) and len(name) <= MAX_LENGTH and _WILDCARD.fullmatch(name) is not None
    )


def required(names: Iterable[str]) -> tuple[str, ...]:
    """Return scopes that a view asks for, checked.

    Args:
        names: a list of scopes, not a text.

    Raises:
        InvalidInput: one of them is not a scope, or *names* is a text. This is a mistake in the project.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    wrong = [name for name in found if not is_scope(name)]
    if wrong or isinstance(names, str):
        raise InvalidInput(
            f"Required scopes must be a list of names such as orders:read, without *; {names!r} is not.",
            hint=f"Write [{names!r}]." if not wrong else "Correct the name.",
        )
    return found


def scopes_of(permissions: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes in the permissions of a device. What is not a scope is left out, and gives the device nothing.

    Args:
        permissions: name → value, from the allow list.
    """
    found = permissions.get(SCOPES)
    if not isinstance(found, list | tuple):
        return frozenset()
    return frozenset(name for name in found if is_grantable(name))


def covers(granted: frozenset[str], name: str) -> bool:
    """Return True if scopes that a device has include a scope that a view asks for.

    Args:
        granted: as :func:`scopes_of` returns it.
        name: the scope.
    """
    return is_scope(name) and (name in granted or any(wider in granted for wider in _wider(name)))


@functools.lru_cache(maxsize=1024)
def _wider(name: str) -> tuple[str, ...]:
    """Return the names with ``*`` that cover *name*: ``a:*`` and ``a:b:*`` for ``a:b:c``."""
    parts = name.split(":")
    return tuple(":".join((*parts[:number], "*")) for number in range(1, len(parts)))

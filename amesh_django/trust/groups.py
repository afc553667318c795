"""The groups of devices under the seal: their digest, and the scopes that a device has by itself and by its groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from authmesh.protocol.multiset import encode_row

NO_SCOPES: frozenset[str] = frozenset()


def groups_digest(groups: Iterable[tuple[str, str]]) -> str:
    """Return the digest of all groups that the seal binds: a SHA-256 in hex; empty if there is no group.

    It needs no key: the HMAC of the seal covers it, and all that it covers is in the same database.

    Args:
        groups: name and scopes (a JSON text) of each group.
    """
    found = sorted(groups)
    if not found:
        return ""
    texts = [text for group in found for text in group]
    return hashlib.sha256(encode_row("amesh-device-groups-v1", *texts)).hexdigest()


class Groups:
    """The groups of a list, verified.

    Args:
        groups: name and scopes (a JSON text) of each group.

    Attributes:
        digest: their digest, as the seal binds it.
        scopes: name → scopes.
    """

    def __init__(self, groups: Iterable[tuple[str, str]] = ()) -> None:
        pairs = list(groups)
        self.digest = groups_digest(pairs)
        self.scopes: Mapping[str, frozenset[str]] = MappingProxyType(
            {name: frozenset(json_names(text)) for name, text in pairs}
        )
        self._kept: dict[tuple[str, str], frozenset[str]] = {}

    def scopes_of(self, permissions_json: str, groups_json: str) -> frozenset[str]:
        """Return the scopes of a device: its own and those of its groups. Devices with the same texts share one set.

        A group that does not exist adds none.
        """
        if not groups_json and '"scopes"' not in permissions_json:
            return NO_SCOPES
        texts = (permissions_json, groups_json)
        kept = self._kept.get(texts)
        if kept is None:
            own = json.loads(permissions_json)
            of_groups = [self.scopes.get(name, NO_SCOPES) for name in json_names(groups_json)]
            kept = names(own.get("scopes") if isinstance(own, dict) else None).union(*of_groups)
            self._kept[texts] = kept
        return kept


def names(value: object) -> frozenset[str]:
    """Return the names in a list; none if it is not one."""
    return frozenset(name for name in value if isinstance(name, str)) if isinstance(value, list) else NO_SCOPES


def json_names(text: str) -> frozenset[str]:
    """Return the names in a JSON list; none if the text is empty.

    Raises:
        ValueError: it is not JSON.
    """
    return names(json.loads(text)) if text else NO_SCOPES

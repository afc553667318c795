"""The groups of devices under the seal: their digest, and the scopes that a device has by itself and by its groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from authmesh.protocol.multiset import encode_row
from authmesh.protocol.scopes import SCOPES, scopes_of

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
            {name: scopes_of({SCOPES: json.loads(text)}) for name, text in pairs}
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
            names = json.loads(groups_json) if groups_json else []
            of_groups = [self.scopes.get(name, NO_SCOPES) for name in names]
            kept = (scopes_of(own) if isinstance(own, dict) else NO_SCOPES).union(*of_groups)
            self._kept[texts] = kept
        return kept


def names_text(names: Iterable[str]) -> str:
    """Return the text that stands for names of groups in a row: a JSON list, or nothing if there are none."""
    found = sorted(set(names))
    return json.dumps(found) if found else ""

"""The home of this device: the place of its identity and its allow list."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authmesh.device import AllowList, FileAllowList, LocalDevice
from authmesh.device.grants import Grant, granted
from authmesh.device.replacing import recover
from authmesh.files.clock import utc_now
from authmesh.pairing.bootstrap.enrolment import Enrolment, allowed_relays
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.errors import AmeshError, Hint
from authmesh.protocol.scopes import scopes_of

#: The state of a device that is accepted.
ACTIVE = "active"
#: The state of a device that is not trusted any more.
REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Listed:
    """A device of the allow list, with all that its home knows about it.

    Attributes:
        entry: its entry.
        last_seen: time of its last accepted request (ISO 8601); None if it is not known.
        user: name of the user as whom it acts; empty for none.
        revoked_at: time when it was revoked; None if it is trusted.
        revoked_by: the person who revoked it.
        revoke_reason: why it was revoked.
        state: its state; a list in a file has active devices only.
        decided: who decided on that state, when, why, and until when, in words; empty if nobody did.
        is_undecided: True if a person has not approved it, or has denied it, whatever its state.
        suspended_until: end of its suspension.
        expires_at: time from which it is not accepted.
        scopes: its own scopes and those of its groups.
        groups: its groups.
        note: what people note about it.
        rotation_requested_at: time when a person asked it to replace its key; None if nobody did, or it has.
    """

    entry: DeviceEntry
    last_seen: str | None = None
    user: str = ""
    revoked_at: str | None = None
    revoked_by: str = ""
    revoke_reason: str = ""
    state: str = ACTIVE
    decided: str = ""
    is_undecided: bool = False
    suspended_until: str | None = None
    expires_at: str | None = None
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    note: str = ""
    rotation_requested_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the device for ``--json``."""
        return {
            **self.entry.to_json(),
            "lastSeen": self.last_seen,
            "user": self.user or None,
            "revokedAt": self.revoked_at,
            "revokedBy": self.revoked_by or None,
            "revokeReason": self.revoke_reason or None,
            "state": self.state,
            "suspendedUntil": self.suspended_until,
            "expiresAt": self.expires_at,
            "scopes": list(self.scopes),
            "groups": list(self.groups),
            "note": self.note or None,
            "rotationRequestedAt": self.rotation_requested_at,
        }


class Home(ABC):
    """The place where this device keeps its identity and its allow list. Each front end has its own.

    Args:
        directory: the device directory.
        actor: the person who makes changes, for allow lists that record it.

    Attributes:
        directory_setting: how a person chooses another device directory.
        limit_setting: where a person changes the limit of controllers.
        is_server: True for a server, which other devices call; False for a device that usually calls.
    """

    directory_setting = "--dir or AMESH_DIR"
    limit_setting = "maxControllers in identity.json"
    is_server = False

    def __init__(self, directory: Path, actor: str = "") -> None:
        self.directory = directory
        self.actor = actor

    @abstractmethod
    def device(self) -> LocalDevice:
        """Open this device.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: as :class:`authmesh.device.LocalDevice`.
        """

    @abstractmethod
    def allow_list(self) -> AllowList:
        """Open the allow list of this device."""

    def devices(self) -> list[Listed]:
        """Return all devices of the list, oldest first; revoked ones, too, if the list keeps them.

        Raises:
            AllowListIntegrityFailure: the list does not match its seal.
        """
        return [Listed(entry, scopes=tuple(sorted(scopes_of(entry.permissions)))) for entry in self.allow_list().read()]

    def known(self) -> dict[bytes, Listed]:
        """Return the devices of the list that are not revoked, whatever their state: public key → device.

        Raises:
            AllowListIntegrityFailure: the list does not match its seal.
        """
        return {found.entry.public_key: found for found in self.devices() if found.state != REVOKED}

    @abstractmethod
    def list_after_replacement(self) -> Hint:
        """Return what happens to the allow list when the identity is replaced: sentences about its controllers."""

    def remarks(self, public_key: bytes) -> str | None:
        """Return sentences about what comes with trusting a device: an earlier revocation, a user as whom it acts.

        None if nothing does.
        """
        return None

    def hub_words(self, public_key: bytes) -> list[dict[str, Any]]:
        """Return what the hubs of a server have said against a key: hub, event, time, reason. Empty if it follows none."""
        return []

    def grant(self, device_ids: Sequence[str], given: Grant, taken: Grant) -> tuple[list[DeviceEntry], frozenset[str]]:
        """Give devices permissions and scopes, and take others from them, in one step.

        Returns:
            their entries as they are now, and the device IDs of those that were changed.
        """
        allow_list = self.allow_list()
        before = {device_id: allow_list.get(device_id) for device_id in device_ids}
        changed = [
            device_id
            for device_id, entry in before.items()
            if granted(entry.permissions, given, taken) != dict(entry.permissions)
        ]
        if changed:
            entries = allow_list.update_permissions_of(changed, lambda found: granted(found, given, taken))
            before.update({entry.device_id: entry for entry in entries})
        return [before[device_id] for device_id in device_ids], frozenset(changed)

    @abstractmethod
    def rename(self, device_id: str, name: str) -> DeviceEntry:
        """Give a device another friendly name. Return its entry.

        Raises:
            DeviceNotFound: the device is not in the list.
        """

    def open_enrollment_tokens(self, now: float) -> int:
        """Return the number of enrollment tokens that this device has made and that machines may still use.

        Args:
            now: Unix seconds.
        """
        return 0

    def after_trusting(self, entry: DeviceEntry) -> Hint | None:
        """Return sentences about why a device that was just trusted is not accepted yet, or None if it is."""
        return None

    def rotation_problem(self) -> AmeshError | None:
        """Return the error that prevents a replacement of the key of this device while its allow list stays valid, or None."""
        return None

    def enrolment(self, **options: Any) -> Enrolment:
        """Return how a bootstrap token enrols this device.

        Args:
            options: further attributes of :class:`authmesh.pairing.bootstrap.enrolment.Enrolment`.
        """
        return Enrolment(directory=self.directory, relays=allowed_relays(), **options)


class FileHome(Home):
    """A device directory that holds everything, the allow list too."""

    def device(self) -> LocalDevice:
        return self._device

    @functools.cached_property
    def _device(self) -> LocalDevice:
        recover(
            self.directory, now=utc_now()
        )  # or the list may be sealed by a key that identity.json does not name yet
        return LocalDevice(self.directory)

    def allow_list(self) -> FileAllowList:
        return FileAllowList(self._device)

    def rename(self, device_id: str, name: str) -> DeviceEntry:
        return self.allow_list().rename(device_id, name)

    def list_after_replacement(self) -> Hint:
        return "The allow list is saved under another name. Its devices must be trusted again."

"""The home of this device: the place of its identity and its allow list."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from authmesh.device import AllowList, FileAllowList, LocalDevice
from authmesh.pairing.bootstrap.enrolment import Enrolment, allowed_relays
from authmesh.protocol.errors import AmeshError, Hint


class Home(ABC):
    """The place where this device keeps its identity and its allow list. Each front end has its own.

    Args:
        directory: the device directory.
        actor: the person who makes changes, for allow lists that record it.

    Attributes:
        directory_setting: how a person chooses another device directory.
        limit_setting: where a person changes the limit of controllers.
    """

    directory_setting = "--dir or AUTH_MESH_DIR"
    limit_setting = "maxControllers in identity.json"

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

    @abstractmethod
    def list_after_replacement(self) -> Hint:
        """Return what happens to the allow list when the identity is replaced: sentences about its controllers."""

    def remarks(self, public_key: bytes) -> str | None:
        """Return sentences about what comes with trusting a device: an earlier revocation, a user as whom it acts.

        None if nothing does.
        """
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
        return LocalDevice(self.directory)

    def allow_list(self) -> AllowList:
        return FileAllowList(self._device)

    def list_after_replacement(self) -> Hint:
        return "The allow list is saved under another name. Its devices must be trusted again."

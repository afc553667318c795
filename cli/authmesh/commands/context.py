"""The surroundings of a command, which the front end hands over."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from authmesh.device import LocalDevice, permission_problems
from authmesh.device.passphrase import passphrase_file
from authmesh.files.clock import utc_now
from authmesh.pairing import Blocking, Timeouts

from .home import Home
from .terminal.console import Console


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of a command.

    Attributes:
        console: the place for words and answers.
        home: the place of the identity and the allow list.
        now: the clock.
        blocking: runs a function that blocks while an event loop runs. Django's keeps its database connections in order.
        timeouts: how long pairing waits.
    """

    console: Console
    home: Home
    now: Callable[[], dt.datetime] = utc_now
    blocking: Blocking = asyncio.to_thread
    timeouts: Timeouts = field(default_factory=Timeouts)

    def own_device(self) -> LocalDevice:
        """Return this device; warn about its files that other users can read. A PIN of its key is asked for on the terminal.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: as :class:`authmesh.device.LocalDevice`.
        """
        device = self.home.device()
        self.warn_of_open_files()
        device.ask_pin_by(self.ask_pin)
        return device

    def warn_of_open_files(self) -> None:
        """Warn about each file of this device that other users can read or write."""
        directory = self.home.directory
        for problem in permission_problems(directory, passphrase_file(directory)):
            self.console.warn(str(problem))

    def ask_pin(self) -> str:
        """Return the PIN of this device's key, typed on the terminal.

        Raises:
            Unanswered, Interrupted: as :meth:`Console.ask_secret`.
        """
        return self.console.ask_secret("PIN of this device's key", instead="AMESH_TPM_PIN_FILE")

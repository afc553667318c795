"""Who is affected when init replaces an identity: servers that know this device, and devices that this one lets in."""

from __future__ import annotations

from dataclasses import dataclass, field

from authmesh.device import Identity
from authmesh.device.tokens import TokenStore
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AmeshError

from .spec import Context
from .terminal.console import Line, facts

#: More are counted and not named.
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Replaced:
    """What goes with an identity.

    Attributes:
        identity: it; None where it can't be read.
        targets: devices that this one may authenticate to, as far as its list says.
        controllers: devices that may authenticate to this one.
        tokens: how many bootstrap tokens of it are open.
        unreadable: why the list can't be read; empty if it was.
    """

    identity: Identity | None
    targets: list[DeviceEntry] = field(default_factory=list)
    controllers: list[DeviceEntry] = field(default_factory=list)
    tokens: int = 0
    unreadable: str = ""

    def lines(self, context: Context) -> list[Line | str]:
        """What one must know before saying yes."""
        if self.identity is None:
            lines: list[Line | str] = [
                Line(f"The identity in {context.directory} can't be read, and will be replaced.", "warning"),
                "Who knows this device can't be said: every server that trusts it will refuse the new identity.",
            ]
        else:
            name = f"{self.identity.device_id} ({clean(self.identity.friendly_name)})"
            lines = [Line(f"This replaces {name}. Its key is deleted, and can't be brought back.", "warning")]
        if self.unreadable:
            lines.append(f"Whom it trusts can't be said: {self.unreadable}")
            return lines
        if self.targets:
            lines.append(f"{_counted(self.targets, 'server')} will no longer know this device, until paired again:")
            lines += _named(self.targets)
        elif self.identity is not None:
            lines.append(
                "Its list names no server that it authenticates to. One that was given its line by hand refuses the new identity."
            )
        if self.controllers:
            lines.append(f"{_counted(self.controllers, 'controller')} may authenticate to this device. {context.fate}")
            lines += _named(self.controllers)
        if self.tokens:
            plural = "s" if self.tokens != 1 else ""
            lines.append(f"{self.tokens} open bootstrap token{plural} of it will be good for nothing.")
        return lines


def replaced(context: Context, identity: Identity | None) -> Replaced:
    """Look at the list of the identity that is to be replaced. What can't be read is no reason to stop.

    Args:
        context: of the command.
        identity: the old one; None where it can't be read.
    """
    if identity is None:
        return Replaced(None, unreadable="its list is sealed by that identity's key.")
    try:
        entries = context.allow_list().read()
    except (AmeshError, OSError) as error:
        return Replaced(identity, unreadable=str(error))
    tokens = 0
    try:
        now = context.now().timestamp()
        tokens = sum(token.state(now) == "open" for token in TokenStore(context.directory).read())
    except AmeshError:  # a file that is damaged holds no tokens that could be used
        pass
    return Replaced(
        identity,
        [entry for entry in entries if entry.role == TARGET],
        [entry for entry in entries if entry.role == CONTROLLER],
        tokens,
    )


def _named(entries: list[DeviceEntry]) -> list[Line]:
    lines = facts(*((clean(entry.device_id), clean(entry.friendly_name)) for entry in entries[:_MOST_NAMED]))
    if len(entries) > _MOST_NAMED:
        lines.append(Line(f"  and {len(entries) - _MOST_NAMED} more"))
    return lines


def _counted(entries: list[DeviceEntry], what: str) -> str:
    return f"{len(entries)} {what}{'s' if len(entries) != 1 else ''}"

"""The devices that are affected when init replaces an identity: servers that know it, and controllers that it trusts."""

from __future__ import annotations

from dataclasses import dataclass, field

from authmesh.device import Identity
from authmesh.device.tokens import TokenStore
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AmeshError, Hint

from .context import Context
from .home import Home
from .terminal.lines import Shown, Styled, facts
from .words import counted, named

#: More devices are counted, but not named.
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Replaced:
    """An identity that is about to be replaced, and what is lost with it.

    Attributes:
        identity: the identity, or None if it cannot be read.
        targets: devices that it may authenticate to, as far as its allow list says.
        controllers: devices that may authenticate to it.
        tokens: the number of its open bootstrap tokens.
        enrollment_tokens: number of its open enrollment tokens.
        unreadable: why its allow list cannot be read; empty if the list was read.
    """

    identity: Identity | None
    targets: list[DeviceEntry] = field(default_factory=list)
    controllers: list[DeviceEntry] = field(default_factory=list)
    tokens: int = 0
    enrollment_tokens: int = 0
    unreadable: Hint = ""

    def lines(self, home: Home) -> list[Shown]:
        """Return what a person must know before answering yes."""
        if self.identity is None:
            lines: list[Shown] = [
                Styled(f"The identity in {home.directory} cannot be read, and will be replaced.", "warning"),
                "The servers that know this device are not known. Each of them will reject the new identity.",
            ]
        else:
            lines = [
                Styled(f"This replaces {named(self.identity)}. Its key is deleted and cannot be recovered.", "warning")
            ]
        if self.unreadable:
            lines += ["The devices that it trusts are not known, because the allow list cannot be read:"]
            lines += [self.unreadable]
            return lines
        if self.targets:
            servers = counted(len(self.targets), "server")
            lines += [f"{servers} will no longer know this device, until you pair again:", *_listed(self.targets)]
        elif self.identity is not None:
            lines.append(
                "Its allow list names no server that it authenticates to. A server that trusts its exported key will reject the new "
                "identity."
            )
        if self.controllers:
            lines.append(f"{counted(len(self.controllers), 'controller')} may authenticate to this device.")
            lines += [home.list_after_replacement(), *_listed(self.controllers)]
        if self.tokens:
            lines.append(f"{counted(self.tokens, 'open bootstrap token')} of this device will no longer work.")
        if self.enrollment_tokens:
            lines.append(
                f"{counted(self.enrollment_tokens, 'open enrollment token')} of this server will no longer work."
            )
        return lines


def replaced(context: Context, identity: Identity | None) -> Replaced:
    """Return what is lost with an identity. A part that cannot be read is reported, and does not stop the command.

    Args:
        context: the surroundings of the command.
        identity: the old identity; None if it cannot be read.
    """
    if identity is None:
        return Replaced(None, unreadable="It is sealed with the key of the old identity.")
    try:
        entries = context.home.allow_list().read()
    except AmeshError as error:
        return Replaced(identity, unreadable=error.text(context.console.spell))
    except OSError as error:
        return Replaced(identity, unreadable=str(error))
    tokens = enrollment_tokens = 0
    try:
        now = context.now().timestamp()
        enrollment_tokens = context.home.open_enrollment_tokens(now)
        tokens = sum(token.state(now) == "open" for token in TokenStore(context.home.directory).read())
    except AmeshError:  # a damaged file has no tokens that could be used
        pass
    return Replaced(
        identity,
        [entry for entry in entries if entry.role == TARGET],
        [entry for entry in entries if entry.role == CONTROLLER],
        tokens,
        enrollment_tokens,
    )


def _listed(entries: list[DeviceEntry]) -> list[Styled]:
    lines = facts(*((clean(entry.device_id), clean(entry.friendly_name)) for entry in entries[:_MAX_NAMED]))
    if len(entries) > _MAX_NAMED:
        lines.append(Styled(f"  and {len(entries) - _MAX_NAMED} more"))
    return lines

"""Replace the key of this device at every server where it has enrolled (docs/fleet.md §2).

The new key is made and stored first. A server that accepts it accepts the old one, too, for some minutes. As soon as one server has
accepted it, the device moves to the new key, and keeps the old one for the servers that were away. So a crash at any point leaves
this device with a key that each server accepts.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from authmesh.device import LocalDevice
from authmesh.device.replacing import Replacement, begin, end, move, read_replacement, write_replacement
from authmesh.device.servers import EnrolledServer
from authmesh.files.clock import utc_now
from authmesh.protocol.errors import AmeshError, Unauthorized
from authmesh.protocol.rotation import ROTATE_PATH, build_rotation, verify_rotated

from .answers import read_answer
from .httpx_auth import AmeshAuth

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Rotated:
    """The result.

    Attributes:
        replacement: both identities, and the servers that have accepted the new key.
        moved: True if this device uses the new key.
        away: the servers that have not accepted it, each with the reason.
    """

    replacement: Replacement
    moved: bool
    away: Sequence[tuple[EnrolledServer, AmeshError]] = field(default_factory=tuple)


def recover(directory: Path, *, now: Callable[[], dt.datetime] = utc_now) -> Replacement | None:
    """Complete a move to the new key that was interrupted, and return the replacement that is under way, if there is one.

    Raises:
        AmeshError: as for :func:`authmesh.device.replacing.move`.
    """
    found = read_replacement(directory)
    return move(directory, found, now=now()) if found is not None and found.moving else found


def rotate(
    directory: Path,
    servers: Sequence[EnrolledServer],
    *,
    server_key: Callable[[str], bytes],
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], dt.datetime] = utc_now,
) -> Rotated:
    """Replace the key of this device, or continue where another process was interrupted.

    Args:
        directory: the device directory.
        servers: the servers to ask.
        server_key: returns the public key of a server in the allow list of this device, 33 bytes.
        environ: the environment, for the variables of the key store.
        now: the clock.

    Raises:
        DirectoryError, KeyStoreError, AllowListError: this device cannot make a key, sign, or store.
    """
    state = recover(directory, now=now) or begin(directory, now=now(), environ=environ)
    away: list[tuple[EnrolledServer, AmeshError]] = []
    for server in servers:
        if server.device_id in state.accepted:
            continue
        try:
            _ask(directory, state, server, server_key(server.device_id), now)
        except AmeshError as error:
            away.append((server, error))
        else:
            state = dataclasses.replace(state, accepted=state.accepted | {server.device_id})
            write_replacement(directory, state)
    if state.accepted and not state.moving:
        state = move(directory, state, now=now())
    if state.moving and not away:
        end(directory, state, environ=environ)
    return Rotated(state, state.moving, tuple(away))


def _ask(
    directory: Path, state: Replacement, server: EnrolledServer, server_key: bytes, now: Callable[[], dt.datetime]
) -> None:
    """Ask one server to accept the new key.

    Raises:
        AmeshError: it did not.
    """
    old, new = (LocalDevice(directory, identity=identity) for identity in (state.old, state.new))
    body = build_rotation(
        old_device_id=state.old.device_id,
        new_public_key=state.new.public_key,
        audience=server.device_id,
        now=int(now().timestamp()),
        sign=new.sign,
    )
    try:
        answer = read_answer(
            "POST", f"{server.url}{ROTATE_PATH}", json=body, timeout=TIMEOUT_SECONDS, auth=AmeshAuth(old)
        )
    except Unauthorized:  # it may have accepted the new key long ago, and the answer was lost
        read_answer("GET", f"{server.url}check", json=None, timeout=TIMEOUT_SECONDS, auth=AmeshAuth(new))
        return
    verify_rotated(
        answer,
        old_device_id=state.old.device_id,
        new_public_key=state.new.public_key,
        server_key=server_key,
        audience=server.device_id,
    )

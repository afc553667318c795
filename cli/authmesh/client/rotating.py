"""Replace the key of this device at every server where it has enrolled (docs/fleet.md §2).

The new key is made and stored first. A server that accepts it accepts the old one, too, for some minutes. As soon as one server has
accepted it, the device moves to the new key, and keeps the old one for the servers that were away. So a crash at any point leaves
this device with a key that each server accepts.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from authmesh.device import LocalDevice, read_identity
from authmesh.device.replacing import Replacement, accept, begin, end, move, read_replacement, recover
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.files.clock import utc_now
from authmesh.protocol.check import CheckAnswer
from authmesh.protocol.enrollment_errors import UnexpectedAnswer
from authmesh.protocol.errors import AmeshError, InvalidInput, KeyStoreError, Run, Unauthorized
from authmesh.protocol.rotation import ROTATE_PATH, RotationUnfinished, build_rotation, verify_rotated

from .answers import read_answer
from .httpx_auth import AmeshAuth

TIMEOUT_SECONDS = 10.0
_BOTH_KEPT = "Both keys are kept, and the server accepts the old one for some minutes only."


@dataclass(frozen=True, slots=True)
class Rotated:
    """The result.

    Attributes:
        replacement: both identities, and the servers that have accepted the new key.
        moved: True if this device uses the new key.
        away: the servers that were asked and have not accepted it, each with the reason.
        waiting: all servers that have not accepted it. The old key is kept for them.
    """

    replacement: Replacement
    moved: bool
    away: Sequence[tuple[EnrolledServer, AmeshError]] = field(default_factory=tuple)
    waiting: Sequence[EnrolledServer] = field(default_factory=tuple)


def rotate(
    directory: Path,
    servers: Sequence[EnrolledServer],
    *,
    asked: Sequence[EnrolledServer] | None = None,
    server_key: Callable[[str], bytes],
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], dt.datetime] = utc_now,
) -> Rotated:
    """Replace the key of this device, or continue where another process was interrupted.

    Args:
        directory: the device directory.
        servers: all servers that this device calls. The old key is deleted when each of them has accepted the new one.
        asked: those of them to ask now. Defaults to all.
        server_key: returns the public key of a server in the allow list of this device, 33 bytes.
        environ: the environment, for the variables of the key store.
        now: the clock.

    Raises:
        DirectoryError, KeyStoreError, AllowListError: this device cannot make a key, sign, or store.
        RotationUnfinished: a server has accepted the new key, and this device cannot store that.
    """
    state = recover(directory, now=now()) or begin(directory, now=now(), environ=environ)
    before = {server.device_id for server in ServerStore(directory).read()}
    away: list[tuple[EnrolledServer, AmeshError]] = []
    for server in servers if asked is None else asked:
        if server.device_id in state.accepted:
            continue
        try:
            _ask(directory, state, server, server_key(server.device_id), now)
        except AmeshError as error:
            away.append((server, error))
            continue
        with _unfinished(f"{server.url} has accepted the new key, and this device could not store that. {_BOTH_KEPT}"):
            state = accept(directory, state, server.device_id)
            if not state.moving:  # at once, because the server accepts the old key for some minutes only
                state = move(directory, state, now=now())
    if state.accepted and not state.moving:  # an earlier call was interrupted
        with _unfinished(f"A server has accepted the new key, and this device could not store that. {_BOTH_KEPT}"):
            state = move(directory, state, now=now())
    enrolled = [
        server for server in ServerStore(directory).read() if server.device_id not in before
    ]  # with the old key
    waiting = tuple(server for server in (*servers, *enrolled) if server.device_id not in state.accepted)
    if state.moving and not waiting:
        with _unfinished("This device uses its new key, and could not remove what is left of the old one."):
            end(directory, state, environ=environ)
    return Rotated(state, state.moving, tuple(away), waiting)


@contextlib.contextmanager
def _unfinished(what: str) -> Iterator[None]:
    """Raise RotationUnfinished for an error that comes after a server has accepted the new key."""
    try:
        yield
    except AmeshError as error:
        hint = error.hint if isinstance(error.hint, tuple) else (error.hint,)
        then = (" Then run ", Run("rotate", "--finish"), ".")
        raise RotationUnfinished(f"{what} {error.message}", hint=(*hint, *then)) from error


def _ask(
    directory: Path, state: Replacement, server: EnrolledServer, server_key: bytes, now: Callable[[], dt.datetime]
) -> None:
    """Ask one server to accept the new key.

    Raises:
        AmeshError: it did not.
    """
    old, new = (LocalDevice(directory, identity=identity) for identity in (state.old, state.new))

    def ask(signer: LocalDevice) -> None:
        body = build_rotation(
            old_device_id=signer.identity.device_id,
            new_public_key=state.new.public_key,
            audience=server.device_id,
            now=int(now().timestamp()),
            sign=new.sign,
        )
        answer = read_answer(
            "POST", f"{server.url}{ROTATE_PATH}", json=body, timeout=TIMEOUT_SECONDS, auth=AmeshAuth(signer)
        )
        verify_rotated(
            answer,
            old_device_id=signer.identity.device_id,
            new_public_key=state.new.public_key,
            server_key=server_key,
            audience=server.device_id,
        )

    try:
        ask(old)
    except (Unauthorized, KeyStoreError) as failure:
        try:
            ask(new)  # the server may have accepted it long ago, and the answer was lost
        except Unauthorized:
            raise failure from None


def identify(directory: Path, url: str) -> str:
    """Ask a server for its device ID. It is a hint: only the answer to the rotation proves it.

    Args:
        directory: the device directory.
        url: address of the server's ``amesh/``, with a slash at the end.

    Raises:
        AmeshError: the server cannot be reached, does not know this device, or does not say who it is.
    """
    found = read_replacement(directory)
    identities = [read_identity(directory)] if found is None else [found.old, found.new]
    while True:
        try:
            answer = read_answer(
                "GET",
                f"{url}check",
                json=None,
                timeout=TIMEOUT_SECONDS,
                auth=AmeshAuth(LocalDevice(directory, identity=identities.pop(0))),
            )
        except Unauthorized:
            if not identities:
                raise
        else:
            break
    try:
        named = CheckAnswer.from_json(answer).server
    except InvalidInput:
        named = None
    if named is None:
        raise UnexpectedAnswer()
    return named

"""The bootstrap tokens that this device has made, in ``tokens.json`` of the device directory.

A token changes from open to used, or from open to withdrawn, only once, under the lock of the directory. So it is used once, no
matter how many processes wait for it. For an open token the file has the secret that proves it, never the token itself. For all
other tokens it has neither.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.encoding import b64url_decode, b64url_encode
from authmesh.protocol.errors import DirectoryError, InvalidInput, Run
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key
from authmesh.protocol.pairing.token import KEY_BYTES, BootstrapToken
from authmesh.protocol.pairing.token_errors import TokenAlreadyUsed, TokenExpired, TokenNotFound, TokenWithdrawn

T = TypeVar("T")
Kept = Literal["open", "used", "withdrawn"]
State = Literal["open", "used", "expired", "withdrawn"]

#: Environment variable with the bootstrap token of a device that has no identity yet (protocol.md §10).
TOKEN_VARIABLE = "AMESH_BOOTSTRAP_TOKEN"  # noqa: S105 -- the name of the variable
FILE_VERSION = "1"
#: Seconds that a token stays in the file after it has expired.
REMEMBERED_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token of this device.

    Attributes:
        jti: number of the token.
        name: friendly name of the device that will use it.
        relay: address of the relay.
        issued_at: Unix seconds.
        expires_at: Unix seconds.
        kept: state in the file. :meth:`state` also takes the time into account.
        key: 32 secret bytes if the token is open, or None.
        changed_at: time at which it was used or withdrawn, Unix seconds.
        public_key: public key of the device that used it, 33 bytes.
        answered: True if that device was sent its acknowledgement.
    """

    jti: str
    name: str
    relay: str
    issued_at: int
    expires_at: int
    kept: Kept = "open"
    key: bytes | None = field(default=None, repr=False)
    changed_at: int | None = None
    public_key: bytes | None = None
    answered: bool = False

    def state(self, now: float) -> State:
        """Return the state of the token.

        Args:
            now: Unix seconds.
        """
        return "expired" if self.kept == "open" and now >= self.expires_at else self.kept

    def is_awaited(self, now: float) -> bool:
        """Return True if a device may still use the token: it is open, or the device that used it has no answer yet."""
        return now < self.expires_at and (self.kept == "open" or (self.kept == "used" and not self.answered))

    @property
    def used_by(self) -> str | None:
        """Device ID of the device that used the token, or None."""
        return device_id(self.public_key) if self.public_key is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return the object of the file."""
        members: dict[str, Any] = {
            "jti": self.jti,
            "name": self.name,
            "relay": self.relay,
            "issuedAt": self.issued_at,
            "expiresAt": self.expires_at,
            "state": self.kept,
        }
        if self.key is not None:
            members["key"] = b64url_encode(self.key)
        if self.changed_at is not None:
            members["changedAt"] = self.changed_at
        if self.public_key is not None:
            members |= {"publicKey": encode_public_key(self.public_key), "answered": self.answered}
        return members


class TokenStore:
    """The tokens of a device directory. Several processes may use it; each change is written in one step.

    Every method raises DirectoryError if the file cannot be read or written, and AllowListBusy if another process holds the lock for
    too long.

    Args:
        directory: the device directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "tokens.json"

    def read(self) -> list[StoredToken]:
        """Return all tokens, oldest first."""
        try:
            text = self._path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise DirectoryError(
                f"{self._path} cannot be read ({error}).", hint="Check its owner and permissions."
            ) from None
        try:
            return [_parse(member) for member in json.loads(text)["tokens"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DirectoryError(
                f"{self._path} is damaged.",
                hint="Restore it from a backup, or remove it. Without it, open tokens cannot be used.",
            ) from None

    def get(self, jti: str) -> StoredToken:
        """Return the token with this number.

        Raises:
            TokenNotFound: there is none.
        """
        return _find(self.read(), jti)

    def match(self, prefix: str) -> StoredToken:
        """Return the only token whose number starts with *prefix*.

        Args:
            prefix: with or without ``bt_``.

        Raises:
            TokenNotFound: there is none, or more than one.
        """
        digits = prefix.strip().removeprefix("bt_")
        found = [token for token in self.read() if digits and token.jti.startswith(f"bt_{digits}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise TokenNotFound(f"{len(found)} tokens start with {prefix!r}.", hint="Type more of the number.")
        raise TokenNotFound(
            f"No token has the number {prefix!r}.", hint=("To see all tokens, run ", Run("provision", "--list"), ".")
        )

    def add(self, token: BootstrapToken, now: float) -> StoredToken:
        """Store a token that was just made."""
        stored = StoredToken(token.jti, token.name, token.relay, token.issued_at, token.expires_at, key=token.key)

        def change(tokens: list[StoredToken]) -> StoredToken:
            tokens.append(stored)
            return stored

        return self._change(change, now)

    def use(self, jti: str, public_key: bytes, now: float) -> StoredToken:
        """Mark a token as used by a device. Only that device may use it again, and only until it is sent an answer.

        Args:
            jti: number of the token.
            public_key: public key of the device, 33 bytes, which the caller has verified.
            now: Unix seconds.

        Raises:
            TokenNotFound, TokenExpired, TokenAlreadyUsed, TokenWithdrawn: nothing was changed.
        """

        def change(tokens: list[StoredToken]) -> StoredToken:
            token = _find(tokens, jti)
            if token.kept == "withdrawn":
                raise TokenWithdrawn()
            if now >= token.expires_at:
                raise TokenExpired()
            if token.kept == "used":
                if token.answered or token.public_key is None or not hmac.compare_digest(token.public_key, public_key):
                    raise TokenAlreadyUsed()
                return token
            return _put(tokens, token, kept="used", key=None, public_key=public_key, changed_at=int(now))

        return self._change(change, now)

    def answered(self, jti: str, now: float) -> None:
        """Record that the device that used the token was sent its acknowledgement. It cannot use the token again."""

        def change(tokens: list[StoredToken]) -> None:
            token = _find(tokens, jti)
            if token.kept == "used":
                _put(tokens, token, answered=True)

        self._change(change, now)

    def withdraw(self, jti: str, now: float) -> StoredToken:
        """Withdraw a token that no device has used.

        Raises:
            TokenNotFound: there is no such token.
            TokenAlreadyUsed: a device has used it; revoke that device instead.
            TokenExpired: it cannot be used anymore.
        """

        def change(tokens: list[StoredToken]) -> StoredToken:
            token = _find(tokens, jti)
            if token.kept == "used":
                raise TokenAlreadyUsed(
                    f"The token was used by {token.used_by}, so it cannot be withdrawn.",
                    hint=("If that is not your device, run ", Run("revoke", str(token.used_by)), "."),
                )
            if token.state(now) == "expired":
                raise TokenExpired("The token has expired. It cannot be used anymore, so there is nothing to withdraw.")
            if token.kept == "withdrawn":
                return token
            return _put(tokens, token, kept="withdrawn", key=None, changed_at=int(now))

        return self._change(change, now)

    def tidy(self, now: float) -> list[StoredToken]:
        """Remove the secrets of expired tokens, and tokens that expired long ago. Return all remaining tokens."""
        tokens = self.read()
        return self._change(list, now) if _tidied(tokens, now) != tokens else tokens

    def _change(self, change: Callable[[list[StoredToken]], T], now: float) -> T:
        with locked(self._directory):
            before = self.read()
            tokens = _tidied(before, now)
            result = change(tokens)
            if tokens != before:
                value = {"version": FILE_VERSION, "tokens": [token.to_json() for token in tokens]}
                atomic_write(self._path, json_text(value))
            return result


def _find(tokens: list[StoredToken], jti: str) -> StoredToken:
    for token in tokens:
        if hmac.compare_digest(token.jti.encode(), jti.encode("utf-8", "replace")):
            return token
    raise TokenNotFound()


def _put(tokens: list[StoredToken], token: StoredToken, **changes: Any) -> StoredToken:
    changed = dataclasses.replace(token, **changes)
    tokens[tokens.index(token)] = changed
    return changed


def _tidied(tokens: list[StoredToken], now: float) -> list[StoredToken]:
    return [
        dataclasses.replace(token, key=None) if token.key is not None and now >= token.expires_at else token
        for token in tokens
        if now < token.expires_at + REMEMBERED_SECONDS
    ]


def _parse(member: dict[str, Any]) -> StoredToken:
    texts = [member[name] for name in ("jti", "name", "relay", "state")]
    numbers = [member["issuedAt"], member["expiresAt"], member.get("changedAt", 0)]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise InvalidInput("A member has the wrong type.")
    if member["state"] not in ("open", "used", "withdrawn"):
        raise InvalidInput("The state is unknown.")
    key = b64url_decode(member["key"]) if "key" in member else None
    if key is not None and len(key) != KEY_BYTES:
        raise InvalidInput("The key is truncated.")
    return StoredToken(
        member["jti"],
        member["name"],
        member["relay"],
        member["issuedAt"],
        member["expiresAt"],
        member["state"],
        key,
        member.get("changedAt"),
        decode_public_key(member["publicKey"]) if "publicKey" in member else None,
        member.get("answered") is True,
    )

"""The interface of every key store."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Final, NamedTuple

from authmesh.protocol.errors import KeyStoreError, Run

#: The command to run if a key is lost. For hints.
NEW_IDENTITY: Final = Run("init", "--name NAME --force")
#: A hint for errors of a back end while a key is created.
OTHER_BACKEND: Final = "Choose another key store with --backend."

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,128}").fullmatch


class CreatedKey(NamedTuple):
    """A new key: the alias of the key in its store, and the public key (33 bytes)."""

    alias: str
    public_key: bytes


class KeyStore(ABC):
    """A store of private keys. No method ever returns a private key.

    Attributes:
        backend: name in ``identity.json`` (``encrypted-file``, ``tpm2``, …).
        in_hardware: True if no copy of any file lets another machine use a key.
        protection: how well a key is protected; one or two sentences for people.
    """

    backend: ClassVar[str]
    in_hardware: ClassVar[bool]
    protection: ClassVar[str]

    @abstractmethod
    def create(self, *, pin: str | None = None) -> CreatedKey:
        """Create a P-256 key.

        Args:
            pin: PIN that each signature needs, if the store supports PINs.

        Raises:
            InvalidInput: the PIN is not valid, or the store does not support PINs.
            KeyStoreError: the store cannot create or keep a key; nothing remains of it.
            StorageError: writing failed; nothing remains of the key.
        """

    @abstractmethod
    def sign(self, alias: str, message: bytes) -> bytes:
        """Return the ECDSA P-256 signature of SHA-256(message): ``r || s``, low-S, 64 bytes.

        Raises:
            KeyStoreError: there is no such key, or it cannot be unlocked.
        """

    @abstractmethod
    def public_key(self, alias: str) -> bytes:
        """Return the public key, 33 bytes.

        Raises:
            KeyStoreError: there is no such key, or it cannot be read.
        """

    @abstractmethod
    def seal_secret(self, alias: str) -> bytes:
        """Return the key material for sealing the allow list, 32 bytes (protocol.md §4). It is never logged.

        Raises:
            KeyStoreError: there is no such key, it cannot be unlocked, or the secret is empty or truncated.
        """

    @abstractmethod
    def delete(self, alias: str) -> None:
        """Delete the key permanently. Does nothing if there is no such key.

        Raises:
            KeyStoreError: the alias is not valid.
            StorageError: deleting failed.
        """


def check_alias(alias: str) -> str:
    """Return *alias* if it can be a part of a path (protocol.md §4).

    Raises:
        KeyStoreError: it has a character other than ``A-Z a-z 0-9 _ -``.
    """
    if not _ALIAS(alias):
        raise KeyStoreError(
            "The key alias in identity.json has a character other than letters, digits, '_' and '-'.",
            hint="The file is damaged. Restore it from a backup.",
        )
    return alias

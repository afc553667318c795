"""The one interface of all key stores."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from authmesh.protocol.errors import KeyStoreError

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,128}").fullmatch


class CreatedKey(NamedTuple):
    """A new key: the alias under which the store keeps it, and its public key (33 bytes)."""

    alias: str
    public_key: bytes


class KeyStore(ABC):
    """Where private keys live. No method ever returns a private key.

    Attributes:
        backend: name in ``identity.json`` (``encrypted-file``, ``tpm2``, …).
        protection: one sentence for people: how well a key is protected here.
    """

    backend: ClassVar[str]
    protection: ClassVar[str]

    @abstractmethod
    def create(self, *, pin: str | None = None) -> CreatedKey:
        """Make a P-256 key.

        Args:
            pin: asked for each signature from then on, where the store knows such a thing.

        Raises:
            InvalidInput: not a PIN, or the store knows none.
            KeyStoreError: the store can't make or keep a key; nothing is left behind.
            StorageError: the disk refuses; nothing is left behind.
        """

    @abstractmethod
    def sign(self, alias: str, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256(message): ``r || s``, low-S, 64 bytes.

        Raises:
            KeyStoreError: no such key, or it can't be unlocked.
        """

    @abstractmethod
    def public_key(self, alias: str) -> bytes:
        """The public key, 33 bytes.

        Raises:
            KeyStoreError: no such key, or it can't be read.
        """

    @abstractmethod
    def seal_secret(self, alias: str) -> bytes:
        """The key material for sealing the allow list, 32 bytes (protocol.md §4). Never logged.

        Raises:
            KeyStoreError: no such key, it can't be unlocked, or the secret is empty or truncated.
        """

    @abstractmethod
    def delete(self, alias: str) -> None:
        """Remove the key for good. A key that is not there is no error.

        Raises:
            KeyStoreError: not an alias.
            StorageError: the disk refuses.
        """


def check_alias(alias: str) -> str:
    """Return *alias* if it may become part of a path (protocol.md §4).

    Raises:
        KeyStoreError: any character besides ``A-Z a-z 0-9 _ -``.
    """
    if not _ALIAS(alias):
        raise KeyStoreError("A key alias has only letters, digits, '_' and '-'; identity.json is damaged, restore it.")
    return alias

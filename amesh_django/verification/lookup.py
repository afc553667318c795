"""The verifier that the settings of the project describe, with the sealed list in the database."""

from __future__ import annotations

import functools
from contextlib import suppress

from amesh_django import server
from amesh_django.conf import amesh_settings, nonce_cache
from amesh_django.trust import current_list
from authmesh.protocol.errors import AllowListIntegrityFailure, DirectoryError, IdentityMissing, KeyStoreError

from .hooks import before_lookup
from .nonces import store_for
from .types import NonceStore, TrustedKey
from .verifier import Verifier


def database_lookup(public_key: bytes) -> TrustedKey | None:
    """Find a public key in the sealed list of the database.

    Args:
        public_key: 33 bytes, compressed point.

    Returns:
        The device, in whatever state and role; None if the list does not have the key.

    Raises:
        AllowListIntegrityFailure: the list does not match its seal, or it cannot be verified because the identity or the key of
            this server cannot be used.
        AllowListUnavailable: the database cannot be read.
        TrustIsStale: a hub has been silent for too long, and the settings say to refuse.
    """
    try:
        # Before the list is read: enrollment by a bootstrap token changes it.
        if None in amesh_settings().seal_secrets:
            server.server_device()
        else:  # a list with a shared seal secret can be verified without an identity
            with suppress(IdentityMissing):
                server.ensure_identity()
        before_lookup(public_key)
        return current_list().snapshot().by_key.get(public_key)
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason=error.code) from error


@functools.cache
def nonce_store() -> NonceStore:
    """Return the nonce store that the settings describe; one per process.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    return store_for(nonce_cache())


@functools.cache
def default_verifier() -> Verifier:
    """Return the verifier that the settings describe; one per process.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    settings = amesh_settings()
    return Verifier(
        lookup=database_lookup,
        nonces=nonce_store(),
        clock_skew=settings.CLOCK_SKEW_SECONDS,
        nonce_window=settings.NONCE_WINDOW_SECONDS,
    )


def reset() -> None:
    """Forget the verifier, and the nonces in local memory with it."""
    default_verifier.cache_clear()
    nonce_store.cache_clear()

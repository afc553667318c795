"""The verifier that this project's settings describe, over the sealed list in the database."""

from __future__ import annotations

import functools
from contextlib import suppress

from amesh_django import server
from amesh_django.conf import amesh_settings
from amesh_django.trust import snapshot
from authmesh.protocol.errors import AllowListIntegrityFailure, DirectoryError, IdentityMissing, KeyStoreError

from .nonces import store_for
from .types import TrustedKey
from .verifier import Verifier


def database_lookup(public_key: bytes) -> TrustedKey | None:
    """Look a key up in the sealed list of the database.

    Raises:
        AllowListIntegrityFailure: the list can't be verified.
    """
    try:
        # Before the list is looked at: enrolment by a bootstrap token changes it.
        if amesh_settings().SEAL_KEY_FILE is None:
            server.server_device()
        else:  # the list holds without an identity
            with suppress(IdentityMissing):
                server.ensure_identity()
        return snapshot.current().by_key.get(public_key)
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(str(error), reason=error.code) from error


@functools.cache
def default_verifier() -> Verifier:
    """The verifier that the settings describe, over the database.

    Raises:
        ImproperlyConfigured: the settings are wrong.
    """
    settings = amesh_settings()
    return Verifier(
        lookup=database_lookup,
        nonces=store_for(settings.NONCE_CACHE),
        clock_skew=settings.CLOCK_SKEW_SECONDS,
        nonce_window=settings.NONCE_WINDOW_SECONDS,
    )


def reset() -> None:
    """Forget the verifier, and the nonces that it holds in local memory."""
    default_verifier.cache_clear()

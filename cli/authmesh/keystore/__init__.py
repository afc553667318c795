"""FIRST: where a private key lives. One interface; the best back end of this machine is found by :func:`choose`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from authmesh.protocol.errors import BackendUnavailable

from .base import CreatedKey, KeyStore
from .encrypted_file import EncryptedFileKeyStore, Passphrases
from .macos import store as macos
from .macos.store import KeychainKeyStore, MacKeyStore, SecureEnclaveKeyStore
from .tpm.pin import find_pin, nobody_to_ask
from .tpm.place import tcti_name

__all__ = ["BACKENDS", "CreatedKey", "EncryptedFileKeyStore", "KeyStore", "choose", "open_key_store"]

#: Back ends in the order in which ``init`` tries them; the names of ``identity.json``.
BACKENDS = ("secure-enclave", "keychain", "tpm2", "encrypted-file")

_OF_MACOS: dict[str, type[MacKeyStore]] = {store.backend: store for store in (SecureEnclaveKeyStore, KeychainKeyStore)}


def unavailable(backend: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why *backend* can't be used on this machine, or None if it can. One sentence for people.

    Args:
        environ: where ``AMESH_TPM_TCTI`` is looked up.

    Raises:
        BackendUnavailable: there is no back end of that name.
    """
    if backend == "encrypted-file":
        return None
    if backend == "tpm2":
        from .tpm import store as tpm

        return tpm.unavailable(tcti_name(environ))
    if backend in _OF_MACOS:
        return macos.unavailable(backend)
    raise BackendUnavailable(f"There is no key store {backend!r}. Choose one of: {', '.join(BACKENDS)}.")


def choose(
    wanted: str | None = None,
    report: Callable[[str, str | None], None] = lambda backend, why_not: None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """The best back end of this machine, or *wanted*.

    Args:
        wanted: name of a back end; None tries all in order.
        report: called for each that is tried, with None or with why it can't be used.
        environ: as in :func:`unavailable`.

    Raises:
        BackendUnavailable: *wanted* can't be used here.
    """
    for backend in (wanted,) if wanted else BACKENDS:
        why_not = unavailable(backend, environ)
        report(backend, why_not)
        if why_not is None:
            return backend
    raise BackendUnavailable(
        f"The key store {wanted} can't be used here: {why_not}. Leave --backend out to see what can."
    )


def open_key_store(
    backend: str,
    *,
    folder: Path,
    passphrase: Callable[[], Passphrases],
    environ: Mapping[str, str] = os.environ,
    ask_pin: Callable[[], str] = nobody_to_ask,
) -> KeyStore:
    """The key store of a device directory. Neither a TPM nor a key chain is asked before a key is used.

    Args:
        backend: as in ``identity.json``.
        folder: the ``keys`` folder.
        passphrase: for the encrypted file.
        environ: for the TPM: which one, and where the PIN is.
        ask_pin: for a key in the TPM that has a PIN: called where no file has it.

    Raises:
        BackendUnavailable: not a back end of this machine.
    """
    if backend == "tpm2":
        from .tpm.store import TpmKeyStore

        return TpmKeyStore(folder, tcti_name(environ), lambda: find_pin(environ, ask_pin))
    of_macos = _OF_MACOS.get(backend)
    why_not = macos.missing() if of_macos else unavailable(backend, environ)
    if why_not is not None:
        raise BackendUnavailable(f"This identity's key lives in {backend}, which can't be used here: {why_not}.")
    return of_macos(folder) if of_macos else EncryptedFileKeyStore(folder, passphrase)

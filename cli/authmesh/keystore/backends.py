"""The back ends of this program: found, chosen and opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from authmesh.protocol.errors import BackendUnavailable, KeyStoreError

from .base import KeyStore
from .encrypted_file import EncryptedFileKeyStore, Passphrases
from .macos import store as macos
from .tpm import store as tpm
from .tpm.pin import cannot_ask, find_pin
from .tpm.place import tcti_name

#: Called for each back end that is tried, with its name, and with the error if it cannot be used.
Report = Callable[[str, KeyStoreError | None], None]


@dataclass(frozen=True, slots=True)
class Place:
    """The parameters with which a back end opens the key store of a device directory.

    Attributes:
        folder: the ``keys`` folder.
        passphrase: returns the passphrase of an encrypted file.
        environ: variables that name the TPM and the file with its PIN.
        ask_pin: returns the PIN of a TPM key if no file has it.
    """

    folder: Path
    passphrase: Callable[[], Passphrases]
    environ: Mapping[str, str]
    ask_pin: Callable[[], str]


class Backend(NamedTuple):
    """A back end.

    Attributes:
        unavailable: returns the error that prevents new keys on this machine, or None.
        open: returns the key store of a device directory; raises BackendUnavailable if that is impossible on this machine.
    """

    unavailable: Callable[[Mapping[str, str]], KeyStoreError | None]
    open: Callable[[Place], KeyStore]


def _mac(kind: type[macos.MacKeyStore]) -> Backend:
    def open_store(place: Place) -> KeyStore:
        problem = macos.missing()
        if problem is not None:
            raise BackendUnavailable(
                f"The key of this identity is in the key store {kind.backend}, which cannot be used. {problem.message}",
                hint=problem.hint,
            )
        return kind(place.folder)

    return Backend(lambda environ: macos.unavailable(kind), open_store)


#: All back ends, by the name in ``identity.json``, in the order in which ``init`` tries them.
BACKENDS: dict[str, Backend] = {
    "secure-enclave": _mac(macos.SecureEnclaveKeyStore),
    "keychain": _mac(macos.KeychainKeyStore),
    "tpm2": Backend(
        lambda environ: tpm.unavailable(tcti_name(environ)),
        lambda place: tpm.TpmKeyStore(
            place.folder, tcti_name(place.environ), lambda: find_pin(place.environ, place.ask_pin)
        ),
    ),
    "encrypted-file": Backend(
        lambda environ: None, lambda place: EncryptedFileKeyStore(place.folder, place.passphrase)
    ),
}


def _backend(name: str) -> Backend:
    try:
        return BACKENDS[name]
    except KeyError:
        raise BackendUnavailable(
            f"There is no key store {name!r}.", hint=f"Choose one of: {', '.join(BACKENDS)}."
        ) from None


def unavailable(backend: str, environ: Mapping[str, str] = os.environ) -> KeyStoreError | None:
    """Return the error that prevents new keys in *backend* on this machine, or None if it can be used.

    Args:
        backend: a name of :data:`BACKENDS`.
        environ: the variable ``AMESH_TPM_TCTI`` names the TPM.

    Raises:
        BackendUnavailable: there is no back end with this name.
    """
    return _backend(backend).unavailable(environ)


def choose(
    wanted: str | None = None,
    report: Report = lambda backend, problem: None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return the best back end of this machine, or *wanted*.

    Args:
        wanted: name of a back end. Defaults to the first one that can be used.
        report: called for each back end that is tried.
        environ: as for :func:`unavailable`.

    Raises:
        BackendUnavailable: *wanted* cannot be used on this machine.
    """
    if wanted is None:
        return next(backend for backend in BACKENDS if _try(backend, report, environ) is None)
    problem = _try(wanted, report, environ)
    if problem is None:
        return wanted
    hint = problem.hint if isinstance(problem.hint, tuple) else (problem.hint,)
    raise BackendUnavailable(
        f"The key store {wanted} cannot be used on this machine. {problem.message}",
        hint=(*hint, " Or omit --backend to use the best key store of this machine."),
    )


def _try(backend: str, report: Report, environ: Mapping[str, str]) -> KeyStoreError | None:
    problem = unavailable(backend, environ)
    report(backend, problem)
    return problem


def open_key_store(
    backend: str,
    *,
    folder: Path,
    passphrase: Callable[[], Passphrases],
    environ: Mapping[str, str] = os.environ,
    ask_pin: Callable[[], str] = cannot_ask,
) -> KeyStore:
    """Return the key store of a device directory. It does not access a TPM or a key chain before a key is used.

    Args:
        backend: the name in ``identity.json``.
        folder: the ``keys`` folder.
        passphrase: returns the passphrase of an encrypted file.
        environ: variables that name the TPM and the file with its PIN.
        ask_pin: returns the PIN of a TPM key. Called if the key has a PIN and no file has it.

    Raises:
        BackendUnavailable: this machine does not have the back end.
    """
    return _backend(backend).open(Place(folder, passphrase, environ, ask_pin))

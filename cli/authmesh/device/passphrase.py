"""The passphrase of the encrypted-file key store: where it is kept and how it is found (protocol.md §4)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from authmesh.files.storage import atomic_write, expanded, json_text, locked
from authmesh.protocol.errors import AmeshError, PassphraseRequired

from .identity import LEGACY_PASSPHRASE
from .variables import passphrase_variable

logger = logging.getLogger("amesh_django.device")


def passphrase_file(path: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the passphrase file: ``AMESH_PASSPHRASE_FILE``, or ``.passphrase`` in the device directory."""
    moved = environ.get("AMESH_PASSPHRASE_FILE")
    return expanded(moved) if moved else path / ".passphrase"


def find_passphrase(path: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Return the passphrase of the encrypted-file key store, looked up in the order of protocol.md §4.

    A legacy ``passphrase`` member of ``identity.json`` is moved to the passphrase file. If that file can't be written, the
    member is used where it is, and a warning is logged.

    Raises:
        PassphraseRequired: there is no passphrase, or it is empty.
        KeyStoreError: the two variables for it differ.
    """
    return find_passphrases(path, environ)[0]


def find_passphrases(path: Path, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return every possible reading of the passphrase, the most likely one first.

    The reference strips white space around the contents of the passphrase file, although it may be part of the passphrase.

    Raises:
        PassphraseRequired: there is no passphrase, or it is empty.
        KeyStoreError: the two variables for it differ.
    """
    variable = passphrase_variable(environ)
    if variable:
        return (environ[variable],)
    file = passphrase_file(path, environ)
    text = _read_passphrase(file)
    legacy = _legacy_passphrase(path)
    if legacy is not None and text in (None, legacy):  # if both exist, an earlier move was interrupted
        _move_passphrase(path, file, legacy)
    if text is not None:
        return tuple(dict.fromkeys((text.strip(), text)))
    if legacy is not None:
        return (legacy,)
    raise PassphraseRequired(
        "AUTH_MESH_PASSPHRASE required: no passphrase was found for the encrypted key.",
        hint=f"Set AUTH_MESH_PASSPHRASE, or restore the passphrase file {file} (mode 0400) that init created.",
    )


def passphrase_source(path: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Return a phrase that names the place where :func:`find_passphrase` looks. It never contains the passphrase."""
    variable = passphrase_variable(environ)
    if variable:
        return f"the variable {variable}"
    file = passphrase_file(path, environ)
    return f"the file {file}" if file.exists() or _legacy_passphrase(path) is None else "identity.json, its old place"


def _read_passphrase(file: Path) -> str | None:
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PassphraseRequired(
            f"AUTH_MESH_PASSPHRASE required: the passphrase file {file} can't be read ({why}).",
            hint="Check its owner and permissions, or set AUTH_MESH_PASSPHRASE.",
        ) from None
    if not text.strip():
        raise PassphraseRequired(
            f"AUTH_MESH_PASSPHRASE required: the passphrase file {file} is empty.",
            hint="Restore it, or set AUTH_MESH_PASSPHRASE.",
        )
    return text


def _legacy_passphrase(path: Path) -> str | None:
    try:
        value: Any = json.loads((path / "identity.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    legacy = value.get(LEGACY_PASSPHRASE) if isinstance(value, dict) else None
    return legacy if isinstance(legacy, str) and legacy else None


def _move_passphrase(path: Path, file: Path, legacy: str) -> None:
    if legacy != legacy.strip() or not legacy.isprintable():
        return  # readers strip the white space around the contents of the file, so it can't hold this passphrase
    identity_file = path / "identity.json"
    try:
        with locked(path):
            if _legacy_passphrase(path) != legacy:  # another process has moved it
                return
            if not file.exists():
                atomic_write(file, legacy, mode=0o400)
            value = json.loads(identity_file.read_text("utf-8"))
            del value[LEGACY_PASSPHRASE]
            atomic_write(identity_file, json_text(value))
        logger.warning("The passphrase was moved from %s to %s.", identity_file, file)
    except (OSError, AmeshError) as error:
        logger.warning(
            "The passphrase is still in %s because it could not be moved to %s: %s", identity_file, file, error
        )

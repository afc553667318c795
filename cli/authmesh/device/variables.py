"""Environment variables that have two names: the one of this package, and the one that the reference reads, too."""

from __future__ import annotations

from collections.abc import Mapping

from authmesh.protocol.errors import AmeshError, DirectoryError, KeyStoreError

DIRECTORY = ("AMESH_DIR", "AUTH_MESH_DIR")
PASSPHRASE = ("AMESH_PASSPHRASE", "AUTH_MESH_PASSPHRASE")


def directory_variable(environ: Mapping[str, str]) -> str:
    """Return the device directory that the environment names; empty if it names none.

    Raises:
        DirectoryError: the two variables differ.
    """
    name = _name(environ, DIRECTORY, DirectoryError)
    return environ[name] if name else ""


def passphrase_variable(environ: Mapping[str, str]) -> str:
    """Return the name of the variable that has the passphrase; empty if there is none.

    Raises:
        KeyStoreError: the two variables differ.
    """
    return _name(environ, PASSPHRASE, KeyStoreError)


def _name(environ: Mapping[str, str], names: tuple[str, str], error: type[AmeshError]) -> str:
    found = [name for name in names if environ.get(name)]
    if len({environ[name] for name in found}) > 1:
        raise error(
            f"The variables {names[0]} and {names[1]} are both set, and differ. Nothing was changed.",
            hint="They mean the same. Unset one of them.",
        )
    return found[0] if found else ""

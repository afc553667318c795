"""Settings out of the environment: flags, lists, and a secret key that is made once and kept in a file."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})
#: Shortest secret key that is accepted, in characters; Django's own check asks for as many.
_SHORTEST_KEY = 50


def flag(name: str, default: bool = False, environ: Mapping[str, str] = os.environ) -> bool:
    """A variable that is ``1`` or ``0`` (also true/false, yes/no, on/off).

    Raises:
        ImproperlyConfigured: it is something else.
    """
    text = environ.get(name)
    if text is None:
        return default
    if text.strip().lower() in _YES:
        return True
    if text.strip().lower() in _NO:
        return False
    raise ImproperlyConfigured(f"{name} is neither yes nor no. Set it to 1 or 0.")


def words(name: str, default: str = "", environ: Mapping[str, str] = os.environ) -> list[str]:
    """A variable that is a list: words with commas between them."""
    return [word.strip() for word in environ.get(name, default).split(",") if word.strip()]


def numbers(prefix: str, settings: type, environ: Mapping[str, str] = os.environ) -> dict[str, int | str]:
    """The variables that begin with *prefix* and go on with the name of one of the numbers of *settings*, a dataclass.

    What is no number stays as it is: whoever reads the settings says so.
    """
    found: dict[str, int | str] = {}
    for name, kind in get_type_hints(settings).items():
        text = environ.get(prefix + name, "").strip()
        if text and kind in (int, int | None):
            found[name] = int(text) if text.isascii() and text.isdigit() else text
    return found


def private_directory(path: Path) -> Path:
    """Make *path* where it is missing, for its owner only; return it.

    Raises:
        ImproperlyConfigured: it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"The folder {path} can't be made ({error.strerror}). Name another in DJANGO_DATA_DIR."
        ) from None
    return path


def secret_key(file: Path, environ: Mapping[str, str] = os.environ) -> str:
    """``DJANGO_SECRET_KEY``; without it the key in *file*, which is made the first time, readable by its owner only.

    Raises:
        ImproperlyConfigured: the file can't be made or read, is open to others, or holds no key.
    """
    given = environ.get("DJANGO_SECRET_KEY")
    if given is not None:
        return _checked(given, "DJANGO_SECRET_KEY")
    try:
        if not file.exists():
            _make_key_file(file)
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise ImproperlyConfigured(f"The secret key in {file} is open to others. Close it: chmod 600 {file}")
        return _checked(file.read_text("ascii").strip(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not ASCII text"
        raise ImproperlyConfigured(
            f"The secret key in {file} can't be read or made ({why}). Name another folder in DJANGO_DATA_DIR, or set "
            "DJANGO_SECRET_KEY."
        ) from None


def _checked(key: str, where: str) -> str:
    if len(key) < _SHORTEST_KEY:
        raise ImproperlyConfigured(
            f"{where} is shorter than {_SHORTEST_KEY} characters. Delete it, and a new one is made (people log in again)."
        )
    return key


def _make_key_file(file: Path) -> None:
    """Several workers may start at once: the first to link its key in place wins, and the others read that one."""
    descriptor, temporary = tempfile.mkstemp(prefix=".secret_key.", dir=private_directory(file.parent))
    try:
        with open(descriptor, "w", encoding="ascii") as output:
            output.write(get_random_secret_key())
            output.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)

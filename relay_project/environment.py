"""Settings from environment variables: flags, lists, numbers, and a secret key that is generated once and kept in a file."""

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
#: Minimum length of a secret key in characters, as in Django's own check.
_MIN_KEY_LENGTH = 50


def flag(name: str, default: bool = False, environ: Mapping[str, str] = os.environ) -> bool:
    """Return a variable that is ``1`` or ``0`` (also true/false, yes/no, on/off) as a bool.

    Raises:
        ImproperlyConfigured: the variable has another value.
    """
    text = environ.get(name)
    if text is None:
        return default
    if text.strip().lower() in _YES:
        return True
    if text.strip().lower() in _NO:
        return False
    raise ImproperlyConfigured(f"{name} has an invalid value. Set it to 1 or 0.")


def words(name: str, default: str = "", environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a variable that is a list of words, separated by commas."""
    return [word.strip() for word in environ.get(name, default).split(",") if word.strip()]


def numbers(prefix: str, settings: type, environ: Mapping[str, str] = os.environ) -> dict[str, int | str]:
    """Return the numbers of *settings*, a dataclass, whose variable is set: its name after *prefix*.

    A value that is not a number stays text, so that the code that validates the settings can report it.
    """
    found: dict[str, int | str] = {}
    for name, kind in get_type_hints(settings).items():
        text = environ.get(prefix + name, "").strip()
        if text and kind in (int, int | None):
            found[name] = int(text) if text.isascii() and text.isdigit() else text
    return found


def private_directory(path: Path) -> Path:
    """Create *path* if it does not exist, accessible by its owner only, and return it.

    Raises:
        ImproperlyConfigured: the folder cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"Cannot create the folder {path} ({error.strerror}). Set DJANGO_DATA_DIR to another folder."
        ) from None
    return path


def secret_key(file: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Return ``DJANGO_SECRET_KEY``, or the key in *file*, which is generated if it does not exist, readable by its owner only.

    Raises:
        ImproperlyConfigured: the file cannot be created or read, other users can read it, or it holds no key.
    """
    given = environ.get("DJANGO_SECRET_KEY")
    if given is not None:
        return _checked(given, "DJANGO_SECRET_KEY")
    try:
        if not file.exists():
            _make_key_file(file)
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise ImproperlyConfigured(f"Other users can read the secret key in {file}. Run: chmod 600 {file}")
        return _checked(file.read_text("ascii").strip(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not ASCII text"
        raise ImproperlyConfigured(
            f"Cannot read or create the secret key in {file} ({why}). Set DJANGO_DATA_DIR to another folder, or set "
            "DJANGO_SECRET_KEY."
        ) from None


def _checked(key: str, where: str) -> str:
    if len(key) < _MIN_KEY_LENGTH:
        raise ImproperlyConfigured(
            f"{where} is shorter than {_MIN_KEY_LENGTH} characters. Delete it to generate a new key (users must log in again)."
        )
    return key


def _make_key_file(file: Path) -> None:
    """Generate a key. If several workers start at once, the first that links its file wins, and the others read its key."""
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

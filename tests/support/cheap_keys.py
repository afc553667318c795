"""Key files that take almost no time, in this process or in a program that a test starts:

    python -m tests.support.cheap_keys -m authmesh init --name laptop
    python -m tests.support.cheap_keys manage.py amesh_init --name server

Tests replace the back end "encrypted-file" by one with a low cost of Argon2id. Nothing else can do that: there is no setting and no
variable for it, and this module is not installed.
"""

from __future__ import annotations

import contextlib
import functools
import runpy
import sys
from collections.abc import Iterator

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh.keystore import BACKENDS, EncryptedFileKeyStore
from authmesh.keystore.encrypted_file import Argon2Cost

#: Commands that start the two front ends with cheap keys.
AMESH = [sys.executable, "-m", "tests.support.cheap_keys", "-m", "authmesh"]
DJANGO = [sys.executable, "-m", "tests.support.cheap_keys", "-m", "django"]


#: Commands that make a key. The others read the cost from its file, and are started as a person starts them.
MAKING = ("init", "bootstrap", "enroll")


def argv(django: bool, name: str, *words: object) -> list[str]:
    """Return the command line of a command of amesh, by one front end or the other."""
    if django:
        start = DJANGO if name in MAKING else [sys.executable, "-m", "django"]
        return [*start, f"amesh_{name.replace('-', '_')}", *map(str, words)]
    start = AMESH if name in MAKING else [sys.executable, "-m", "authmesh"]
    return [*start, name, *map(str, words)]


def use(cost: Argon2Cost) -> None:
    """Create key files with another cost of Argon2id from now on, in this process and its forks."""
    create = functools.partial(EncryptedFileKeyStore, cost=cost)
    BACKENDS["encrypted-file"] = BACKENDS["encrypted-file"]._replace(
        open=lambda place: create(place.folder, place.passphrase)
    )


@contextlib.contextmanager
def keys_that_cost(cost: Argon2Cost) -> Iterator[None]:
    """Create key files with another cost of Argon2id inside the block."""
    before = BACKENDS["encrypted-file"]
    use(cost)
    try:
        yield
    finally:
        BACKENDS["encrypted-file"] = before


def main() -> None:
    """Run a module (``-m NAME``) or a file with the remaining arguments, as Python itself does."""
    _, *words = sys.argv
    use(CHEAP_ARGON2)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()

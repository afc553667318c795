"""`python -m tests.keystore.tpm_worker WHAT FOLDER [ALIAS] [COUNT]`: a process that uses the TPM that AMESH_TPM_TCTI names.

Each line that it prints is a signature in hex, or the name of an error and its sentence.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from authmesh.keystore.tpm.place import tcti_name
from authmesh.keystore.tpm.store import TpmKeyStore
from authmesh.protocol.errors import KeyStoreError

MESSAGE = b"what the workers sign"
PIN = "4711 is no good PIN"
PROCESSES, THREADS = 4, 4

_printing = threading.Lock()


def say(text: str) -> None:
    with _printing:
        os.write(1, f"{text}\n".encode())


def sign(store: TpmKeyStore, alias: str, count: int) -> None:
    """Print *count* signatures."""
    for _ in range(count):
        say(store.sign(alias, MESSAGE).hex())


def threads(work: Callable[[], None]) -> None:
    """Sign in four threads at the same time."""
    started = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def forks(store: TpmKeyStore, alias: str, count: int) -> None:
    """Make *count* signatures in four forked workers and four threads of this process, all at the same time."""
    if not os.environ["AMESH_TPM_TCTI"].startswith("tabrmd"):
        sign(store, alias, 1)  # so that the workers inherit a connection of their parent
    each = count // (PROCESSES + THREADS)
    children = []
    for _ in range(PROCESSES):
        child = os.fork()
        if child == 0:
            try:
                sign(store, alias, each)
            except BaseException as error:
                say(f"{type(error).__name__} {error}")
                os._exit(1)
            os._exit(0)
        children.append(child)
    threads(lambda: sign(store, alias, each))
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


def forever(store: TpmKeyStore, alias: str) -> None:
    """Print signatures and errors until the process is killed."""
    while True:
        try:
            sign(store, alias, 1)
        except KeyStoreError as error:
            say(f"{type(error).__name__} {error}")


def forks_while_signing(store: TpmKeyStore, alias: str, count: int) -> None:
    """Fork *count* idle children, one after the other, while a thread signs. All of them live until the end."""
    done, children = threading.Event(), []

    def work() -> None:
        while not done.is_set():
            store.sign(alias, MESSAGE)

    thread = threading.Thread(target=work)
    thread.start()
    reader, writer = os.pipe()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        children.append(child)
    done.set()
    sign(store, alias, 1)
    os.close(writer)
    thread.join()
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


def rounds(store: TpmKeyStore) -> None:
    """Create a key, sign with it and delete it until the process is killed."""
    while True:
        alias = store.create().alias
        sign(store, alias, 2)
        store.seal_secret(alias)
        store.delete(alias)


def main(what: str, folder: str, alias: str = "", count: str = "0") -> None:
    store = TpmKeyStore(Path(folder), tcti_name(), lambda: PIN)
    if what == "forks":
        forks(store, alias, int(count))
    elif what == "forks while signing":
        forks_while_signing(store, alias, int(count))
    elif what == "forever":
        threads(lambda: forever(store, alias))
    elif what == "rounds":
        rounds(store)
    elif what == "on demand":
        made = store.create()
        say(made.public_key.hex())
        for _ in sys.stdin:
            sign(store, made.alias, 1)
    elif what == "create":
        say(store.create().alias)
    elif what == "secret":
        say(store.seal_secret(alias).hex())
    else:
        sys.exit(f"What is {what}?")


if __name__ == "__main__":
    main(*sys.argv[1:])

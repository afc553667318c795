"""A number in the TPM that only ever grows (TPM 2.0 Library, Part 1, 37.2; Part 3, 31): it tells whether a file was put back."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from authmesh.protocol.errors import BackendUnavailable, KeyStoreError

from .codes import is_auth_failure, tpm_code
from .connection import Tpm
from .link import link_to
from .objects import parent_key, start_session

T = TypeVar("T")

# The owner's part of the indices (TCG Registry of Reserved TPM 2.0 Handles and Localities, 2.2.2).
_FIRST_INDEX: Final = 0x01800000
_INDICES: Final = 0x00400000
#: How many places are tried where other programs have theirs.
CANDIDATES: Final = 8
_BYTES: Final = 8

# TPMA_NV (Part 2, 13.4): read and written by its own password, which knows no lock-out; a counter.
_AUTH_WRITE, _COUNTER, _AUTH_READ, _NO_DA, _WRITTEN = 0x4, 0x10, 0x40000, 0x2000000, 0x20000000
_ATTRIBUTES: Final = _AUTH_WRITE | _COUNTER | _AUTH_READ | _NO_DA

_NO_SUCH_HANDLE: Final = 0x08B
_NO_SPACE: Final = (0x14B, 0x154)  # NV_SPACE, and NO_RESULT of some TPMs that have no counter left
_TAKEN: Final = 0x14C


class NoSpace(KeyStoreError):
    """The TPM has no room for another counter."""


def indices(name: str) -> Iterator[int]:
    """Where the counter of *name* may be, the first choice first."""
    for number in range(CANDIDATES):
        digest = hashlib.sha256(f"amesh counter place {number} {name}".encode()).digest()
        yield _FIRST_INDEX + int.from_bytes(digest[:4], "big") % _INDICES


class NotOurs(KeyStoreError):
    """There is a counter of this name in the TPM, with another password."""


class TpmCounter:
    """The counter of one name. It never goes back: one that is removed and made again begins above all that ever were there.

    Each call is one turn at the TPM. What it answers is authenticated with the password, which never crosses the bus.

    Args:
        tcti: as :func:`.tpm_place.tcti_name`.
        name: whose it is, such as a device id.
        password: 32 secret bytes.
    """

    def __init__(self, tcti: str, name: str, password: bytes) -> None:
        self._tcti = tcti
        self._name = name
        self._password = password

    def read(self) -> int | None:
        """Its value; None where there is none.

        Raises:
            NotOurs: what is there has another password.
            KeyStoreError: the TPM can't be used.
        """
        return self._run(self._read)

    def make(self) -> int:
        """Make it where there is none; its value.

        Raises:
            NoSpace: the TPM has none left.
            KeyStoreError: as :meth:`read`.
        """
        return self._run(self._make)

    def advance_to(self, value: int) -> None:
        """Count up until it is at least *value*. Not "one more": that would count twice where an answer got lost.

        Raises:
            KeyStoreError: as :meth:`read`, or there is none.
        """
        self._run(lambda tpm: self._advance(tpm, value))

    def remove(self) -> None:
        """Free its place. No error if there is none.

        Raises:
            KeyStoreError: as :meth:`read`.
        """
        self._run(self._remove)

    def _run(self, work: Callable[[Tpm], T]) -> T:
        try:
            return link_to(self._tcti).run(work)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"A counter in a TPM 2.0 says which list is the newest, and it can't be used now: {error}. Nothing else can "
                "stand in for it."
            ) from None

    def _public(self, library: Any, index: int) -> Any:
        # The policy is one that nothing fulfils, and nothing asks for: it only tells our counter from others.
        return library.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=library.TPM2_ALG.SHA256,
            attributes=_ATTRIBUTES,
            authPolicy=hashlib.sha256(f"amesh counter of {self._name}".encode()).digest(),
            dataSize=_BYTES,
        )

    def _find(self, tpm: Tpm) -> tuple[Any | None, bool, list[int]]:
        """A handle, whether the counter was ever counted up, and the places that are free."""
        free = []
        for index in indices(self._name):
            try:
                handle = tpm.context.tr_from_tpmpublic(index)
            except tpm.library.TSS2_Exception as error:
                if tpm_code(error) != _NO_SUCH_HANDLE:
                    raise
                free.append(index)
                continue
            found = tpm.context.nv_read_public(handle)[0].nvPublic
            is_written = bool(int(found.attributes) & _WRITTEN)
            wanted = self._public(tpm.library, index)
            wanted.attributes = _ATTRIBUTES | (_WRITTEN if is_written else 0)
            if found.marshal() == wanted.marshal():
                return handle, is_written, free
            tpm.context.tr_close(handle)  # another program's
        return None, False, free

    def _read(self, tpm: Tpm) -> int | None:
        handle, is_written, _ = self._find(tpm)
        if handle is None:
            return None
        with self._opened(tpm, handle) as session:
            return self._value(tpm, handle, session) if is_written else None

    def _make(self, tpm: Tpm) -> int:
        handle, is_written, free = self._find(tpm)
        if handle is None:
            handle = self._define(tpm, free)
        with self._opened(tpm, handle) as session:
            if not is_written:
                tpm.context.nv_increment(handle, session1=session)
            return self._value(tpm, handle, session)

    def _advance(self, tpm: Tpm, value: int) -> None:
        handle, _, _ = self._find(tpm)
        if handle is None:
            raise KeyStoreError("The counter in the TPM is gone: somebody removed it, or the TPM was cleared.")
        with self._opened(tpm, handle) as session:
            for _ in range(value - self._value(tpm, handle, session)):
                tpm.context.nv_increment(handle, session1=session)

    def _remove(self, tpm: Tpm) -> None:
        handle, _, _ = self._find(tpm)
        if handle is not None:
            tpm.context.nv_undefine_space(handle)

    def _define(self, tpm: Tpm, free: list[int]) -> Any:
        library = tpm.library
        encrypted = int(library.TPMA_SESSION.CONTINUESESSION | library.TPMA_SESSION.DECRYPT)
        with parent_key(tpm) as parent, tpm.holding(start_session(tpm, parent, encrypted)) as session:
            for index in free:
                public = library.TPM2B_NV_PUBLIC(nvPublic=self._public(library, index))
                try:
                    return tpm.context.nv_define_space(self._password, public, session1=session)
                except library.TSS2_Exception as error:
                    if tpm_code(error) in _NO_SPACE:
                        break
                    if tpm_code(error) != _TAKEN:
                        raise
        raise NoSpace(
            "The TPM has no room for another counter. Free an index that nobody needs: tpm2_nvreadpublic, tpm2_nvundefine."
        )

    def _value(self, tpm: Tpm, handle: Any, session: Any) -> int:
        return int.from_bytes(bytes(tpm.context.nv_read(handle, _BYTES, session1=session)), "big")

    @contextlib.contextmanager
    def _opened(self, tpm: Tpm, handle: Any) -> Iterator[Any]:
        """An HMAC session (Part 1, 19.6): the password is never sent, and nobody on the bus can answer in the TPM's place."""
        library = tpm.library
        attributes = int(library.TPMA_SESSION.CONTINUESESSION)
        try:
            tpm.context.tr_set_auth(handle, self._password)
            with parent_key(tpm) as parent, tpm.holding(start_session(tpm, parent, attributes)) as session:
                yield session
        except library.TSS2_Exception as error:
            if not is_auth_failure(error):
                raise
            raise NotOurs("The counter in the TPM has another password than this server's secret gives.") from None
        finally:
            with contextlib.suppress(library.TSS2_Exception):
                tpm.context.tr_close(handle)  # what the library knows of it; the index stays

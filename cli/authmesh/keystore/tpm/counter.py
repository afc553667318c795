"""A counter in the TPM that can only increase (TPM 2.0 Library, Part 1, 37.2; Part 3, 31). It detects that a file was restored."""

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

# The range of indices for the owner (TCG Registry of Reserved TPM 2.0 Handles and Localities, 2.2.2).
_FIRST_INDEX: Final = 0x01800000
_INDICES: Final = 0x00400000
#: Indices that a counter may have, in case other programs use some of them.
CANDIDATES: Final = 8
_BYTES: Final = 8

# TPMA_NV (Part 2, 13.4): a counter that is read and written with its own password, without lockout.
_AUTH_WRITE, _COUNTER, _AUTH_READ, _NO_DA, _WRITTEN = 0x4, 0x10, 0x40000, 0x2000000, 0x20000000
_ATTRIBUTES: Final = _AUTH_WRITE | _COUNTER | _AUTH_READ | _NO_DA

_NO_SUCH_HANDLE: Final = 0x08B
_NO_SPACE: Final = (0x14B, 0x154)  # NV_SPACE; some TPMs return NO_RESULT if they have no free counter
_TAKEN: Final = 0x14C


class NoSpace(KeyStoreError):
    """Raised if the TPM has no space for another counter."""


def indices(name: str) -> Iterator[int]:
    """Yield the indices that the counter of *name* may have, in the order in which they are tried."""
    for number in range(CANDIDATES):
        digest = hashlib.sha256(f"amesh counter place {number} {name}".encode()).digest()
        yield _FIRST_INDEX + int.from_bytes(digest[:4], "big") % _INDICES


class NotOurs(KeyStoreError):
    """Raised if the TPM has a counter of this name with another password."""


class TpmCounter:
    """The counter of one name. It never decreases: if it is removed and created again, it starts above all former values.

    Every response of the TPM is authenticated with the password, which is never sent over the bus.

    Args:
        tcti: the TPM, as returned by :func:`.place.tcti_name`.
        name: name of the counter, such as a device ID.
        password: 32 secret bytes.
    """

    def __init__(self, tcti: str, name: str, password: bytes) -> None:
        self._tcti = tcti
        self._name = name
        self._password = password

    def read(self) -> int | None:
        """Return the value of the counter, or None if there is no counter.

        Raises:
            NotOurs: the counter has another password.
            KeyStoreError: the TPM cannot be used.
        """
        return self._run(self._read)

    def make(self) -> int:
        """Create the counter if there is none, and return its value.

        Raises:
            NoSpace: the TPM has no space for another counter.
            KeyStoreError: as for :meth:`read`.
        """
        return self._run(self._make)

    def advance_to(self, value: int) -> None:
        """Increase the counter until it is at least *value*.

        A method that increased it by one would increase it twice if it were repeated after a lost response.

        Raises:
            KeyStoreError: as for :meth:`read`, or there is no counter.
        """
        self._run(lambda tpm: self._advance(tpm, value))

    def remove(self) -> None:
        """Remove the counter. Does nothing if there is none.

        Raises:
            KeyStoreError: as for :meth:`read`.
        """
        self._run(self._remove)

    def _run(self, work: Callable[[Tpm], T]) -> T:
        try:
            return link_to(self._tcti).run(work)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"The counter that identifies the newest allow list is in a TPM 2.0 that cannot be used. {error.message}",
                hint=error.hint,
            ) from None

    def _public(self, library: Any, index: int) -> Any:
        # The policy cannot be fulfilled and is never needed. It only distinguishes this counter from those of other programs.
        return library.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=library.TPM2_ALG.SHA256,
            attributes=_ATTRIBUTES,
            authPolicy=hashlib.sha256(f"amesh counter of {self._name}".encode()).digest(),
            dataSize=_BYTES,
        )

    def _find(self, tpm: Tpm) -> tuple[Any | None, bool, list[int]]:
        """Return a handle or None, True if the counter was ever increased, and the free indices."""
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
            tpm.context.tr_close(handle)  # it belongs to another program
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
            raise KeyStoreError("The counter in the TPM is missing: it was removed, or the TPM was cleared.")
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
            "The TPM has no space for another counter.",
            hint="Remove an index that no program needs (tpm2_nvreadpublic lists them, tpm2_nvundefine removes one).",
        )

    def _value(self, tpm: Tpm, handle: Any, session: Any) -> int:
        return int.from_bytes(bytes(tpm.context.nv_read(handle, _BYTES, session1=session)), "big")

    @contextlib.contextmanager
    def _opened(self, tpm: Tpm, handle: Any) -> Iterator[Any]:
        """Yield an HMAC session (Part 1, 19.6). The password is never sent, and nothing on the bus can respond in the TPM's place."""
        library = tpm.library
        attributes = int(library.TPMA_SESSION.CONTINUESESSION)
        try:
            tpm.context.tr_set_auth(handle, self._password)
            with parent_key(tpm) as parent, tpm.holding(start_session(tpm, parent, attributes)) as session:
                yield session
        except library.TSS2_Exception as error:
            if not is_auth_failure(error):
                raise
            raise NotOurs(
                "The password of the counter in the TPM was not derived from the secret of this server."
            ) from None
        finally:
            with contextlib.suppress(library.TSS2_Exception):
                tpm.context.tr_close(handle)  # frees the object of the library; the index remains in the TPM

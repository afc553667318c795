"""An open connection to a TPM 2.0, and the objects that are loaded in it (TPM 2.0 Library, Part 1, 30; TSS 2.0 ESAPI)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from .codes import BUSY, FULL, tpm_code

_FLUSH_CONTEXT: Final = 0x165
_FIRST_TRANSIENT, _FIRST_LOADED_SESSION = 0x80000000, 0x02000000


class Stale(Exception):
    """A loaded object has been replaced. It must be loaded again."""


class Tpm:
    """An open connection, for use inside :meth:`.link.TpmLink.run`.

    Attributes:
        library: the Python binding.
        context: the ESAPI context.
        loaded: objects that stay loaded after a call, by name: their handles in the ESAPI and in the TPM.
        saved: the same objects as context blobs (TPM 2.0 Library, Part 1, 30.2). They survive a turn, but not a reset of the TPM.
        changed: True if an object was loaded or unloaded since the last turn.
    """

    def __init__(
        self, library: Any, context: Any, tcti: Any, saved: dict[Any, Any], before_loading: Callable[[], None]
    ) -> None:
        self.library = library
        self.context = context
        self._tcti = tcti
        self._before_loading = before_loading
        self.loaded: dict[Any, tuple[Any, int]] = {}
        self.saved = saved
        self.changed = True
        self._digest = library.TPM2B_DIGEST(bytes(32))
        self._digest_buffer = self._digest.buffer

    def digest(self, digest: bytes) -> Any:
        """Return 32 bytes as an object of the library. Each call reuses the same object, because creating one is slow."""
        self._digest_buffer[:] = digest
        return self._digest

    @contextlib.contextmanager
    def holding(self, handle: Any) -> Iterator[Any]:
        """Yield *handle*, and flush it at the end of the block."""
        try:
            yield handle
        finally:
            with contextlib.suppress(self.library.TSS2_Exception):  # a reset, or the end of the connection, flushed it
                self.context.flush_context(handle)

    def restored(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return a handle, loaded from its saved context or created by *make*. The caller must flush it.

        Every object is loaded by this method, or under a parent that is.
        """
        self._before_loading()
        self.changed = True
        if name in self.saved:
            try:
                return self.context.context_load(self.saved[name])
            except self.library.TSS2_Exception as error:
                if tpm_code(error) in (None, *BUSY, *FULL):
                    raise
                del self.saved[name]  # the TPM was reset, or cleared
        handle = make()
        try:
            self.saved[name] = self.context.context_save(handle)
        except BaseException:
            with contextlib.suppress(self.library.TSS2_Exception):
                self.context.flush_context(handle)
            raise
        return handle

    def keep(self, name: tuple[str, Any], make: Callable[[], Any], *, save: bool = True) -> Any:
        """Return the handle that stays loaded under *name*. It is created by *make* if there is none.

        Only one object of each kind (the first part of the name) stays loaded.
        """
        if name not in self.loaded:
            for other in [other for other in self.loaded if other[0] == name[0]]:
                self.drop(other)
            handle = self.restored(name, make) if save else make()
            self.changed = True
            self.loaded[name] = (handle, int(self.context.tr_get_tpm_handle(handle)))
        return self.loaded[name][0]

    def drop(self, name: Any) -> None:
        """Unload the object with this name."""
        handle, _ = self.loaded.pop(name, (None, 0))
        self.changed = True
        if handle is not None:
            with contextlib.suppress(self.library.TSS2_Exception):
                self.context.flush_context(handle)

    def flush(self) -> None:
        """Unload all objects that this process loaded."""
        for name in list(self.loaded):
            self.drop(name)

    def forget(self) -> None:
        """Forget all loaded objects, because another process unloaded them or the TPM was reset."""
        for handle, _ in self.loaded.values():
            with contextlib.suppress(self.library.TSS2_Exception):
                self.context.tr_close(handle)
        self.loaded.clear()
        self.changed = True

    def unload(self, handle: int) -> None:
        """Unload a handle of the TPM that the ESAPI does not know (TPM2_FlushContext, Part 3, 28.4)."""
        command = b"\x80\x01" + b"".join(n.to_bytes(4, "big") for n in (14, _FLUSH_CONTEXT, handle))
        self._tcti.transmit(command)
        self._tcti.receive()  # an error means that the handle was not loaded

    def unload_everything(self) -> None:
        """Unload the objects of all programs, because a TPM without a resource manager has no free slot.

        They include objects of processes that were killed.
        """
        self.forget()
        for first in (_FIRST_TRANSIENT, _FIRST_LOADED_SESSION):
            _, found = self.context.get_capability(self.library.TPM2_CAP.HANDLES, first, 64)
            handles = found.data.handles  # valid only while *found* exists
            for handle in [int(handles[at]) for at in range(len(handles))]:
                if handle >> 24 == first >> 24:
                    self.unload(handle)

    def close(self) -> None:
        """Close the connection."""
        for close in (self.context.close, self._tcti.close):
            with contextlib.suppress(Exception):
                close()

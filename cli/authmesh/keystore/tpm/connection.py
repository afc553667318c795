"""An open connection to a TPM 2.0, and what is loaded there (TPM 2.0 Library, Part 1, 30; TSS 2.0 Enhanced System API)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from .codes import BUSY, FULL, tpm_code

_FLUSH_CONTEXT: Final = 0x165
_FIRST_TRANSIENT, _FIRST_LOADED_SESSION = 0x80000000, 0x02000000


class Stale(Exception):
    """What is loaded is not what it was: it must be loaded anew."""


class Tpm:
    """An open connection, inside :meth:`Link.run`.

    Attributes:
        library: the binding.
        context: the ESAPI context.
        loaded: what is loaded beyond one call, by a name: handles of the ESAPI and of the TPM.
        saved: the same as context blobs (TPM 2.0 Library, Part 1, 30.2): they survive a turn, not a reset of the TPM.
        changed: something was loaded or unloaded.
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
        """32 bytes as the library takes them. The next call changes them: to make another object takes as long as all else."""
        self._digest_buffer[:] = digest
        return self._digest

    @contextlib.contextmanager
    def holding(self, handle: Any) -> Iterator[Any]:
        """Flush *handle* in the end."""
        try:
            yield handle
        finally:
            with contextlib.suppress(self.library.TSS2_Exception):  # it went with a reset, or with the connection
                self.context.flush_context(handle)

    def restored(self, name: Any, make: Callable[[], Any]) -> Any:
        """A handle, out of its saved context or else made by *make*; the caller sees that it is flushed.

        Whatever is loaded goes through here first, if only for its parent.
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
        """The handle that stays loaded under *name*, one of a kind; made by *make* where there is none."""
        if name not in self.loaded:
            for other in [other for other in self.loaded if other[0] == name[0]]:
                self.drop(other)
            handle = self.restored(name, make) if save else make()
            self.changed = True
            self.loaded[name] = (handle, int(self.context.tr_get_tpm_handle(handle)))
        return self.loaded[name][0]

    def drop(self, name: Any) -> None:
        """Unload what is loaded under *name*."""
        handle, _ = self.loaded.pop(name, (None, 0))
        self.changed = True
        if handle is not None:
            with contextlib.suppress(self.library.TSS2_Exception):
                self.context.flush_context(handle)

    def flush(self) -> None:
        """Unload all that this process loaded."""
        for name in list(self.loaded):
            self.drop(name)

    def forget(self) -> None:
        """What was loaded is not any more: another process unloaded it, or the TPM was reset."""
        for handle, _ in self.loaded.values():
            with contextlib.suppress(self.library.TSS2_Exception):
                self.context.tr_close(handle)
        self.loaded.clear()
        self.changed = True

    def unload(self, handle: int) -> None:
        """Unload a handle of the TPM's that the ESAPI knows nothing of (TPM2_FlushContext, Part 3, 28.4)."""
        command = b"\x80\x01" + b"".join(n.to_bytes(4, "big") for n in (14, _FLUSH_CONTEXT, handle))
        self._tcti.transmit(command)
        self._tcti.receive()  # whether it was there does not matter

    def unload_everything(self) -> None:
        """Without a resource manager, where slots ran out: what killed processes and others left there as well."""
        self.forget()
        for first in (_FIRST_TRANSIENT, _FIRST_LOADED_SESSION):
            _, found = self.context.get_capability(self.library.TPM2_CAP.HANDLES, first, 64)
            handles = found.data.handles  # *found* stays alive as long as its parts are read
            for handle in [int(handles[at]) for at in range(len(handles))]:
                if handle >> 24 == first >> 24:
                    self.unload(handle)

    def close(self) -> None:
        """End the connection."""
        for close in (self.context.close, self._tcti.close):
            with contextlib.suppress(Exception):
                close()

"""The TPM 2.0 key store: P-256 keys that are made in the TPM and never leave it (TPM 2.0 Library, Part 1, 23 and 27; Part 3)."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from amesh_django.device.storage import atomic_write, make_private_directory
from amesh_django.protocol.errors import BackendUnavailable, InvalidInput, KeyStoreError, StorageError, WrongPin
from amesh_django.protocol.keys import device_id
from amesh_django.protocol.seal import KEY_MATERIAL_BYTES

from . import tpm_blob
from .base import CreatedKey, KeyStore, check_alias
from .tpm_blob import KeyFile, damaged
from .tpm_link import Stale, Tpm, is_auth_failure, is_bad_input, link_to
from .tpm_pin import check_pin
from .tpm_place import check_place, load_library

T = TypeVar("T")

_PARENT: Final = ("parent", "")
_SESSION: Final = ("session", "")
_DIGEST: Final = ec.ECDSA(Prehashed(hashes.SHA256()))
_CONTINUE, _DECRYPT, _ENCRYPT = 0x01, 0x20, 0x40  # TPMA_SESSION (Part 2, 8.4)


def unavailable(tcti: str) -> str | None:
    """Why there is no TPM here that keys can be made in, with the fix; None if there is one."""
    try:
        check_place(tcti)
        load_library()
        link_to(tcti).run(lambda tpm: tpm.context.flush_context(_parent(tpm)))
    except KeyStoreError as error:
        text = str(error)
        return text[:1].lower() + text[1:] if text.startswith("The ") else text
    return None


class TpmKeyStore(KeyStore):
    """Keys in ``keys/<alias>.tpm``: what the TPM wrapped, good for nothing without it.

    The parent is a primary key of the owner hierarchy, derived from the TPM's seed whenever it is needed: no persistent handle is
    spent, nothing needs to be cleaned up. The seal secret is sealed data beside the key, under the same parent.

    Args:
        folder: the ``keys`` folder of a device directory.
        tcti: where the TPM is. It is not asked before a key is used.
        pin: called when a key that has a PIN is first used; raises PinRequired where there is none.
    """

    backend: ClassVar[str] = "tpm2"
    protection: ClassVar[str] = (
        "hardware protection: it was made in this machine's TPM, and no copy of any file lets another machine use it"
    )

    def __init__(self, folder: Path, tcti: str, pin: Callable[[], str]) -> None:
        self._folder = folder
        self._tcti = tcti
        self._pin = pin
        self._files: dict[str, KeyFile] = {}
        self._secrets: dict[str, bytes] = {}
        self._pins: dict[str, bytes] = {}

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """See :meth:`KeyStore.create`. The alias is the device id.

        Args:
            pin: asked for each signature from then on; None asks for none.

        Raises:
            InvalidInput: not a PIN.
        """
        auth = b"" if pin is None else check_pin(pin)
        secret = os.urandom(KEY_MATERIAL_BYTES)

        def make(tpm: Tpm) -> KeyFile:
            library, context = tpm.library, tpm.context
            with tpm.holding(_parent(tpm)) as parent, tpm.holding(_session(tpm, parent)) as session:
                key = context.create(parent, _sensitive(library, auth), tpm_blob.key_template(library), session1=session)
                sealed = context.create(
                    parent, _sensitive(library, b"", secret), tpm_blob.seal_template(library), session1=session
                )
                name = bytes(context.tr_get_name(parent))
            blobs = (key[1].marshal(), key[0].marshal(), sealed[1].marshal(), sealed[0].marshal())
            try:
                return tpm_blob.make_key_file(name, blobs, has_pin=pin is not None)
            except InvalidInput as error:
                raise KeyStoreError(f"The TPM made another key than it was asked for: {error}") from None

        file = self._run(make)
        alias = device_id(file.public_key)
        make_private_directory(self._folder)
        atomic_write(self._path(alias), tpm_blob.key_file_text(file))
        self._files[alias] = file
        if pin is not None:
            self._pins[alias] = auth
        try:
            self.sign(alias, b"amesh: the first signature of a new key")
            if self.seal_secret(alias) != secret:
                raise KeyStoreError("The TPM does not give back what it sealed. Choose another back end: init --backend.")
        except BaseException:
            self.delete(alias)
            raise
        return CreatedKey(alias, file.public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        """See :meth:`KeyStore.sign`.

        Raises:
            PinRequired, WrongPin: the key has a PIN, and it is not known, or wrong.
        """
        file = self._file(alias)
        auth = self._auth(alias, file)
        digest = hashlib.sha256(message).digest()

        def work(tpm: Tpm) -> bytes:
            signature = _sign(tpm, file, digest, auth)
            # Without a resource manager another program may have put its own key in the place of ours.
            if not _verifies(file, digest, signature):
                raise Stale("its signature does not verify")
            return signature

        try:
            return self._run(work)
        except WrongPin:
            self._pins.pop(alias, None)
            raise

    def public_key(self, alias: str) -> bytes:
        """See :meth:`KeyStore.public_key`. Needs no TPM; the TPM lets no private part be used with another public one."""
        return self._file(alias).public_key

    def seal_secret(self, alias: str) -> bytes:
        """See :meth:`KeyStore.seal_secret`. It needs no PIN, and crosses the bus encrypted."""
        found = self._secrets.get(alias)
        if found is None:
            file = self._file(alias)
            found = self._run(lambda tpm: _unseal(tpm, file))
            if len(found) != KEY_MATERIAL_BYTES:
                raise damaged()
            self._secrets[alias] = found
        return found

    def delete(self, alias: str) -> None:
        """See :meth:`KeyStore.delete`. Without its file the key is gone: the TPM keeps nothing of it."""
        path = self._path(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(f"{path} can't be removed ({error.strerror}). Check owner and permissions.") from None
        file = self._files.pop(alias, None)
        self._secrets.pop(alias, None)
        self._pins.pop(alias, None)
        if file is not None:
            link_to(self._tcti).drop(_name(file))

    def _path(self, alias: str) -> Path:
        return self._folder / f"{check_alias(alias)}.tpm"

    def _run(self, work: Callable[[Tpm], T]) -> T:
        try:
            return link_to(self._tcti).run(work)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"This key lives in a TPM 2.0, which can't be used now: {error}. Nothing else can stand in for it."
            ) from None

    def _file(self, alias: str) -> KeyFile:
        found = self._files.get(alias)
        if found is None:
            path = self._path(alias)
            try:
                found = self._files[alias] = tpm_blob.parse_key_file(path.read_text("utf-8"))
            except FileNotFoundError:
                raise KeyStoreError(
                    f"There is no key file {path}. Restore it, or make a new identity: init --force."
                ) from None
            except UnicodeDecodeError:
                raise damaged() from None
            except OSError as error:
                raise KeyStoreError(
                    f"The key file {path} can't be read ({error}). Check its owner and permissions."
                ) from None
        return found

    def _auth(self, alias: str, file: KeyFile) -> bytes | None:
        if not file.has_pin:
            return None
        if alias not in self._pins:
            self._pins[alias] = check_pin(self._pin())
        return self._pins[alias]


def _name(file: KeyFile) -> tuple[str, bytes]:
    return ("key", file.private)


def _sensitive(library: Any, auth: bytes, data: bytes = b"") -> Any:
    return library.TPM2B_SENSITIVE_CREATE(library.TPMS_SENSITIVE_CREATE(userAuth=auth, data=data))


def _parent(tpm: Tpm) -> Any:
    """The handle of the parent; the caller flushes it."""

    def make() -> Any:
        template = tpm_blob.parent_template(tpm.library)
        try:
            return tpm.context.create_primary(_sensitive(tpm.library, b""), template, tpm.library.ESYS_TR.OWNER)[0]
        except tpm.library.TSS2_Exception as error:
            if not is_auth_failure(error):
                raise
            raise BackendUnavailable(
                "the owner hierarchy of this TPM has a password; take it away (tpm2_changeauth -c owner -p PASSWORD)"
            ) from None

    return tpm.restored(_PARENT, make)


def _session(tpm: Tpm, parent: Any, attributes: int = _CONTINUE | _DECRYPT | _ENCRYPT) -> Any:
    """An HMAC session (Part 1, 19.6), salted with a secret that only the TPM can read: who listens on the bus learns nothing."""
    library = tpm.library
    cipher = library.TPMT_SYM_DEF(
        algorithm=library.TPM2_ALG.AES,
        keyBits=library.TPMU_SYM_KEY_BITS(aes=128),
        mode=library.TPMU_SYM_MODE(aes=library.TPM2_ALG.CFB),
    )
    session = tpm.context.start_auth_session(
        tpm_key=parent,
        bind=library.ESYS_TR.NONE,
        session_type=library.TPM2_SE.HMAC,
        symmetric=cipher,
        auth_hash=library.TPM2_ALG.SHA256,
    )
    tpm.context.trsess_set_attributes(session, attributes)
    return session


def _load(tpm: Tpm, parent: Any, file: KeyFile, private: bytes, public: bytes) -> Any:
    library = tpm.library
    if bytes(tpm.context.tr_get_name(parent)) != file.parent:
        raise KeyStoreError(
            "This key was made by another TPM, or this machine's TPM was cleared since; no copy of the file helps. Go back to "
            "that machine, or make a new identity (init --force) and pair again."
        )
    try:
        blobs = library.TPM2B_PRIVATE.unmarshal(private)[0], library.TPM2B_PUBLIC.unmarshal(public)[0]
    except library.TSS2_Exception:
        raise damaged() from None
    try:
        return tpm.context.load(parent, *blobs)
    except library.TSS2_Exception as error:
        if not is_bad_input(error):
            raise
        raise damaged() from None


def _key(tpm: Tpm, file: KeyFile) -> Any:
    def load() -> Any:
        with tpm.holding(_parent(tpm)) as parent:
            return _load(tpm, parent, file, file.private, file.public)

    return tpm.keep(_name(file), load)


def _pin_session(tpm: Tpm) -> Any:
    def start() -> Any:
        with tpm.holding(_parent(tpm)) as parent:
            return _session(tpm, parent, _CONTINUE)

    return tpm.keep(_SESSION, start, save=False)


def _sign(tpm: Tpm, file: KeyFile, digest: bytes, auth: bytes | None) -> bytes:
    """TPM2_Sign (Part 3, 20.2): ``r || s``, low-S."""
    library = tpm.library
    key = _key(tpm, file)
    session = library.ESYS_TR.PASSWORD
    if auth is not None:
        session = _pin_session(tpm)
        tpm.context.tr_set_auth(key, auth)
    try:
        made = tpm.context.sign(key, library.TPM2B_DIGEST(digest), *_no_scheme(library), session1=session).marshal()
    except library.TSS2_Exception as error:
        tpm.drop(_SESSION)
        if auth is None or not is_auth_failure(error):
            raise
        raise WrongPin("The TPM refuses this PIN. Type it again, or correct the file that AMESH_TPM_PIN_FILE names.") from None
    return tpm_blob.raw_signature(made)


def _verifies(file: KeyFile, digest: bytes, signature: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        file.verifier.verify(encode_dss_signature(r, s), digest, _DIGEST)
    except InvalidSignature:
        return False
    return True


@functools.cache
def _no_scheme(library: Any) -> tuple[Any, Any]:
    """The scheme is the key's own, and what it signs need not come from the TPM."""
    return (
        library.TPMT_SIG_SCHEME(scheme=library.TPM2_ALG.NULL),
        library.TPMT_TK_HASHCHECK(tag=library.TPM2_ST.HASHCHECK, hierarchy=library.TPM2_RH.NULL),
    )


def _unseal(tpm: Tpm, file: KeyFile) -> bytes:
    """TPM2_Unseal (Part 3, 12.7)."""
    with tpm.holding(_parent(tpm)) as parent, tpm.holding(_session(tpm, parent)) as session:
        with tpm.holding(_load(tpm, parent, file, file.seal_private, file.seal_public)) as sealed:
            return bytes(tpm.context.unseal(sealed, session1=session))

"""The objects of the store in a TPM: a parent, a signing key under it, sealed data (TPM 2.0 Library, Part 1, 19 and 23; Part 3)."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any, Final

from authmesh.protocol.errors import BackendUnavailable, InvalidInput, KeyStoreError, WrongPin

from ..base import NEW_IDENTITY, OTHER_BACKEND
from .blob import (
    MARK_BYTES,
    KeyFile,
    damaged,
    key_template,
    make_key_file,
    parent_template,
    raw_signature,
    seal_template,
)
from .codes import is_auth_failure, is_bad_input
from .connection import Stale, Tpm

_PARENT: Final = ("parent", "")
_SESSION: Final = ("session", "")
_CONTINUE, _DECRYPT, _ENCRYPT = 0x01, 0x20, 0x40  # TPMA_SESSION (Part 2, 8.4)


def key_name(file: KeyFile) -> tuple[str, bytes]:
    """Return the name under which the key stays loaded."""
    return ("key", file.private)


def _sensitive(library: Any, auth: bytes, data: bytes = b"") -> Any:
    return library.TPM2B_SENSITIVE_CREATE(library.TPMS_SENSITIVE_CREATE(userAuth=auth, data=data))


@contextlib.contextmanager
def parent_key(tpm: Tpm, file: KeyFile | None = None) -> Iterator[Any]:
    """Yield the parent of all keys. It is unloaded at the end of the block.

    Args:
        tpm: an open connection.
        file: a key that must have this parent. This also detects an attacker on the bus who substitutes another parent.

    Raises:
        BackendUnavailable: the owner hierarchy has a password.
        KeyStoreError: the key was made by another TPM, or the TPM was cleared.
    """

    def make() -> Any:
        template = parent_template(tpm.library)
        try:
            return tpm.context.create_primary(_sensitive(tpm.library, b""), template, tpm.library.ESYS_TR.OWNER)[0]
        except tpm.library.TSS2_Exception as error:
            if not is_auth_failure(error):
                raise
            raise BackendUnavailable(
                "The owner hierarchy of this TPM has a password.",
                hint="Remove it: tpm2_changeauth -c owner -p PASSWORD",
            ) from None

    with tpm.holding(tpm.restored(_PARENT, make)) as parent:
        if file is not None and bytes(tpm.context.tr_get_name(parent)) != file.parent:
            raise KeyStoreError(
                "This key was created by another TPM, or the TPM of this machine was cleared. No copy of the key file can help.",
                hint=(
                    "Use the machine that created it. Or to make a new identity, run ",
                    NEW_IDENTITY,
                    ", then pair again.",
                ),
            )
        yield parent


def start_session(tpm: Tpm, parent: Any, attributes: int) -> Any:
    """Return an HMAC session (Part 1, 19.6), salted with a secret that only the TPM can read, so that the bus reveals nothing."""
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


def _encrypted(tpm: Tpm, parent: Any) -> contextlib.AbstractContextManager[Any]:
    """Yield a session that encrypts the first parameter in both directions (Part 1, 21)."""
    return tpm.holding(start_session(tpm, parent, _CONTINUE | _DECRYPT | _ENCRYPT))


def _load(tpm: Tpm, parent: Any, private: bytes, public: bytes) -> Any:
    """Load an object (TPM2_Load, Part 3, 12.2). The TPM checks that it wrapped the parts and that they belong together."""
    library = tpm.library
    try:
        blobs = library.TPM2B_PRIVATE.unmarshal(private)[0], library.TPM2B_PUBLIC.unmarshal(public)[0]
        return tpm.context.load(parent, *blobs)
    except library.TSS2_Exception as error:
        if not is_bad_input(error):
            raise
        raise damaged() from None


def make_key(tpm: Tpm, pin: bytes | None, secret: bytes) -> KeyFile:
    """Create a key and seal *secret* (TPM2_Create, Part 3, 12.1).

    Args:
        tpm: an open connection.
        pin: PIN that each signature needs; None for a key without a PIN.
        secret: 32 bytes.

    Raises:
        KeyStoreError: the TPM created a different key.
    """
    library, context = tpm.library, tpm.context
    mark = os.urandom(MARK_BYTES) if pin is None else b""
    with parent_key(tpm) as parent, _encrypted(tpm, parent) as session:
        key = context.create(parent, _sensitive(library, pin or mark), key_template(library), session1=session)
        sealed = context.create(parent, _sensitive(library, b"", secret), seal_template(library), session1=session)
        name = bytes(context.tr_get_name(parent))
    blobs = (key[1].marshal(), key[0].marshal(), sealed[1].marshal(), sealed[0].marshal())
    try:
        return make_key_file(name, blobs, mark)
    except InvalidInput as error:
        raise KeyStoreError(
            f"The TPM created a key that does not match the template. {error.message}", hint=OTHER_BACKEND
        ) from None


def sign_digest(tpm: Tpm, file: KeyFile, digest: bytes, pin: bytes | None) -> bytes:
    """Return the signature of a digest: ``r || s``, low-S (TPM2_Sign, Part 3, 20.2). The key stays loaded.

    Args:
        tpm: an open connection.
        file: the key.
        digest: 32 bytes.
        pin: PIN of the key; None if it has none.

    Raises:
        WrongPin: the PIN is wrong.
        KeyStoreError: the key cannot be used.
    """
    library = tpm.library

    def load() -> Any:
        with parent_key(tpm, file) as parent:
            return _load(tpm, parent, file.private, file.public)

    def start() -> Any:
        with parent_key(tpm, file) as parent:
            return start_session(tpm, parent, _CONTINUE)

    is_loaded = key_name(file) in tpm.loaded
    key = tpm.keep(key_name(file), load)
    session, is_new = library.ESYS_TR.PASSWORD, _SESSION not in tpm.loaded
    if pin is not None:
        session = tpm.keep(_SESSION, start, save=False)
    if pin is not None or not is_loaded:
        tpm.context.tr_set_auth(key, file.mark if pin is None else pin)
    try:
        made = tpm.context.sign(key, tpm.digest(digest), *_no_scheme(library), session1=session).marshal()
    except library.TSS2_Exception as error:
        tpm.drop(_SESSION)
        if not is_bad_input(error):
            raise
        if not _is_in_its_slot(tpm, key):
            raise Stale("another key was loaded into the slot of this one") from None
        if not is_auth_failure(error):
            raise
        if pin is None:  # the key needs a PIN, although the file has none
            raise damaged() from None
        if not is_new:  # the slot of the session may have been taken too; then the PIN is not wrong
            return sign_digest(tpm, file, digest, pin)
        raise WrongPin(
            "The TPM rejected the PIN.", hint="Type it again, or correct the file that AMESH_TPM_PIN_FILE names."
        ) from None
    return raw_signature(made)


def _is_in_its_slot(tpm: Tpm, key: Any) -> bool:
    """Return False if another program has loaded its own key into this slot, which can happen without a resource manager."""
    _, name, _ = tpm.context.read_public(key)
    return bytes(name) == bytes(tpm.context.tr_get_name(key))


@functools.cache
def _no_scheme(library: Any) -> tuple[Any, Any]:
    """Return arguments of TPM2_Sign: the key has its own scheme, and the digest need not come from the TPM."""
    return (
        library.TPMT_SIG_SCHEME(scheme=library.TPM2_ALG.NULL),
        library.TPMT_TK_HASHCHECK(tag=library.TPM2_ST.HASHCHECK, hierarchy=library.TPM2_RH.NULL),
    )


def unseal(tpm: Tpm, file: KeyFile) -> bytes:
    """Return the secret that was sealed with the key (TPM2_Unseal, Part 3, 12.7)."""
    with (
        parent_key(tpm, file) as parent,
        _encrypted(tpm, parent) as session,
        tpm.holding(_load(tpm, parent, file.seal_private, file.seal_public)) as sealed,
    ):
        return bytes(tpm.context.unseal(sealed, session1=session))

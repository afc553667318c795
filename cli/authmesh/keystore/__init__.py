"""The private keys of devices.

:func:`choose` (``backends``) finds the best back end of this machine when an identity is made; :func:`open_key_store` opens the one
that ``identity.json`` names. Both return a :class:`KeyStore` (``base``): five methods, none of which returns a private key. A device
passes the alias of its key and a message to the store and gets a signature, or gets the secret from which the seal of the allow list
is derived. There are four back ends:

- ``encrypted_file``: a file under a passphrase; the key is in the memory of the process while it is used;
- ``tpm/``: a key that never leaves the TPM 2.0 of this machine;
- ``macos/``: two back ends, the Secure Enclave and the key chain of a Mac.

The library of a back end is loaded when it is first used, so that a machine needs only the one that it has.
"""

from .backends import BACKENDS, Report, choose, open_key_store, unavailable
from .base import CreatedKey, KeyStore
from .encrypted_file import EncryptedFileKeyStore

__all__ = [
    "BACKENDS",
    "CreatedKey",
    "EncryptedFileKeyStore",
    "KeyStore",
    "Report",
    "choose",
    "open_key_store",
    "unavailable",
]

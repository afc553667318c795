"""This device: its directory, identity, passphrase, tokens, and the allow list in a file.

:class:`LocalDevice` opens a device directory. It reads ``identity.json`` (``identity``), takes the key from the key store that the
identity names, finds the passphrase of that store if it needs one (``passphrase``), and then signs and seals. :func:`init_device`
(``directory``) creates such a directory in one step that either succeeds or changes nothing. :class:`AllowList` (``allow_list``) is
the interface through which the rest of the code changes trust; :class:`FileAllowList` (``file_list``) implements it by a sealed file
beside the identity. ``tokens`` keeps the bootstrap tokens that this device has made.
"""

from authmesh.files.storage import permission_problems

from .allow_list import AllowList
from .directory import LocalDevice, default_directory, init_device, read_identity
from .file_list import FileAllowList
from .identity import Identity
from .passphrase import find_passphrase

__all__ = [
    "AllowList",
    "FileAllowList",
    "Identity",
    "LocalDevice",
    "default_directory",
    "find_passphrase",
    "init_device",
    "permission_problems",
    "read_identity",
]

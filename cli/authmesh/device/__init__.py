"""FIRST: this device. Its directory, identity, passphrase, and the file allow list."""

from authmesh.files.storage import permission_problems

from .allow_list import AllowList, FileAllowList
from .directory import LocalDevice, default_directory, find_passphrase, init_device, read_identity
from .identity import Identity

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

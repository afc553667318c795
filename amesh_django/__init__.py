"""Machines prove to a Django server who they are, without a shared secret."""

__version__ = "0.1.0"

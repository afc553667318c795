"""Pairing in the admin: :mod:`.form` asks what the device gets, :mod:`.showing` is what the page of a pairing shows, :mod:`.qr` draws the code."""

from .admin import PairingAdmin

__all__ = ["PairingAdmin"]

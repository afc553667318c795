"""Adding a device by hand: the line of ``export-key`` is pasted, the device ID is compared, and the device is trusted.

Nothing is stored between the two steps: the second page sends the line again.
"""

from .admin import AddingAdmin

__all__ = ["AddingAdmin"]

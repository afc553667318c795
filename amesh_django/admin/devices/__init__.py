"""The devices in the admin.

- :mod:`.admin` is the model admin; :mod:`.revoking` asks for a reason and revokes.
- :mod:`.history` reads the changes of one device from the audit log; :mod:`.filters` has the filters of the list.
"""

from .admin import DeviceAdmin

__all__ = ["DeviceAdmin"]

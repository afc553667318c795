"""The devices in the admin.

- :mod:`.admin` is the model admin, made of :mod:`.columns`, the list; :mod:`.page`, the page of one device; :mod:`.acting`, the pages on which
  people decide; and :mod:`.revoking`, which asks for a reason and revokes.
- :mod:`.verbs` is the table of what people decide, :mod:`.forms` has the forms.
- :mod:`.history` reads the changes of one device from the audit log, and how it came; :mod:`.requests` reads what it has requested;
  :mod:`.filters` has the filters of the list.
"""

from .admin import DeviceAdmin

__all__ = ["DeviceAdmin"]

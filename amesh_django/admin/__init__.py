"""The Django admin: people view devices, map them to users and revoke them. Everything else goes through commands.

- :mod:`.devices` and :mod:`.events` are the two model admins: the devices, and the audit log.
- :mod:`.revoking` asks for a reason and revokes; :mod:`.mapping` is the form that maps a device to a user.
- :mod:`.history` reads the changes of one device from the audit log; :mod:`.filters` has the filters of the list.
- :mod:`.trouble` turns errors, and a list that cannot be verified, into texts for people; :mod:`.shown` does that with values.
- :mod:`.tags` has the template tags.
"""

from .devices import DeviceAdmin
from .events import EventAdmin

__all__ = ["DeviceAdmin", "EventAdmin"]

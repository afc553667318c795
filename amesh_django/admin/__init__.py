"""The Django admin: people view devices, map them to users and revoke them. Everything else goes through commands.

- :mod:`.devices` and :mod:`.changes` are the two model admins: the devices, and the journal of their changes.
- :mod:`.revoking` asks for a reason and revokes; :mod:`.mapping` is the form that maps a device to a user.
- :mod:`.history` reads the journal of one device; :mod:`.filters` has the filters of the list.
- :mod:`.trouble` turns errors, and a list that cannot be verified, into texts for people; :mod:`.shown` does that with values.
- :mod:`.damaged` shows what can be shown if a row was changed so that it cannot be read.
- :mod:`.tags` has the template tags.
"""

from .changes import ChangeAdmin
from .devices import DeviceAdmin

__all__ = ["ChangeAdmin", "DeviceAdmin"]

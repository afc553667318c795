"""The Django admin: people view devices, map them to users and revoke them, and make enrollment tokens. Everything else goes through commands.

- :mod:`.devices` and :mod:`.events` are two model admins: the devices, and the audit log.
- :mod:`.revoking` asks for a reason and revokes; :mod:`.mapping` is the form that maps a device to a user.
- :mod:`.tokens` is the model admin of enrollment tokens; :mod:`.token_form` is the form that makes one.
- :mod:`.fleet` has the model admins of servers and hubs, and says which servers know a change.
- :mod:`.history` reads the changes of one device from the audit log; :mod:`.filters` has the filters of the list.
- :mod:`.trouble` turns errors, and a list that cannot be verified, into texts for people; :mod:`.shown` does that with values.
- :mod:`.damaged` shows what can be shown if a row was changed so that it cannot be read.
- :mod:`.tags` has the template tags.
"""

from .devices import DeviceAdmin
from .events import EventAdmin
from .fleet import HubAdmin, ServerAdmin
from .tokens import TokenAdmin

__all__ = ["DeviceAdmin", "EventAdmin", "HubAdmin", "ServerAdmin", "TokenAdmin"]

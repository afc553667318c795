"""The Django admin: people view devices, map them to users and revoke them, and make enrollment tokens. Everything else goes through commands.

- :mod:`.devices` has the model admin of devices, and the pages on which people decide about them; :mod:`.mapping` is the form that maps a
  device to a user.
- :mod:`.approvals` has the queue of devices that wait, :mod:`.adding` adds a device by hand, and :mod:`.groups` has the groups of devices.
- :mod:`.tokens` is the model admin of enrollment tokens; :mod:`.token_form` is the form that makes one.
- :mod:`.pairing` has the pages on which people pair devices; :mod:`.giving` is the base of forms that say what devices get,
  and :mod:`.offering` offers names as checkboxes.
- :mod:`.log` has the model admin of the audit log; :mod:`.genuine` says whether amesh wrote an event.
- :mod:`.fleet` has the model admins of servers and hubs, and says which servers know a change.
- :mod:`.base` is the base of all model admins; :mod:`.selecting` verifies the rows that a search found.
- :mod:`.trouble` turns errors, and a list that cannot be verified, into texts for people; :mod:`.shown` does that with values;
  :mod:`.charts` draws numbers.
- :mod:`.damaged` shows what can be shown if a row was changed so that it cannot be read.
- :mod:`.tags` has the template tags.
"""

from .devices import DeviceAdmin
from .fleet import HubAdmin, ServerAdmin
from .groups import GroupAdmin
from .log import EventAdmin
from .pairing import PairingAdmin
from .tokens import TokenAdmin

__all__ = ["DeviceAdmin", "EventAdmin", "GroupAdmin", "HubAdmin", "PairingAdmin", "ServerAdmin", "TokenAdmin"]

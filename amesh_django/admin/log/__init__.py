"""The audit log in the admin.

- :mod:`.admin` is its model admin: the list, and the page of an event. :mod:`.verifying` and :mod:`.exports` are parts of it.
- :mod:`.choosing` is the form that says which events are shown, and :mod:`.paging` reads a page of them.
- :mod:`.telling` tells an event as one of the :mod:`.sentences`, and :mod:`.linking` finds the pages of what the sentence names.
"""

from .admin import EventAdmin

__all__ = ["EventAdmin"]

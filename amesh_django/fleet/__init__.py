"""A fleet: a hub carries what people decide to the servers that follow it (docs/fleet.md).

- :mod:`.signed_list`: all keys that a hub has revoked, as one signed text.
"""

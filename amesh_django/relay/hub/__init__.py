"""One process of the relay: its connections, and what their messages mean.

:mod:`.hub` finds the handler of a message and carries events between connections. :mod:`.pairings` and :mod:`.tokens` are the
handlers. :mod:`.sockets` is one connection, :mod:`.messages` its JSON, and :mod:`.current` returns the hub of the running event loop.
"""

"""The relay: brings the two sides of a pairing together and forwards what they say, unread (protocol.md §6 to §8).

What happens to a message, from the outside in:

- :mod:`.consumer` is the Channels consumer, mounted at ``/ws`` by :mod:`.routing`; :mod:`.urls` has ``/health`` and ``/metrics``.
- :mod:`.sockets` is one connection: what waits to be sent to it, and what it is doing.
- :mod:`.messages` reads and writes the JSON; :mod:`.addresses` says who a client is.
- :mod:`.hub` is one process, its connections and the way between them; :mod:`.hubs` has the one of this process. What the messages
  mean is in :mod:`.pairings` and :mod:`.tokens`.
- :mod:`.exchange` is what all processes have to agree on (who waits for which code, how often somebody tried): in the memory of the
  one process (:mod:`.memory_exchange`) or in Redis (:mod:`.redis_exchange`), the same to the hub.
- :mod:`.server` is daphne with the limits of a relay; ``manage.py amesh_relay`` starts it.

Channels has a layer for talking between processes, and Django a cache; neither is used, for what a relay promises they do not. What
follows was read in channels 4.3.2, channels-redis 4.3.0 and Django 6.1:

- ``RedisChannelLayer`` keeps what is sent to *all* connections of a process under one key, refuses more than its capacity there
  (100, unless set), deletes what is older than 60 seconds, and orders it by the clock of the sender. Of what has been fetched for a
  connection that does not take it, the oldest is dropped. Each message costs eight calls of Redis.
- ``RedisPubSubChannelLayer`` queues without bound, and tells nobody that something was lost while it reconnected.
- ``InMemoryChannelLayer`` walks through all connections for every message, and copies it.
- The cache in memory throws live entries away from 300 on, unless set. No cache of Django can decide about several keys (the code, its
  failed tries, the number of sessions) in one step.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


def need_extra(package: str, extra: str = "relay") -> ImproperlyConfigured:
    """The error for a package that is not installed."""
    return ImproperlyConfigured(f"The relay needs {package}. Install it: pip install 'amesh-django[{extra}]'.")

"""The relay: brings the two sides of a pairing together, and forwards their messages without reading them (protocol.md §6 to §8).

A message runs through this folder from the outside in:

1. :mod:`.server` accepts the connection. It is daphne with limits for strangers; what it takes from daphne's private parts is in
   :mod:`.private`. ``manage.py amesh_relay`` starts it. Any other ASGI server works, without these limits.
2. :mod:`.consumer` is the Channels consumer at ``/ws``, mounted by :mod:`.routing` in a project, or by :mod:`.asgi` alone. It checks
   the origin, takes the address of the client from :mod:`.addresses`, and hands each text frame to the hub of this process.
3. :mod:`.hub.messages` parses the JSON. :mod:`.hub.hub` calls the handler for the type of the message: :mod:`.hub.pairings` or
   :mod:`.hub.tokens`.
4. A handler asks the :mod:`.exchange` about everything on which all processes of the relay must agree: who waits with which code, how
   often an address has tried. :mod:`.exchange.base` lists the questions. :mod:`.exchange.memory` answers for a relay of one process,
   :mod:`.exchange.redis` for a relay of several.
5. For the other side of a pairing, the handler sends an event: directly if that side is connected to this process, otherwise through
   the exchange. The answer goes out through :mod:`.hub.sockets`, which keeps what a slow client has not read yet.

Beside this way stand :mod:`.urls`, :mod:`.views` and :mod:`.reports` (``/health``, ``/metrics``), :mod:`.conf` (the settings) and
:mod:`.failures` (what is logged about a bug). A module imports only from modules further down: consumer, server and reports from hub,
hub from exchange, exchange from conf.

Where the relay decides

- that a one-time code is burnt: ``MemoryExchange._is_burnt`` in :mod:`.exchange.memory`, ``_BURNT`` in :mod:`.exchange.redis_scripts`;
  ``join`` counts the failed tries, ``open`` rejects the code;
- that a bootstrap token was used: ``use`` in the same modules;
- that an address, or an IPv6 /48, sends too many messages: ``Rates`` in :mod:`.exchange.memory`, ``_RATE`` in :mod:`.exchange.redis_scripts`;
- that a network has its share of sessions, watches or used tokens: ``open``, ``watch`` and ``use`` in the same modules;
- that there are too many connections: ``Gate`` in :mod:`.server`, before a byte is read; then ``Hub.enter`` in :mod:`.hub.hub`;
- that a client reads too slowly: ``Socket.write`` in :mod:`.hub.sockets`, and ``Hub.sweep``;
- that a session took too long: ``expire`` in :mod:`.hub.pairings`.

Channels has layers for messages between processes, and Django has caches. The relay uses neither, because they do not keep the promises
of a relay (as read in channels 4.3.2, channels-redis 4.3.0 and Django 6.1):

- ``RedisChannelLayer`` keeps the messages for *all* connections of a process under one key, rejects more than its capacity there (100 by
  default), deletes messages older than 60 seconds, and orders them by the clock of the sender. Of the messages that were fetched for
  a slow connection, it drops the oldest. Each message costs eight calls of Redis.
- ``RedisPubSubChannelLayer`` has queues without a bound, and does not report that messages were lost while it reconnected.
- ``InMemoryChannelLayer`` visits all connections for every message, and copies the message.
- The cache in local memory evicts live entries when there are more than 300, by default. No cache of Django can decide about several
  keys (the code, its failed tries, the number of sessions) in one step.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


def need_extra(package: str) -> ImproperlyConfigured:
    """Return the error for a package of the extra ``relay`` that is not installed."""
    return ImproperlyConfigured(f"The relay needs {package}. Install it: pip install 'amesh-django[relay]'.")

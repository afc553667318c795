"""The hub of this process."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import Any

from django.core.signals import setting_changed

from .. import conf
from ..exchange.base import Exchange
from ..exchange.memory import MemoryExchange
from .hub import Hub
from .pairings import Pairings
from .tokens import Tokens

# One for each event loop, for nothing of a hub may be touched from another. A server has one loop; tests have many.
_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def make_hub(settings: conf.RelaySettings, exchange: Exchange, clock: Any = time.monotonic) -> Hub:
    """A hub with all that the relay does, not started."""
    hub = Hub(settings, exchange, clock)
    hub.add(Pairings(hub))
    hub.add(Tokens(hub))
    return hub


def make_exchange(settings: conf.RelaySettings) -> Exchange:
    """Where the processes of a relay agree; in memory, where there is one only.

    Raises:
        ImproperlyConfigured: REDIS_URL is wrong, or Redis for Python is not installed.
    """
    url = conf.redis_url(settings)
    if not url:
        return MemoryExchange(settings, time.monotonic)
    from ..exchange.redis import RedisExchange  # redis is optional: a relay of one process does without it

    return RedisExchange(settings, url)


def current_hub() -> Hub:
    """The hub of the running event loop; it begins here.

    Raises:
        ImproperlyConfigured: the settings are wrong.
    """
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        settings = conf.relay_settings()
        hub = _hubs[loop] = make_hub(settings, make_exchange(settings))
        hub.start()
    return hub


def set_hub(hub: Hub) -> None:
    """Take this hub for the running event loop. For tests, which turn its clock."""
    _hubs[asyncio.get_running_loop()] = hub


async def stop_hub() -> None:
    """End the hub of the running event loop, if there is one."""
    hub = _hubs.pop(asyncio.get_running_loop(), None)
    if hub is not None:
        await hub.stop()


def _setting_changed(setting: str, **kwargs: Any) -> None:
    if setting == "AMESH":
        _hubs.clear()


setting_changed.connect(_setting_changed, dispatch_uid="amesh_relay_settings")

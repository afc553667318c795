"""The hub of the running event loop: how it is put together, and where it is found."""

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

# One hub for each event loop, because nothing of a hub may be used from another loop. A server has one loop, tests have many.
_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def make_hub(settings: conf.RelaySettings, exchange: Exchange, clock: Any = time.monotonic) -> Hub:
    """Return a hub with pairings and tokens, not started."""
    hub = Hub(settings, exchange, clock)
    hub.add(Pairings(hub))
    hub.add(Tokens(hub))
    return hub


def make_exchange(settings: conf.RelaySettings) -> Exchange:
    """Return the exchange: in Redis if REDIS_URL is set, otherwise in memory.

    Raises:
        ImproperlyConfigured: REDIS_URL is wrong, or Redis for Python is not installed.
    """
    url = conf.redis_url(settings)
    if not url:
        return MemoryExchange(settings, time.monotonic)
    from ..exchange.redis import (
        RedisExchange,
    )  # here, because redis is optional: a relay of one process does not need it

    return RedisExchange(settings, url)


def current_hub() -> Hub:
    """Return the hub of the running event loop. The first call starts it.

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
    """Use this hub in the running event loop. For tests, which control its clock."""
    _hubs[asyncio.get_running_loop()] = hub


async def stop_hub() -> None:
    """Stop the hub of the running event loop, if there is one."""
    hub = _hubs.pop(asyncio.get_running_loop(), None)
    if hub is not None:
        await hub.stop()


def _setting_changed(setting: str, **kwargs: Any) -> None:
    if setting == "AMESH":
        _hubs.clear()


setting_changed.connect(_setting_changed, dispatch_uid="amesh_relay_settings")

"""The device of the current request, for log records: put :class:`DeviceFilter` on the handlers in ``LOGGING``.

This module imports nothing of the app, because Django configures logging before it loads the apps.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

__all__ = ["DeviceFilter"]

#: Device ID and friendly name of the device that signed the request.
_device: ContextVar[tuple[str, str] | None] = ContextVar("amesh_device", default=None)


class DeviceFilter(logging.Filter):
    """Sets ``device_id`` and ``device_name`` on each record that is logged while a verified request is handled.

    A record that has them already keeps them. The filter belongs on a handler: the filters of a logger do not see the records of
    the loggers below it.

    Args:
        default: the value for records outside of verified requests.
    """

    def __init__(self, default: str | None = "-") -> None:
        super().__init__()
        self._default = default

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the two members, and let the record through."""
        device_id, name = _device.get() or (self._default, self._default)
        record.__dict__.setdefault("device_id", device_id)
        record.__dict__.setdefault("device_name", name)
        return True


def remember(device_id: str, name: str) -> None:
    """Note the device of the current request.

    Args:
        device_id: its device ID.
        name: its friendly name.
    """
    _device.set((device_id, name))


def forget(**kwargs: Any) -> None:
    """Forget the device of the previous request, which the same thread may have handled. Receiver of ``request_started``."""
    _device.set(None)

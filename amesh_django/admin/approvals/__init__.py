"""The queue of devices that wait for approval.

It is a page of :class:`~amesh_django.admin.DeviceAdmin`, and no proxy model: a proxy would bring permissions of its own beside
``amesh.approve_device``, and a second page for each device.
"""

from .admin import ApprovingAdmin

__all__ = ["ApprovingAdmin"]

"""The addresses of the app: for devices that ask, enroll, or replace their key, for hubs, for load balancers, and for Prometheus."""

from __future__ import annotations

from .common import MAX_BODY_BYTES
from .devices import check, enroll, rotate
from .fleet import feed, pull, revocations
from .watching import live, metrics, ready

__all__ = ["MAX_BODY_BYTES", "check", "enroll", "feed", "live", "metrics", "pull", "ready", "revocations", "rotate"]

"""Metrics for Prometheus: each process counts its requests, and the state of the allow list is read when Prometheus asks.

With several processes behind one address, prometheus_client adds up their counters if the environment variable
``PROMETHEUS_MULTIPROC_DIR`` names an empty folder before they start.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from amesh_django.audit.reading import unsealed_seconds
from amesh_django.conf import problems
from amesh_django.fleet import overview, sweeping
from amesh_django.signals import changes_acknowledged, request_accepted, request_refused
from amesh_django.states import STATES
from amesh_django.trust import current_list
from amesh_django.trust.owner import controller_limit
from authmesh.protocol.errors import AmeshError, NonceStoreUnavailable, RequestError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["connect", "is_installed", "page"]

#: Upper bounds in seconds: from a fast verification to a database that hardly answers.
_BUCKETS = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)
_SEAL_OK = "1 if the allow list can be read and matches its seal. 0 if not: all signed requests are rejected."
_UNSEALED = "How long the oldest event of the audit log has waited for its place in it, in seconds. 0 if none waits."
#: The same for the time until a server of this hub knows a change.
_DELIVERY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0, 3600.0)
_DELIVERY = "Time from a change of the allow list until a server of this hub acknowledged it, in seconds."
_DIRTY = "Servers of this hub that lack changes, but for those that are paused."
_OLDEST = "How long the oldest change has waited that one of these servers lacks, in seconds. 0 if none lacks any."
_SWEEP = "Seconds since the sweeper of this hub ran last. Missing if it never did."
_HUB = "Seconds since this server heard the hub that has been silent for the longest. Missing without a hub."
_UID = "amesh_metrics"


class _Counters:
    """What this process counts. Raises ImportError without the extra ``metrics``."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self.accepted = Counter("amesh_requests_accepted", "Signed requests that were accepted.", registry=None)
        self.refused = Counter(
            "amesh_requests_refused", "Rejected requests, by the reason in the log.", ["reason"], registry=None
        )
        self.nonce_errors = Counter(
            "amesh_nonce_store_errors", "Requests that were rejected because of the nonce store.", registry=None
        )
        self.seconds = Histogram(
            "amesh_verification_seconds",
            "Time that it took to accept a request, in seconds.",
            buckets=_BUCKETS,
            registry=None,
        )
        self.delivery = Histogram("amesh_fleet_delivery_seconds", _DELIVERY, buckets=_DELIVERY_BUCKETS, registry=None)

    def on_accepted(self, *, seconds: float, **kwargs: Any) -> None:
        self.accepted.inc()
        self.seconds.observe(seconds)

    def on_acknowledged(self, *, seconds: float, **kwargs: Any) -> None:
        self.delivery.observe(seconds)

    def on_refused(self, *, error: RequestError, **kwargs: Any) -> None:
        self.refused.labels(reason=error.reason).inc()
        if isinstance(error, NonceStoreUnavailable):
            self.nonce_errors.inc()


@functools.cache
def _counters() -> _Counters:
    """Return what this process counts. Made at the first request, because prometheus_client then writes to PROMETHEUS_MULTIPROC_DIR."""
    return _Counters()


def _on_accepted(**arguments: Any) -> None:
    _counters().on_accepted(**arguments)


def _on_refused(**arguments: Any) -> None:
    _counters().on_refused(**arguments)


def _on_acknowledged(**arguments: Any) -> None:
    _counters().on_acknowledged(**arguments)


def is_installed() -> bool:
    """Return True if the extra ``metrics`` is installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return False
    return True


def connect() -> None:
    """Count from now on if ``AMESH["METRICS"]`` is True, or else stop. Without valid settings and the extra, nothing is counted."""
    request_accepted.disconnect(dispatch_uid=_UID)
    request_refused.disconnect(dispatch_uid=_UID)
    changes_acknowledged.disconnect(dispatch_uid=_UID)
    # Not amesh_settings(), which keeps what it reads: this is called before a project may be ready for that.
    if problems() or not getattr(django_settings, "AMESH", {}).get("METRICS") or not is_installed():
        return
    request_accepted.connect(_on_accepted, dispatch_uid=_UID, weak=False)
    request_refused.connect(_on_refused, dispatch_uid=_UID, weak=False)
    changes_acknowledged.connect(_on_acknowledged, dispatch_uid=_UID, weak=False)


class _State:
    """The allow list, as this process sees it now."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        try:
            snapshot, limit = current_list().snapshot(), controller_limit()
            unsealed = unsealed_seconds(timezone.now())
        except (AmeshError, DatabaseError, InterfaceError):
            yield GaugeMetricFamily("amesh_seal_ok", _SEAL_OK, value=0)
            return
        devices = list(snapshot.by_key.values())  # another thread may add some
        yield GaugeMetricFamily("amesh_seal_ok", _SEAL_OK, value=1)
        revision = snapshot.row.revision if snapshot.row is not None else 0
        yield GaugeMetricFamily("amesh_list_revision", "Revision of the allow list.", value=revision)
        by_state = GaugeMetricFamily("amesh_devices", "Devices in the allow list, by state.", labels=["state"])
        now = time.time()
        states = Counter(device.state(now) for device in devices)
        for state in STATES:
            by_state.add_metric([state], states[state])
        yield by_state
        controllers = sum(device.counted_controller for device in devices)
        yield GaugeMetricFamily("amesh_controllers", "Controllers that are trusted.", value=controllers)
        yield GaugeMetricFamily("amesh_controllers_limit", "Controllers that may be trusted.", value=limit)
        yield GaugeMetricFamily("amesh_audit_unsealed_seconds", _UNSEALED, value=unsealed)


class _Fleet:
    """What this hub knows of its servers, and this server of its hubs."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        try:
            servers, age = overview.every(), sweeping.seconds_since()
            hubs = [hub.seconds for hub in overview.hubs() if hub.permissions and hub.seconds is not None]
        except (AmeshError, DatabaseError, InterfaceError):
            return  # amesh_seal_ok says so
        by_state = GaugeMetricFamily("amesh_fleet_servers", "Servers of this hub, by state.", labels=["state"])
        states = Counter(one.state for one in servers)
        for state in overview.STATES:
            by_state.add_metric([state], states[state])
        yield by_state
        dirty = [one for one in servers if one.revisions and one.state != "paused"]
        yield GaugeMetricFamily("amesh_fleet_dirty_servers", _DIRTY, value=len(dirty))
        oldest = max((one.seconds or 0.0 for one in dirty), default=0.0)
        yield GaugeMetricFamily("amesh_fleet_undelivered_seconds", _OLDEST, value=oldest)
        yield GaugeMetricFamily("amesh_fleet_sweep_age_seconds", _SWEEP, value=age)
        yield GaugeMetricFamily("amesh_fleet_hub_silent_seconds", _HUB, value=max(hubs, default=None))


def page() -> tuple[bytes, str]:
    """Return the metrics in the text format of Prometheus, and its content type.

    Raises:
        ImportError: the extra ``metrics`` is not installed.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    counters = _counters()
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        for collector in (
            counters.accepted,
            counters.refused,
            counters.nonce_errors,
            counters.seconds,
            counters.delivery,
        ):
            registry.register(collector)
    registry.register(_State())
    registry.register(_Fleet())
    return generate_latest(registry), CONTENT_TYPE_LATEST

"""The reports for operators: ``/health`` and ``/metrics``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from .exchange.base import Unavailable
from .hub.hub import Hub

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"

#: Name in ``Hub.counts``, name of the metric, help text.
_COUNTERS: Final = (
    ("connections", "amesh_relay_connections_opened", "Connections that were accepted."),
    ("sessions", "amesh_relay_sessions_opened", "Targets that began to wait for a controller."),
    ("pairings", "amesh_relay_pairings", "Targets and controllers that were matched by this process."),
    ("finished", "amesh_relay_pairings_finished", "Pairings that one side reported as done."),
    ("expired", "amesh_relay_sessions_expired", "Sessions that took too long, counted once per side."),
    ("watches", "amesh_relay_watches", "Watches for a bootstrap token, including renewals."),
    ("bootstraps", "amesh_relay_bootstraps", "Targets that were matched with the watcher of their bootstrap token."),
)


class Report(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes


async def health(hub: Hub) -> Report:
    """Return ``{"status":"ok","sessions":N}``, or 503 if Redis cannot be reached, so that load balancers use other processes."""
    try:
        return _json(200, {"status": "ok", "sessions": await hub.exchange.sessions()})
    except Unavailable:
        return _json(503, {"status": "unavailable", "sessions": len(_in_session(hub))})


async def metrics(hub: Hub) -> Report:
    """Return the metrics of this process for Prometheus, which must scrape every process of a relay."""
    try:  # here, because the extra `metrics` is optional
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
    except ImportError:
        return Report(
            404, _TEXT, b"Metrics are not installed. Run: pip install 'amesh-django[metrics]', and restart the relay.\n"
        )

    try:
        sessions = await hub.exchange.sessions()
    except Unavailable:  # the graph shows a gap
        sessions = None

    class Collector:
        def collect(self) -> Iterator[Metric]:
            counts = hub.counts
            yield GaugeMetricFamily("amesh_relay_connections", "Current connections.", value=len(hub.sockets))
            yield GaugeMetricFamily(
                "amesh_relay_sides", "Current sides of sessions at this process.", value=len(_in_session(hub))
            )
            if sessions is not None:
                yield GaugeMetricFamily(
                    "amesh_relay_sessions", "Current sessions of all processes together.", value=sessions
                )
            for name, metric, meaning in _COUNTERS:
                yield CounterMetricFamily(metric, meaning, value=counts[name])
            for prefix, metric, meaning in (
                (
                    "refused:",
                    "amesh_relay_refusals",
                    "Messages and connections that were rejected, by error code.",
                ),
                ("closed:", "amesh_relay_closes", "Connections that the relay closed, by WebSocket code."),
            ):
                family = CounterMetricFamily(metric, meaning, labels=["code"])
                for name in [name for name in counts if name.startswith(prefix)]:
                    family.add_metric([name.removeprefix(prefix)], counts[name])
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return Report(200, CONTENT_TYPE_LATEST, generate_latest(registry))


def _in_session(hub: Hub) -> list[int]:
    return [number for number, socket in hub.sockets.items() if socket.session is not None]


def _json(status: int, value: dict[str, str | int]) -> Report:
    return Report(status, _JSON, json.dumps(value, separators=(",", ":")).encode())

"""What operators see of a relay: ``/health`` and ``/metrics``."""

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

#: Name in the counts of a hub, name of the metric, what it is.
_COUNTERS: Final = (
    ("connections", "amesh_relay_connections_opened", "Connections that were let in."),
    ("sessions", "amesh_relay_sessions_opened", "Targets that began to wait for somebody with their code."),
    ("pairings", "amesh_relay_pairings", "Targets and controllers that were brought together here."),
    ("finished", "amesh_relay_pairings_finished", "Pairings that a side said to be done."),
    ("expired", "amesh_relay_sessions_expired", "Sessions whose time was up, counted at each side."),
    ("watches", "amesh_relay_watches", "Watches for a bootstrap token, renewals among them."),
    ("bootstraps", "amesh_relay_bootstraps", "Targets whose bootstrap token was brought to its watcher."),
)


class Report(NamedTuple):
    """An answer to HTTP."""

    status: int
    content_type: str
    body: bytes


async def health(hub: Hub) -> Report:
    """``{"status":"ok","sessions":N}``; 503 while the exchange can't be reached, so that a load balancer goes elsewhere."""
    try:
        return _json(200, {"status": "ok", "sessions": await hub.exchange.sessions()})
    except Unavailable:
        return _json(503, {"status": "unavailable", "sessions": len(_in_session(hub))})


async def metrics(hub: Hub) -> Report:
    """What this process has done, for Prometheus. Each process of a relay has its own: all of them are to be scraped."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
    except ImportError:
        return Report(
            404, _TEXT, b"No metrics. To have them: pip install 'amesh-django[metrics]', then restart the relay.\n"
        )

    try:
        sessions = await hub.exchange.sessions()
    except Unavailable:  # a gap in the graph is the truth
        sessions = None

    class Collector:
        def collect(self) -> Iterator[Metric]:
            counts = hub.counts
            yield GaugeMetricFamily("amesh_relay_connections", "Connections now.", value=len(hub.sockets))
            yield GaugeMetricFamily("amesh_relay_sides", "Sides of sessions now, here.", value=len(_in_session(hub)))
            if sessions is not None:
                yield GaugeMetricFamily(
                    "amesh_relay_sessions", "Sessions now, of all processes together.", value=sessions
                )
            for name, metric, meaning in _COUNTERS:
                yield CounterMetricFamily(metric, meaning, value=counts[name])
            for prefix, metric, meaning in (
                (
                    "refused:",
                    "amesh_relay_refusals",
                    "Messages and connections that were refused, by what the client was told.",
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

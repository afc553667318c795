"""What deploy/ ships for Prometheus and Grafana: a real Prometheus loads the rules and answers each query."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import services
from tests.verification.wire import World, signed

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.unversioned]

DEPLOY = services.ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "amesh.json"

#: Metrics that have no value yet: no such error has happened, and this is neither a hub nor a server of one.
MISSING = {"amesh_nonce_store_errors_total", "amesh_fleet_sweep_age_seconds", "amesh_fleet_hub_silent_seconds"}

CONFIGURATION = """
global:
  scrape_interval: 250ms
  evaluation_interval: 250ms
rule_files: [{rules}]
scrape_configs:
  - job_name: amesh
    metrics_path: /amesh/metrics
    static_configs:
      - targets: ["{target}"]
"""


def queries() -> list[str]:
    """The queries of the dashboard, with its variables replaced as Grafana does."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for text in found]


def metric_names(query: str) -> set[str]:
    return set(re.findall(r"\bamesh_\w+", query))


def eventually(question: Callable[[], Any], seconds: float = 20) -> Any:
    """Ask until the answer is not empty."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "the answer stayed empty"
        time.sleep(0.1)
    return answer


def test_prometheus_loads_the_rules_and_answers_the_dashboard(
    world: World, redis: services.Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    prometheus = services.program("prometheus", package="prometheus")
    more = {"TEST_REDIS_URL": redis.url, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with world.serve("gunicorn", **more) as server:
        signed(server, world.laptop, "GET", "/decorator/sync")
        signed(server, world.stranger, "GET", "/decorator/sync")
        configuration = tmp_path / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(rules=RULES, target=server.url.removeprefix("http://")))
        argv = [
            str(prometheus),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address={services.HOST}:{{port}}",
        ]
        with services.serve(argv) as running, httpx.Client(base_url=running.url, trust_env=False) as api:

            def data(path: str, **parameters: str) -> Any:
                answer = api.get(f"/api/v1/{path}", params=parameters)
                assert answer.status_code == 200, f"{parameters}: {answer.text}"
                return answer.json()["data"]

            def firing() -> set[str]:
                return {
                    alert["labels"]["alertname"] for alert in data("alerts")["alerts"] if alert["state"] == "firing"
                }

            eventually(lambda: data("query", query="amesh_seal_ok")["result"])
            known = set(data("label/__name__/values"))
            rules = [rule["query"] for group in data("rules")["groups"] for rule in group["rules"]]
            assert len(rules) == RULES.read_text().count("- alert:")
            for query in (*rules, *queries()):
                data("query", query=query)
                assert metric_names(query) <= known | MISSING, query
            assert data("query", query=queries()[0])["result"][0]["value"][1] == "1"
            assert firing() == set()
            world.sql("UPDATE amesh_device SET friendly_name = 'other'")
            assert eventually(firing) == {"AmeshSealBroken"}

"""jobs/prometheus-rules.yaml and the queries of jobs/grafana-jobs.json, as Prometheus itself reads and evaluates them."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml
from conftest import REPOSITORY

JOBS = REPOSITORY / "jobs"
OF_GRAFANA = {"$__rate_interval": "5m", "$dataset": ".*"}


def promtool(*arguments: object) -> None:
    """Run it; its own words are the test's."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip(
            "promtool is not installed: it comes with Prometheus (apt-get install prometheus)"
        )
    call = [program, *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_else_not():
    """On wrong clocks, on counters of earlier nights, on what is there for one scrape."""
    promtool("check", "rules", JOBS / "prometheus-rules.yaml")
    promtool("test", "rules", JOBS / "prometheus-rules.test.yaml")


def test_each_alert_is_tested_both_ways():
    rules = yaml.safe_load((JOBS / "prometheus-rules.yaml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((JOBS / "prometheus-rules.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} == names


def test_the_queries_of_the_dashboards_are_promql(tmp_path):
    queries = []
    for name in ("grafana-jobs.json", "grafana.json"):
        panels = json.loads((JOBS / name).read_text())["panels"]
        queries += [target["expr"] for panel in panels for target in panel.get("targets", ())]
    rules = []
    for number, query in enumerate(queries):
        for variable, value in OF_GRAFANA.items():
            query = query.replace(variable, value)
        rules.append({"record": f"query_{number}", "expr": query})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    promtool("check", "rules", file)

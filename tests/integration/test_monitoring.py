"""What a job shows while it runs on Ray: its actors in `_status.json`, and its metrics on Ray's endpoint."""

from __future__ import annotations

import re
import urllib.request

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from conftest import REPOSITORY
from online_service import until
from prometheus_client.parser import text_string_to_metric_families

from pipelines import run_corpus
from pipelines.corpus import status as job_status
from pipelines.corpus.status import JobStatus

OF_PROMETHEUS = {"task", "output", "reason"}


def scraped(output):
    """The samples of a job's metrics on the endpoint of the head: {(name, reason): value}."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(address, timeout=60).read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_modernbert_job_") and sample.labels["output"] == output:
                assert sample.labels["task"] == "classify"
                found[sample.name, sample.labels.get("reason")] = sample.value
    return found


@pytest.mark.slow
def test_what_a_run_emits_is_what_dashboard_and_alerts_read(
    tmp_path, checkpoint, local_ray, monkeypatch
):
    monkeypatch.setattr(job_status, "WRITTEN_EVERY_S", 0.1)
    seen = []
    record = JobStatus.now

    def now(self):
        seen.append(record(self))
        return seen[-1]

    monkeypatch.setattr(JobStatus, "now", now)
    (tmp_path / "in").mkdir()
    table = pa.table({"text": ["the cat sat"] * 49 + [None]})
    for number in range(4):
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1 not at all PAR1")
    output = str(tmp_path / "out")
    # A process may run several jobs: each counts its own rows once.
    first = {"input": str(tmp_path / "in" / "0.parquet"), "output": str(tmp_path / "first")}
    run_corpus("classify", model=str(checkpoint), **first)
    seen.clear()
    done = run_corpus(
        "classify",
        input=str(tmp_path / "in"),
        output=output,
        model=str(checkpoint),
        rows_per_file=50,
        actors="1",
    )
    assert (1, (1, 1)) in {(status.actors, status.actors_wanted) for status in seen}
    last = seen[-1]
    assert (last.state, last.rows, last.commits) == ("failed", 200, 4)
    until(lambda: ("ray_modernbert_job_commits_total", None) in scraped(output))
    until(lambda: scraped(output)["ray_modernbert_job_running", None] == 0)
    found = scraped(output)
    assert found.pop(("ray_modernbert_job_last_commit_timestamp_seconds", None)) > 1.7e9
    # Ray 2.60 counts once for each time that a process has joined a Ray, as that of other tests has.
    times_joined, rest = divmod(found["ray_modernbert_job_commits_total", None], 4)
    assert (times_joined >= 1, rest) == (True, 0)
    for name, reason in found:
        if name.endswith("_total"):
            found[name, reason] /= times_joined
    assert found == {
        ("ray_modernbert_job_rows_total", None): 200,
        ("ray_modernbert_job_tokens_total", None): done.tokens,
        ("ray_modernbert_job_commits_total", None): 4,
        ("ray_modernbert_job_failures_total", None): 1,
        ("ray_modernbert_job_rejected_rows_total", "text is null"): 4,
        ("ray_modernbert_job_rows_todo", None): 200,
        ("ray_modernbert_job_running", None): 0,
        ("ray_modernbert_job_lease_lost", None): 0,
    }

    emitted = {name for name, _ in found} | {"ray_modernbert_job_last_commit_timestamp_seconds"}
    dashboard = (REPOSITORY / "jobs/grafana-jobs.json").read_text()
    rules = (REPOSITORY / "jobs/prometheus-rules.yaml").read_text()
    shown = set(re.findall(r"\bray_modernbert_job_\w+", dashboard))
    alerted = set(re.findall(r"\bray_modernbert_job_\w+", rules))
    assert shown | alerted == emitted
    for group in yaml.safe_load(rules)["groups"]:
        for rule in group["rules"]:
            by = re.findall(r"by \(([\w, ]+)\)", rule["expr"])
            labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
            assert labels <= OF_PROMETHEUS
            assert all(labels <= set(names.split(", ")) for names in by)

"""What a job shows while it runs on Ray: its actors in `_status.json`, and its metrics on Ray's endpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from conftest import REPOSITORY
from online_service import until
from prometheus_client.parser import text_string_to_metric_families

from pipelines import pipeline

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


def texts_of_two_labels(checkpoint):
    """Two texts that a classifier answers with different labels."""
    texts = [f"the cat sat {number}" for number in range(50)]
    labels = [answer["label"] for answer in pipeline("classify", str(checkpoint))(texts)]
    other = next(number for number, label in enumerate(labels) if label != labels[0])
    return texts[0], texts[other]


RUN = """
import json, sys
from pathlib import Path
from pipelines import run_corpus
from pipelines.corpus import status as job_status
from pipelines.corpus.status import JobStatus

folder, checkpoint = sys.argv[1:]
job_status.WRITTEN_EVERY_S = 0.1
seen = []
record = JobStatus.now


def now(self):
    seen.append(record(self))
    return seen[-1]


JobStatus.now = now

def run():
    source, output = f"{folder}/in", f"{folder}/out"
    return run_corpus(
        "classify", input=source, output=output, model=checkpoint, rows_per_file=50, actors="1"
    )


# A process may run several jobs: each counts its own rows once.
first = run()
seen.clear()
for file in Path(folder, "later").iterdir():
    file.rename(Path(folder, "in", file.name))
done = run()
actors = [[status.actors, status.actors_wanted] for status in seen]
last = seen[-1]
tokens = first.tokens + done.tokens
print(json.dumps([actors, [last.state, last.rows, last.commits], last.drift, tokens]))
"""
"""Two jobs in a process of their own: Ray 2.60 counts what a process reports once for each time that it has joined."""


@pytest.mark.slow
def test_what_a_run_emits_is_what_dashboard_and_alerts_read(
    tmp_path, checkpoint, ray_head, local_ray
):
    (tmp_path / "in").mkdir()
    first, second = texts_of_two_labels(checkpoint)
    (tmp_path / "later").mkdir()
    for number in range(4):
        table = pa.table({"text": [second if number else first] * 49 + [None]})
        folder = "later" if number else "in"
        pq.write_table(table, tmp_path / folder / f"{number}.parquet")
    (tmp_path / "later" / "broken.parquet").write_bytes(b"PAR1 not at all PAR1")
    output = str(tmp_path / "out")
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), str(checkpoint)],
        env=ray_head.environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    actors, last, drift, tokens = json.loads(ran.stdout.splitlines()[-1])
    assert [1, [1, 1]] in actors
    assert last == ["failed", 150, 3]
    assert drift == 1.0  # all labels are others
    expected = {
        ("ray_modernbert_job_rows_total", None): 200,
        ("ray_modernbert_job_tokens_total", None): tokens,
        ("ray_modernbert_job_commits_total", None): 4,
        ("ray_modernbert_job_failures_total", None): 1,
        ("ray_modernbert_job_rejected_rows_total", "text is null"): 4,
        ("ray_modernbert_job_rows_todo", None): 150,
        ("ray_modernbert_job_rows_done", None): 150,
        ("ray_modernbert_job_drift", None): 1,
        ("ray_modernbert_job_running", None): 0,
        ("ray_modernbert_job_lease_lost", None): 0,
    }
    time_of_commit = ("ray_modernbert_job_last_commit_timestamp_seconds", None)
    until(lambda: set(scraped(output)) == {*expected, time_of_commit})
    until(lambda: scraped(output)["ray_modernbert_job_running", None] == 0)
    found = scraped(output)
    assert found.pop(time_of_commit) > 1.7e9
    assert found == expected

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

"""benchmarks/scale.py at a size for two cores: actors of several nodes stay busy, and a shard costs the driver little.

The whole sizes, 32 actors and 100,000 shards, are in benchmarks/results; they take minutes and a machine of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HEAD_ENVIRONMENT, REPOSITORY

pytestmark = pytest.mark.slow


def benchmark(folder: Path, *arguments: object) -> dict:
    command = [sys.executable, "benchmarks/scale.py", *map(str, arguments), "--out", str(folder / "out.json")]
    done = subprocess.run(command, cwd=REPOSITORY, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def test_actors_of_several_nodes_stay_busy(tmp_path):
    figures = benchmark(tmp_path, "busy", "--nodes", 2, "--gpus", 2, "--seconds", 6, "--shards-each", 6)
    assert (figures["actors"], figures["shards"]) == (4, 24)
    assert figures["busy"] > 0.9  # the other tests share these cores; alone it is 0.97 and more


def test_a_hundred_thousand_shards_fit_a_driver(tmp_path):
    figures = benchmark(tmp_path, "shards", "--shards", 4000)
    assert figures["shards"] == 4000
    streaming = figures["streaming"]
    grown = streaming["driver_rss_mb"] - streaming["driver_rss_mb_before"]
    base = 60  # what Ray Data takes for itself, whatever the number of shards
    assert streaming["driver_rss_mb_before"] + (grown - base) * 25 < 1000, streaming

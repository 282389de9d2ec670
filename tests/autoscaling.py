"""Heads on this machine whose clusters grow: Ray's provider of pretended nodes starts a raylet for each node."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import HEAD_ENVIRONMENT, RAY, free_port, kill_tree


@contextmanager
def autoscaling_head(most_gpus: int, idle_s: float) -> Iterator[str]:
    """A head without GPUs that starts from 0 to `most_gpus` nodes with one each, and its address.

    A node ends when it has had nothing to do for `idle_s`.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's socket paths must be short
    port = free_port()
    provider = {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    provider |= {"use_node_id_as_ip": True, "gcs_address": f"127.0.0.1:{port}"}
    worker = {"CPU": 2, "GPU": 1, "object_store_memory": 150 << 20}
    lists = [
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
        "initialization_commands",
        "setup_commands",
    ]
    lists += [
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ]
    config = {
        "cluster_name": "pretended",
        "provider": provider,
        "max_workers": most_gpus,
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": worker,
                "node_config": {},
                "min_workers": 0,
                "max_workers": most_gpus,
            },
        },
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{name: [] for name in lists},
        "file_mounts_sync_continuously": False,
    }
    file = Path(folder, "autoscaling.json")
    file.write_text(json.dumps(config))
    options = ["--head", "--block", "--num-cpus=0", "--num-gpus=0", f"--port={port}"]
    options += [
        f"--temp-dir={folder}",
        "--include-dashboard=false",
        f"--ray-client-server-port={free_port()}",
    ]
    options += [f"--dashboard-agent-listen-port={free_port()}", f"--autoscaling-config={file}"]
    options += ["--object-store-memory=200000000"]
    env = HEAD_ENVIRONMENT | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    log = Path(folder, "head.log")
    with open(log, "w") as output:
        head = subprocess.Popen(
            [*RAY, "start", *options],
            env=env,
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(60):
            assert head.poll() is None, log.read_text()
            if "Ray runtime started" in log.read_text():
                break
            time.sleep(1)
        yield f"127.0.0.1:{port}"
    finally:
        kill_tree(head)  # on SIGTERM it takes 30 s
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)

"""cluster.yaml against the schema of Ray's own cluster launcher."""

from __future__ import annotations

import yaml
from conftest import REPOSITORY
from ray.autoscaler._private.util import prepare_config, validate_config


def test_the_cluster_launcher_accepts_it():
    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()) | {"cluster_synced_files": []})
    validate_config(config)
    assert config["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1
    assert any("constraints.txt" in command for command in config["setup_commands"])

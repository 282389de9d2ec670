"""cluster.yaml and jobs/cluster.local.yaml against the schema of Ray's own cluster launcher, and what Ray uploads."""

from __future__ import annotations

from typing import Any
from zipfile import ZipFile

import yaml
from conftest import REPOSITORY
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.autoscaler._private.util import prepare_config, validate_config


def prepared(text: str) -> dict[str, Any]:
    """A cluster file with the defaults of its provider, accepted by the launcher."""
    config = prepare_config(yaml.safe_load(text) | {"cluster_synced_files": []})
    validate_config(config)
    return config


def test_the_cluster_launcher_accepts_it():
    config = prepared((REPOSITORY / "cluster.yaml").read_text())
    head, worker = (config["available_node_types"][name] for name in ("head", "gpu_worker"))
    assert (head["resources"]["CPU"], worker["resources"]["GPU"]) == (0, 1)
    assert worker["node_config"]["IamInstanceProfile"] == head["node_config"]["IamInstanceProfile"]
    assert config["docker"]["image"].endswith("-cuda")
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert config[commands][-1].startswith("ulimit -n 65536;"), commands


def test_the_cluster_launcher_accepts_it_without_an_image():
    """The other way, which the file has as comments."""
    text = (REPOSITORY / "cluster.yaml").read_text()
    _, _, comments = text.partition("# file_mounts:")
    other = yaml.safe_load(
        "\n".join(line.removeprefix("# ") for line in f"# file_mounts:{comments}".splitlines())
    )
    config = yaml.safe_load(text)
    del config["docker"], config["initialization_commands"]
    config = prepared(yaml.safe_dump(config | other))
    assert list(config["file_mounts"]) == ["~/modernbert-ray"]
    assert any("constraints.txt" in command for command in config["setup_commands"])


def test_the_cluster_launcher_accepts_machines_of_ones_own():
    config = prepared((REPOSITORY / "jobs/cluster.local.yaml").read_text())
    (node,) = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert config[commands][-1].startswith("ulimit -n $(ulimit -Hn);"), commands


def test_what_a_submitted_job_uploads_is_small(tmp_path):
    """`--working-dir .`: the code and the demos, without tests, measurements, environments and earlier outputs."""

    def upload(folder: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(folder, tmp_path / "package.zip", include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed(
        {"working_dir": str(REPOSITORY)}, include_gitignore=True, upload_fn=upload
    )
    with ZipFile(tmp_path / "package.zip") as package:
        sizes = {entry.filename: entry.file_size for entry in package.infolist()}
    assert {name.partition("/")[0] for name in sizes if "/" in name} <= {
        "jobs",
        "modernbert",
        "pipelines",
    }
    assert {
        "pipelines/report/report.html.j2",
        "jobs/demo/intent-classifier/model.safetensors",
    } <= sizes.keys()
    assert sum(sizes.values()) < 20e6

"""Fixtures: random checkpoints, made once a session, and one local Ray."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Workers of Ray import what tests/ holds, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
for name in [name for name in os.environ if name.startswith("MODERNBERT_") or name == "RAY_ADDRESS"]:
    del os.environ[name]

import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer

REPOSITORY = Path(__file__).parents[1]
torch.set_num_threads(1)


def readme_block(marker: str) -> str:
    """The README's code block that follows <!-- marker -->."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert found, marker
    return found[1]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hot tiny classifier with five labels and a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, id2label={i: f"label-{i}" for i in range(5)}, label2id={f"label-{i}": i for i in range(5)})
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def local_ray():
    """One Ray on this machine for all tests that run a pipeline in process."""
    import ray

    from pipelines.corpus.cluster import cluster_resources

    os.environ["RAY_ADDRESS"] = "local"
    cluster_resources()
    yield
    ray.shutdown()
    del os.environ["RAY_ADDRESS"]

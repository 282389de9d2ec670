"""Fixtures: random checkpoints, made once a session, and the Ray that tests share."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Workers of Ray import what tests/ holds, too.
import_paths = [str(Path(__file__).parent)]
if "PYTHONPATH" in os.environ:
    import_paths.append(os.environ["PYTHONPATH"])
os.environ["PYTHONPATH"] = os.pathsep.join(import_paths)
for name in list(os.environ):
    if name.startswith("MODERNBERT_"):
        del os.environ[name]
os.environ["RAY_ADDRESS"] = "local"  # no test joins a Ray that happens to run here
# A process that has started a Ray with a token can join none without.
os.environ["RAY_AUTH_MODE"] = "disabled"


def runs(name: str, *, few: int, many: int) -> int:
    """How often a random test runs: what the environment variable `name` says, else `many` in the soak, else `few`."""
    return int(os.environ.get(name, many if SOAK else few))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Where two tests share the cores, a worker of Ray often waits for more than a second between its tasks. Ray would end
# it and start another one, with all its imports, which doubles what a small job costs. Nor is the use of Ray reported,
# nor what each of its processes takes, which nobody looks at. HAProxy's figures have a port for each worker of xdist.
# Where others use the cores, too, Ray's processes may take longer for their start than the half minute that Ray waits.
LEAN_RAY = {
    "RAY_gcs_server_port_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # As `modernbert-ray serve` sets it.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
        "pipelines.serve.http.upgrades:pass_over_upgrades"
    ),
    "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
}
os.environ.update(LEAN_RAY)

import psutil
import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer
from durations import Durations

REPOSITORY = Path(__file__).parents[1]
SOAK = bool(os.environ.get("SOAK"))
"""Whether .ci/soak runs the tests: all cases, and many random runs."""
collect_ignore = ["clients"]  # they need an environment of their own: tests/clients/run.py
torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels then run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--durations-json",
        type=Path,
        metavar="FILE",
        help="write what each test file takes, and name those above their budget in tests/durations.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    if target := config.getoption("--durations-json"):
        config.pluginmanager.register(Durations(config.invocation_params.dir / target))


SECOND_HEAD = {
    "test_kills.py",
    "test_deadly_documents.py",
    "test_broken_actors.py",
    "test_job_submit.py",
    "test_offline_online.py",
    "test_shared_clusters.py",
}
"""The files with a head of their own: they end its workers, or start another Ray beside it and take long."""


@cache
def group_of(file: Path) -> str:
    """Name what one worker of xdist runs one after the other: those files that share a head, else each file by itself.

    The two heads' files come first, and beside them what mostly waits for a Ray of its own. An idle head takes a tenth
    of a core: it ends with its last file.
    """
    if not re.search(r"\b(ray_head|local_ray)\b", file.read_text(encoding="utf-8")):
        return str(file)
    return "second head" if file.name in SECOND_HEAD else "head"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {"second head": 0, "head": 1}
    items.sort(key=lambda item: places.get(group_of(item.path), 2))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # in the order above, not by the number of tests
    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # collections of the tests' own garbage then leave the modules out
    # What users have; sitecustomize.py sets more while modules are imported.
    gc.set_threshold(700, 10, 10)
    # A worker of xdist has it from sitecustomize.py: nanobind would report leaks.
    atexit.unregister(gc.freeze)
    atexit.register(gc.unfreeze)


def readme_block(marker: str, file: str = "README.md") -> str:
    """The code block of a README that follows <!-- marker -->."""
    text = (REPOSITORY / file).read_text()
    block = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert block, marker
    return block[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hot tiny classifier with five labels and a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    labels = {i: f"label-{i}" for i in range(5)}
    label_ids = {label: i for i, label in labels.items()}
    write_checkpoint(folder, id2label=labels, label2id=label_ids)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def local_ray(ray_head: RayHead) -> Iterator[None]:
    """This process as a driver of the head, for the tests of a file that run a pipeline in process."""
    with joined_ray(ray_head):
        yield


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run their stages in this process, without Ray, whose processes take seconds for their imports."""
    from commands import without_ray

    without_ray(monkeypatch)


@contextmanager
def own_ray(address: str = "local", **options: Any) -> Iterator[None]:
    """A Ray of this process, or the one at `address`, in place of one that an earlier test may have started.

    One that starts here goes without what no test of it looks at: the autoscaler and the processes that collect the
    workers' lines and serve the dashboard, each of which imports for a second.
    """
    import ray
    from ray._private.node import Node

    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for start in ("start_monitor", "start_log_monitor", "start_api_server"):
            patch.setattr(Node, start, lambda *_, **__: None)
        ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    yield
    ray.shutdown()


@contextmanager
def joined_ray(head: RayHead, **options: Any) -> Iterator[None]:
    """This process as a driver of a head; its jobs have one actor each where they do not say otherwise."""
    with own_ray(head.address, **options), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODERNBERT_ACTORS", "1")
        yield


RAY = [str(Path(sys.executable).with_name("ray"))]
HEAD_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("RAY_")
} | {
    **LEAN_RAY,
    "RAY_AUTH_MODE": "disabled",  # a token file on the machine would switch it on
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


class RayHead(NamedTuple):
    """The addresses of a head: of Ray, and of its dashboard, which takes jobs."""

    address: str
    dashboard: str
    process: subprocess.Popen

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands whose jobs join the head."""
        return HEAD_ENVIRONMENT | {"RAY_ADDRESS": self.address}


_shared: list[RayHead] = []  # none or one
_ends_shared = ExitStack()


@pytest.fixture(scope="module")
def ray_head() -> RayHead:
    """One head for all tests that need no Ray of their own."""
    if not _shared:
        _shared.append(_ends_shared.enter_context(own_head(cpus=2)))
    return _shared[0]


def end_shared_head() -> None:
    """End the head of all tests. A job in this process may have joined it, and Ray ends a driver that loses its head."""
    if _shared:
        import ray

        ray.shutdown()
    _shared.clear()
    _ends_shared.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if group_of(item.path) == str(item.path):
        end_shared_head()


def pytest_sessionfinish() -> None:
    end_shared_head()


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started, as far as they still run."""
    try:
        first = psutil.Process(process.pid)
        tree = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in tree:
        with suppress(psutil.NoSuchProcess):
            each.kill()


@contextmanager
def own_head(cpus: int) -> Iterator[RayHead]:
    """A head with `cpus` CPUs, which ends with the block, as do the raylets that have joined it."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's socket paths must be short
    port, dashboard = free_port(), free_port()
    # Ports of its own: another Ray on this machine may hold the usual ones.
    ports = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
    }
    options = [f"--{name}={value}" for name, value in ports.items()]
    options += ["--head", "--block", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    options += ["--include-dashboard=true"]  # it takes jobs
    options += ["--include-log-monitor=false"]  # nobody reads the workers' lines
    log = Path(folder, "start.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*RAY, "start", *options],
            env=HEAD_ENVIRONMENT, start_new_session=True, stdout=output, stderr=output,
        )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(1)
        else:
            pytest.fail("the job server did not answer")
        yield RayHead(f"127.0.0.1:{port}", address, process)
    finally:
        kill_tree(process)  # on SIGTERM it takes 30 s; a test may have killed it
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)

"""`ray up`, `ray job submit` and `ray down` with jobs/cluster.local.yaml: two machines, by ssh, as a user has them.

Each machine is a set of namespaces of this one (network, processes, mounts) with an ssh server. `ray stop`, which the
launcher runs on machines, ends every Ray that it sees: there it sees none but the machine's own. Whatever is left of a
machine ends with its first process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HEAD_ENVIRONMENT, RAY, REPOSITORY

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
RECONNECT_S = 10  # after which a worker without a head ends; 60 is what Ray has
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
MISSING = [
    name
    for name in ("ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv")
    if not shutil.which(name)
]


T = TypeVar("T")


class Machine(NamedTuple):
    """A machine of the test, by the id of its first process, and a folder for what a user's machine keeps of it."""

    pid: int
    folder: Path

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine's network, as a user beside it: it sees none of the machine's processes."""
        call = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]
        environment = HEAD_ENVIRONMENT | dict.fromkeys(("RAY_TMPDIR", "TMPDIR"), str(self.folder))
        return subprocess.run(
            call, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout
        )

    def ray_processes(self) -> list[str]:
        """The command lines of Ray's processes on the machine."""
        spaces = [
            f"--{option}=/proc/{self.pid}/ns/{name}"
            for option, name in (("pid", "pid"), ("mount", "mnt"))
        ]
        listed = subprocess.run(
            ["nsenter", *spaces, "--", "ps", "-eo", "args"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [
            line
            for line in listed.stdout.splitlines()
            if re.search(r"raylet|gcs_server|^ray::|ray/dashboard", line)
        ]


@contextmanager
def machine(folder: Path, address: str, key: Path) -> Iterator[Machine]:
    """A machine that is reached by ssh with a key, once its network has a cable."""
    disk, config = folder / f"disk-{address}", folder / f"sshd-{address}"
    disk.mkdir()
    config.write_text(f"""
        HostKey {key}
        AuthorizedKeysFile {key}.pub
        PidFile none
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin yes
        SetEnv RAY_AUTH_MODE=disabled RAY_gcs_rpc_server_reconnect_timeout_s={RECONNECT_S} AUTOSCALER_UPDATE_INTERVAL_S=1
    """)
    home = Path.home()  # a layer of the machine's own lies over it: Ray writes there
    script = f"""
        set -e
        mount -t tmpfs tmpfs {disk} && mkdir {disk}/upper {disk}/work
        mount -t overlay overlay -o lowerdir={home},upperdir={disk}/upper,workdir={disk}/work {home}
        mount -t tmpfs tmpfs /tmp/ray
        ip link set lo up
        exec {SSHD} -D -e -f {config}
    """
    enter = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
    ]  # a machine ends with this process, however that ends
    enter += ["--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
    with (folder / f"log-{address}").open("w") as log:
        process = subprocess.Popen([*enter, "bash", "-c", script], stdout=log, stderr=log)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        first, listening = [], False
        for _ in range(100):
            first, listening = (
                children.read_text().split(),
                "listening" in (folder / f"log-{address}").read_text(),
            )
            if first and listening:
                break
            time.sleep(0.1)
        assert listening, (folder / f"log-{address}").read_text()
        yield Machine(int(first[0]), folder)
    finally:
        process.kill()  # and so, by --kill-child, all that runs in the machine
        process.wait(30)


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[tuple[Machine, Machine, Path]]:
    """A head and a worker with a cable between them, and the key that opens both."""
    if MISSING or not SSHD:
        pytest.skip(
            f"missing: {', '.join([*MISSING, *([] if SSHD else ['sshd'])])} (Debian: openssh-server rsync)"
        )
    may = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"]
    if os.geteuid() or subprocess.run(may, capture_output=True).returncode:
        pytest.skip("namespaces need root with CAP_SYS_ADMIN")
    folder = tmp_path_factory.mktemp("machines")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # what a service of Debian's makes for sshd
    Path("/tmp/ray").mkdir(exist_ok=True)  # each machine has one of its own mounted there
    with ExitStack() as stack:
        head, worker = (
            stack.enter_context(machine(folder, address, key)) for address in (HEAD, WORKER)
        )
        ends = ["type", "veth", "peer", "name", "eth0", "netns", str(worker.pid)]
        assert head.run("ip", "link", "add", "eth0", *ends).returncode == 0
        for each, address, other in ((head, HEAD, WORKER), (worker, WORKER, HEAD)):
            for command in (
                f"ip addr add {address}/24 dev eth0", "ip link set eth0 up", f"ip route add default via {other}",
            ):  # fmt: skip
                done = each.run(*command.split())
                assert done.returncode == 0, done.stderr
        yield head, worker, key


def polled(state: Callable[[], T], is_good: Callable[[T], bool], seconds: int) -> T:
    """The state once it is good, or what it is after so many seconds."""
    for _ in range(seconds):
        if is_good(found := state()):
            break
        time.sleep(1)
    return found


def raylets_of(machine: Machine) -> list[str]:
    return [each for each in machine.ray_processes() if "raylet" in each]


@pytest.mark.slow
def test_machines_of_ones_own_run_a_job(machines, tmp_path):
    head, worker, key = machines
    config = yaml.safe_load((REPOSITORY / "jobs/cluster.local.yaml").read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    # The environment of this test stands for the one that pip would make on each machine.
    assert "-c ~/modernbert-ray/constraints.txt" in config["setup_commands"][0]
    config["setup_commands"][0] = f"ln -sfn {sys.prefix} ~/venv"
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))

    up = head.run(*RAY, "up", "-y", "--no-config-cache", str(file), timeout=300)
    assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
    raylets = polled(lambda: raylets_of(worker), bool, 180)  # a look that costs nothing
    assert raylets, up.stdout[-3000:]
    status = [*RAY, "status", "--address", f"{HEAD}:6379"]
    nodes = polled(
        lambda: head.run(*status).stdout, lambda text: " 2 local.cluster.node" in text, 180
    )
    assert " 2 local.cluster.node" in nodes, nodes

    rows = [f"please set an alarm for {i} o'clock" for i in range(100)]
    pq.write_table(pa.table({"message": rows}), tmp_path / "in.parquet")
    job = [
        "python",
        "jobs/classify_corpus.py",
        "--input",
        str(tmp_path / "in.parquet"),
        "--text-column",
        "message",
    ]
    job += ["--output", str(tmp_path / "out"), "--model", "jobs/demo/intent-classifier"]
    submit = [
        *RAY,
        "job",
        "submit",
        "--address",
        "http://127.0.0.1:8265",
        "--working-dir",
        ".",
        "--",
        *job,
    ]
    done = head.run(*submit, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 nodes" in done.stdout
    labelled = ds.dataset(tmp_path / "out").to_table()
    assert labelled["message"].to_pylist() == rows
    assert set(labelled["label"].to_pylist()) == {"alarm"}

    assert head.ray_processes()
    assert worker.ray_processes()
    down = head.run(*RAY, "down", "-y", str(file), timeout=180)
    assert down.returncode == 0, down.stdout[-3000:] + down.stderr[-3000:]
    assert head.ray_processes() == []
    # The launcher stops the head alone; a worker ends when it has missed the head for RECONNECT_S, its agents later.
    assert polled(lambda: raylets_of(worker), lambda found: not found, 180) == []

"""What the nodes of a cluster see of a job's files.

What a node writes to an output on its own disk would be lost.
"""

from __future__ import annotations

import socket
import time

import ray
from pyarrow import fs
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import JobError
from pipelines.input.listing import WILDCARD
from pipelines.output.lease import holds
from pipelines.raydata.cluster import cluster_resources
from pipelines.storage import Folder, Location, one_line

_ANSWER_S = 60.0
"""How long a node has to start a process and look; each commit checks slower ones, too."""
_SEEN_S = 10.0
"""How long a process trusts what it has seen of the lease."""
_seen: dict[tuple[Folder, str], float] = {}
_checked_runs: set[str] = set()


def check_nodes(source: Location, output: Folder, run: str) -> None:
    """Raise JobError, before any work, if a node does not see the input or the output's lease.

    Looks once for each run. Nodes that join later are checked by each commit (`check_lease`).
    """
    if run in _checked_runs:
        return
    _checked_runs.add(run)
    cluster_resources()
    here = ray.get_runtime_context().get_node_id()
    others = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    asked = {}
    for node in others:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": place, "max_retries": 0}
        reference = _look.options(**options).remote(output, run, source)
        asked[reference] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    if not asked:
        return
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    blind: dict[str, str] = {}
    for reference in done:
        try:
            reason = ray.get(reference)
        except RayError:  # the node is lost, which the job goes on without
            continue
        if reason:
            blind[asked[reference]] = reason
    if blind:
        node, reason = next(iter(blind.items()))
        more = f" (and {len(blind) - 1} more nodes)" if len(blind) > 1 else ""
        raise JobError(
            f"node {node}{more} {reason}; give a folder that all nodes share, or object storage"
        )


@ray.remote
def _look(output: Folder, run: str, source: Location) -> str | None:
    """Return what this node does not see, None if it sees all."""
    try:
        seen = holds(output, run)
    except OSError as error:
        return f"cannot read the output '{output}': {error.strerror or type(error).__name__}"
    if not seen:
        return f"does not see the output '{output}' of this job"
    try:
        filesystem, path = source.filesystem_and_path
        if WILDCARD.search(path):
            path = WILDCARD.split(path, maxsplit=1)[0].rpartition("/")[0]
        if filesystem.get_file_info(path or "/").type == fs.FileType.NotFound:
            return f"does not see the input '{source}'"
    except (OSError, ValueError) as error:
        return f"cannot read the input '{source}': {one_line(error)}"
    return None


def check_lease(output: Folder, run: str) -> None:
    """Raise OSError unless this process sees that the run holds the output.

    Else its commit would be lost on a node's own disk, or go into the output of another run.
    """
    key = output, run
    seen_at = _seen.get(key)
    if seen_at is not None and time.monotonic() - seen_at < _SEEN_S:
        return
    seen = holds(output, run)
    if seen is None:
        raise OSError(
            f"node {socket.gethostname()} does not see the output folder of this job; give one "
            "that all nodes share, or object storage"
        )
    if not seen:
        raise OSError("another run has taken it over")
    _seen[key] = time.monotonic()

"""The pods of jobs/kubernetes/: what a platform team asks of each, as kube-linter, checkov and the restricted security
standard of Kubernetes have it, and what keeps a run alive and lets it fit its nodes.
"""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from kuberay import clusters
from manifests import DOCUMENTS, manifest

UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}
NODE = {"cpu": 7.0, "memory": 26 * 2**30}
"""What system pods leave of a node with 8 vCPU and 32 GB (g2-standard-8: 7.9 CPU and 28 GiB before them)."""


class Pod(NamedTuple):
    """A pod of a manifest."""

    name: str
    role: str
    """head, worker, submitter, or the name of a CronJob's container."""
    template: dict[str, Any]
    beside: list[dict[str, Any]]
    """What the manifest says of containers that KubeRay adds: the autoscaler in the head."""

    @property
    def spec(self) -> dict[str, Any]:
        return self.template["spec"]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return self.spec["containers"] + self.beside

    def total(self, kind: str, resource: str) -> float:
        """The sum of requests or limits of its containers; the unlimited count as none."""
        return sum(
            quantity(each.get("resources", {}).get(kind, {}).get(resource, 0))
            for each in self.containers
        )


def quantity(text: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * UNITS[unit]


def pods(name: str, document: dict[str, Any]) -> list[Pod]:
    found = []
    for cluster in clusters(document):
        scaler = cluster.get("autoscalerOptions")
        beside = [scaler] if cluster.get("enableInTreeAutoscaling") else []
        found.append(Pod(f"{name}:head", "head", cluster["headGroupSpec"]["template"], beside))
        for group in cluster["workerGroupSpecs"]:
            found.append(Pod(f"{name}:{group['groupName']}", "worker", group["template"], []))
    job = document.get("spec", {}).get("jobTemplate", document.get("spec", {}))
    if "entrypoint" in job:
        found.append(Pod(f"{name}:submitter", "submitter", job["submitterPodTemplate"], []))
    elif document["kind"] == "CronJob":
        template = job["spec"]["template"]
        found.append(Pod(name, template["spec"]["containers"][0]["name"], template, []))
    return found


PODS = {pod.name: pod for name, document in DOCUMENTS.items() for pod in pods(name, document)}


def security_errors(pod: Pod) -> list[str]:
    """What the restricted security standard, v1.37, would refuse: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    context = pod.spec.get("securityContext", {})
    user = context.get("runAsUser", 0)
    kinds = {kind for volume in pod.spec.get("volumes", []) for kind in volume if kind != "name"}
    allowed = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    }  # fmt: skip
    broken = {
        "may run as root": context.get("runAsNonRoot") is not True or user == 0,
        "has no seccomp profile": context.get("seccompProfile", {}).get("type") != "RuntimeDefault",
        "shares a namespace of the host": any(
            pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")
        ),
        f"has volumes of {kinds - allowed}": kinds - allowed,
    }
    for container in pod.containers:
        own = container.get("securityContext", {})
        name = container.get("name", "autoscaler")
        broken |= {
            f"{name} may gain rights": own.get("allowPrivilegeEscalation") is not False,
            f"{name} keeps capabilities": own.get("capabilities", {}).get("drop") != ["ALL"],
            f"{name} is privileged": own.get("privileged"),
            f"{name} has a port of the host": any(
                "hostPort" in port for port in container.get("ports", [])
            ),
        }
    return [rule for rule, is_broken in broken.items() if is_broken]


def linter_errors(pod: Pod) -> list[str]:
    """Rules of kube-linter and checkov that matter here, and of a private registry: the account brings pull secrets."""
    account = pod.spec.get("serviceAccountName", "default")
    talks_to_kubernetes = bool(pod.beside) or pod.role == "create"
    mounts = pod.spec.get("automountServiceAccountToken", True)
    broken = {
        "runs as the default account": account == "default",
        "has a token of Kubernetes that it does not need": mounts and not talks_to_kubernetes,
        "has no token of Kubernetes": talks_to_kubernetes and not mounts,
    }
    for container in pod.containers:
        name, resources = container.get("name", "autoscaler"), container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        needed = {"cpu", "memory", "ephemeral-storage"}
        _, _, tag = container.get("image", ":x").rpartition(":")
        broken |= {
            f"{name} requests no {needed - requests.keys()}": needed - requests.keys(),
            f"{name} has no limit of {needed - {'cpu'} - limits.keys()}": needed
            - {"cpu"}
            - limits.keys(),
            f"{name} limits its memory to another amount than it requests": requests.get("memory")
            != limits.get("memory"),
            f"{name} has an image without a version": tag in ("", "latest") or "/" in tag,
            f"{name} has a secret in plain text": any(
                re.search(r"TOKEN|KEY|SECRET|PASSWORD", variable["name"]) and "value" in variable
                for variable in container.get("env", [])
            ),
        }
    return [rule for rule, is_broken in broken.items() if is_broken]


def place_errors(pod: Pod, kind: str) -> list[str]:
    """Where it runs: on nodes of its own and no larger than they are, and that it is left there."""
    annotations = pod.template.get("metadata", {}).get("annotations", {})
    stays = (
        annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false"
        and annotations.get("karpenter.sh/do-not-disrupt") == "true"
    )
    tolerated = {each["key"] for each in pod.spec.get("tolerations", [])}
    volumes = [volume.get("emptyDir") for volume in pod.spec.get("volumes", [])]
    disks = [each for each in volumes if each is not None and each.get("medium") != "Memory"]
    broken: dict[str, Any] = {
        # A copy of a model may move: the service answers from the others.
        "may be moved": not stays and (kind, pod.role) != ("RayService", "worker"),
        "tolerates no taint of nodes for Ray": "dedicated" not in tolerated,
        "tolerates no taint of GPUs": pod.role == "worker" and "nvidia.com/gpu" not in tolerated,
        "has a volume without a size": any(
            "sizeLimit" not in each for each in volumes if each is not None
        ),
        "is evicted before its volumes are full": sum(
            quantity(each.get("sizeLimit", 0)) for each in disks
        )
        > pod.total("limits", "ephemeral-storage"),
    }
    broken |= {
        f"does not fit a node: {resource}": pod.total("requests", resource) > size
        for resource, size in NODE.items()
    }
    if pod.role == "worker":
        (shm,) = [each for each in volumes if each and each.get("medium") == "Memory"]
        share = quantity(shm["sizeLimit"]) / pod.total("limits", "memory")
        broken["has no room for Ray's object store, 30% of the memory"] = not 0.3 <= share < 0.5
    return [rule for rule, is_broken in broken.items() if is_broken]


def errors(pod: Pod, kind: str) -> list[str]:
    return security_errors(pod) + linter_errors(pod) + place_errors(pod, kind)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_what_platform_teams_let_run(name):
    kind = name.split(":")[1]
    assert errors(PODS[name], kind) == []


def test_every_pod_is_among_them():
    assert (
        len(PODS) == 4 * 3 + 3 + 2 + 2
    )  # RayJobs; a cluster with two groups; the service; CronJobs
    assert {pod.role for pod in PODS.values()} == {
        "head",
        "worker",
        "submitter",
        "submit",
        "create",
    }


SPEC = "spec.rayClusterSpec.workerGroupSpecs.0.template"
HEAD = "spec.rayClusterSpec.headGroupSpec.template"


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        (f"{SPEC}.spec.securityContext", {}, "may run as root"),
        (f"{SPEC}.spec.securityContext.seccompProfile", {}, "has no seccomp profile"),
        (f"{SPEC}.spec.hostNetwork", True, "shares a namespace of the host"),
        (f"{SPEC}.spec.volumes.1", {"name": "x", "hostPath": {"path": "/"}}, "has volumes of {'hostPath'}"),
        (f"{SPEC}.spec.containers.0.securityContext", {}, "ray-worker may gain rights"),
        ("spec.rayClusterSpec.autoscalerOptions.securityContext", {}, "autoscaler keeps capabilities"),
        (f"{SPEC}.spec.containers.0.ports", [{"hostPort": 1}], "ray-worker has a port of the host"),
        (f"{SPEC}.spec.serviceAccountName", "default", "runs as the default account"),
        (f"{SPEC}.spec.automountServiceAccountToken", True, "a token of Kubernetes that it does not need"),
        (f"{HEAD}.spec.automountServiceAccountToken", False, "has no token of Kubernetes"),
        (f"{SPEC}.spec.containers.0.resources.requests.cpu", "8", "does not fit a node: cpu"),
        (f"{HEAD}.spec.containers.0.resources.requests.memory", "26Gi", "does not fit a node: memory"),
        (f"{SPEC}.spec.containers.0.resources.requests", {}, "ray-worker requests no"),
        (f"{SPEC}.spec.containers.0.resources.limits", {"memory": "26Gi"}, "no limit of {'ephemeral-storage'}"),
        (f"{SPEC}.spec.containers.0.resources.limits.memory", "30Gi", "another amount than it requests"),
        (f"{SPEC}.spec.containers.0.image", "x/y:latest", "has an image without a version"),
        (f"{SPEC}.spec.containers.0.image", "x:5000/y", "has an image without a version"),
        (f"{SPEC}.spec.containers.0.env.0", {"name": "HF_TOKEN", "value": "hf_x"}, "a secret in plain text"),
        (f"{SPEC}.metadata", {}, "may be moved"),
        (f"{SPEC}.spec.tolerations", [], "tolerates no taint of GPUs"),
        (f"{HEAD}.spec.tolerations", [], "tolerates no taint of nodes for Ray"),
        ("spec.submitterPodTemplate.spec.tolerations", [], "tolerates no taint of nodes for Ray"),
        (f"{SPEC}.spec.volumes.1.emptyDir", {}, "has a volume without a size"),
        (f"{SPEC}.spec.volumes.1.emptyDir.sizeLimit", "50Gi", "is evicted before its volumes are full"),
        (f"{SPEC}.spec.volumes.0.emptyDir.sizeLimit", "4Gi", "has no room for Ray's object store"),
    ],
)  # fmt: skip
def test_a_pod_that_breaks_a_rule_is_found(path, value, error):
    # Anchors share what they name: each place gets a copy of its own.
    document = copy.deepcopy(unshared(manifest("rayjob")))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = document
    for part in way:
        place = place[part]
    place[last] = value
    found = [message for pod in pods("rayjob", document) for message in errors_or_none(pod)]
    assert [message for message in found if error in message], found


def errors_or_none(pod: Pod) -> list[str]:
    """The errors of a pod whose volumes may be of another kind than the rules of places expect."""
    first = security_errors(pod) + linter_errors(pod)
    return first + (
        [] if [rule for rule in first if "has volumes" in rule] else place_errors(pod, "RayJob")
    )


def unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unshared(each) for key, each in value.items()}
    return [unshared(each) for each in value] if isinstance(value, list) else value


def test_every_pod_runs_as_an_account_of_ours():
    accounts = {
        document["metadata"]["name"]
        for document in DOCUMENTS.values()
        if document["kind"] == "ServiceAccount"
    }
    assert {pod.spec["serviceAccountName"] for pod in PODS.values()} <= accounts
    (ours,) = [document for name, document in DOCUMENTS.items() if name.startswith("access.yaml:")]
    assert ours["imagePullSecrets"]


def test_a_cluster_takes_no_command_without_a_token():
    """Whoever reaches the dashboard can run code."""
    found = [cluster for document in DOCUMENTS.values() for cluster in clusters(document)]
    assert [cluster["authOptions"] for cluster in found] == [{"mode": "token"}] * len(found)


def test_who_loads_a_model_has_the_hubs_token():
    for pod in PODS.values():
        if pod.role in ("head", "worker"):
            (token,) = [
                each for each in pod.spec["containers"][0]["env"] if each["name"] == "HF_TOKEN"
            ]
            assert token["valueFrom"]["secretKeyRef"]["optional"]


def test_a_lost_submitter_is_started_again():
    """KubeRay's default is two retries, each of which finds the job: nothing here turns them off."""
    jobs = [
        document["spec"].get("jobTemplate", document["spec"])
        for document in DOCUMENTS.values()
        if "spec" in document
    ]
    assert not [job for job in jobs if job.get("submitterConfig", {}).get("backoffLimit") == 0]
    for document in DOCUMENTS.values():
        if document["kind"] == "CronJob":
            assert document["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 6


def test_the_shared_volume_is_where_the_job_reads_and_writes():
    document = manifest("rayjob-shared-volume")
    (claim,) = [document for name, document in DOCUMENTS.items() if name.startswith("volume.yaml:")]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods("shared", document):
        if pod.role != "submitter":
            (container,) = pod.spec["containers"]
            assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
            name = claim["metadata"]["name"]
            assert {"name": "data", "persistentVolumeClaim": {"claimName": name}} in pod.spec[
                "volumes"
            ]
    named = dict(pairwise(document["spec"]["entrypoint"].split()))
    assert all(named[option].startswith("/data/") for option in ("--input", "--output", "--model"))

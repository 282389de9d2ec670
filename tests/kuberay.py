"""What KubeRay 1.7 accepts: the fields of its four kinds as a JSON schema, and the rules that its controller adds.

The fields are written down by hand: those that a manifest may reasonably have, without alpha features. Pod templates
and the like are Kubernetes' own, of the package kubernetes-validate. test_manifests.py compares the fields with the
operator's custom resource definitions where KUBERAY_CRDS names the folder that holds them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

KUBERNETES = "1.37"
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"

TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": "boolean"}
WHOLE: dict[str, Any] = {"type": "integer"}
NATURAL: dict[str, Any] = {"type": "integer", "minimum": 0}
NUMBER: dict[str, Any] = {"type": "number"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _fields(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _core(name: str) -> dict[str, Any]:
    """A type of Kubernetes' own."""
    return {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.api.core.v1.{name}"}


HEAD = _fields(
    "template", template=_core("PodTemplateSpec"), rayStartParams=TEXTS, resources=TEXTS, labels=TEXTS,
    serviceType=TEXT, headService=_core("Service"), enableIngress=FLAG,
)  # fmt: skip
WORKERS = _fields(
    "groupName", "template", groupName=TEXT, template=_core("PodTemplateSpec"), replicas=WHOLE, minReplicas=WHOLE,
    maxReplicas=WHOLE, numOfHosts=WHOLE, idleTimeoutSeconds=WHOLE, priority=WHOLE, suspend=FLAG, rayStartParams=TEXTS,
    resources=TEXTS, labels=TEXTS,
)  # fmt: skip
AUTOSCALER = _fields(
    version=_one_of("v1", "v2"), upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
    idleTimeoutSeconds=WHOLE, image=TEXT, imagePullPolicy=TEXT, args=_list(TEXT), command=_list(TEXT),
    env=_list(_core("EnvVar")), envFrom=_list(_core("EnvFromSource")), resources=_core("ResourceRequirements"),
    securityContext=_core("SecurityContext"), volumeMounts=_list(_core("VolumeMount")),
)  # fmt: skip
REDIS_CREDENTIAL = _fields(value=TEXT, valueFrom=_core("EnvVarSource"))
FAULT_TOLERANCE = _fields(
    backend=_one_of("redis", "rocksdb"), redisAddress=TEXT, redisUsername=REDIS_CREDENTIAL,
    redisPassword=REDIS_CREDENTIAL, externalStorageNamespace=TEXT,
)  # fmt: skip
CLUSTER = _fields(
    "headGroupSpec", headGroupSpec=HEAD, workerGroupSpecs=_list(WORKERS), rayVersion=TEXT, enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER, gcsFaultToleranceOptions=FAULT_TOLERANCE, suspend=FLAG, managedBy=TEXT,
    authOptions=_fields(mode=_one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    headServiceAnnotations=TEXTS, upgradeStrategy=_fields(type=_one_of("Recreate", "None")),
)  # fmt: skip
_POLICY = _one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
DELETION_RULE = _fields(
    "policy", "condition", policy=_POLICY,
    condition=_fields(
        jobStatus=_one_of("SUCCEEDED", "FAILED"), jobDeploymentStatus=_one_of("Failed"), ttlSeconds=NATURAL
    ),
)  # fmt: skip
JOB = _fields(
    entrypoint=TEXT, entrypointNumCpus=NUMBER, entrypointNumGpus=NUMBER, entrypointResources=TEXT, runtimeEnvYAML=TEXT,
    submissionMode=TEXT, submitterPodTemplate=_core("PodTemplateSpec"), submitterConfig=_fields(backoffLimit=WHOLE),
    backoffLimit=WHOLE, activeDeadlineSeconds=WHOLE, preRunningDeadlineSeconds=WHOLE | {"minimum": 1}, metadata=TEXTS,
    shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=WHOLE, clusterSelector=TEXTS, rayClusterSpec=CLUSTER,
    deletionStrategy=_fields(deletionRules=_list(DELETION_RULE) | {"minItems": 1}), suspend=FLAG, managedBy=TEXT,
    jobId=TEXT,
)  # fmt: skip
UPGRADE = _fields(
    type=TEXT,
    clusterUpgradeOptions=_fields(
        "gatewayClassName", "intervalSeconds", "stepSizePercent",
        gatewayClassName=TEXT, intervalSeconds=WHOLE, stepSizePercent=WHOLE, maxSurgePercent=WHOLE,
    ),
)  # fmt: skip
SERVICE = _fields(
    "rayClusterConfig", rayClusterConfig=CLUSTER, serveConfigV2=TEXT, upgradeStrategy=UPGRADE,
    serveService=_core("Service"), serviceUnhealthySecondThreshold=WHOLE, deploymentUnhealthySecondThreshold=WHOLE,
    excludeHeadPodFromServeSvc=FLAG, rayClusterDeletionDelaySeconds=NATURAL, suspend=FLAG, managedBy=TEXT,
)  # fmt: skip
CRON_JOB = _fields(
    "schedule",
    "jobTemplate",
    schedule=TEXT,
    timeZone=TEXT | {"minLength": 1},
    suspend=FLAG,
    jobTemplate=JOB,
)
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE, "RayCronJob": CRON_JOB}
"""The schema of each kind's `spec`."""
DEFAULTED = {"minReplicas", "maxReplicas"}
"""Fields that the definitions require, and that the API server fills in."""

_NAME_LIMITS = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
_GENERATED = 5  # characters that the API server adds to generateName


@cache
def _registry() -> Registry:
    folder = (
        Path(kubernetes_validate.__file__).parent
        / "kubernetes-json-schema"
        / f"v{KUBERNETES}.0-local-strict"
    )
    return (
        Resource.from_contents(json.loads((folder / "_definitions.json").read_text())) @ Registry()
    )


def schema_errors(document: dict[str, Any]) -> list[str]:
    """The fields of a manifest that KubeRay's or Kubernetes' API server would refuse, each with its path."""
    if document["apiVersion"] != "ray.io/v1":
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.path))}: {error.message}"]
        return []
    metadata = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    schema = _fields(
        "apiVersion", "kind", "metadata", "spec",
        apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=KINDS[document["kind"]],
    )  # fmt: skip
    errors = jsonschema.Draft202012Validator(schema, registry=_registry()).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def rule_errors(document: dict[str, Any]) -> list[str]:
    """The rules of KubeRay's controller, and of Kueue, that a manifest of one of KubeRay's kinds breaks."""
    kind, metadata, spec = document["kind"], document["metadata"], document["spec"]
    errors = _name_errors(kind, metadata)
    if kind == "RayCronJob":
        errors += _schedule_errors(spec)
    if kind in ("RayJob", "RayCronJob"):
        errors += _job_errors(spec if kind == "RayJob" else spec["jobTemplate"])
    if "kueue.x-k8s.io/queue-name" in metadata.get("labels", {}):
        errors += _queue_errors(spec)
    for cluster in clusters(document):
        errors += _cluster_errors(cluster)
        if kind != "RayCluster" and cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            errors.append("enableK8sTokenAuth works for a RayCluster alone")
    return errors


def clusters(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The specifications of the Ray clusters in a manifest."""
    if document["apiVersion"] != "ray.io/v1":
        return []
    spec = document["spec"]
    job = spec.get("jobTemplate", spec)
    found = {"RayCluster": spec, "RayService": spec.get("rayClusterConfig")}.get(
        document["kind"], job.get("rayClusterSpec")
    )
    return [found] if found else []


def _name_errors(kind: str, metadata: dict[str, Any]) -> list[str]:
    name = metadata.get("name") or metadata["generateName"] + "x" * _GENERATED
    errors = []
    if len(name) > _NAME_LIMITS[kind]:
        errors.append(
            f"the name {name} has {len(name)} characters, a {kind} at most {_NAME_LIMITS[kind]}"
        )
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        errors.append(f"the name {name} is no DNS label")
    return errors


def _schedule_errors(spec: dict[str, Any]) -> list[str]:
    errors = []
    if "TZ" in spec["schedule"] or len(spec["schedule"].split()) != 5:
        errors.append("schedule has five fields; the time zone is timeZone")
    try:
        ZoneInfo(spec.get("timeZone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        errors.append(f"timeZone {spec['timeZone']} is unknown")
    return errors


def _job_errors(job: dict[str, Any]) -> list[str]:
    shutdown, mode = (
        job.get("shutdownAfterJobFinishes", False),
        job.get("submissionMode", "K8sJobMode"),
    )
    selector = bool(job.get("clusterSelector"))
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    broken = {
        "rayClusterSpec or clusterSelector is missing": not selector
        and "rayClusterSpec" not in job,
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": job.get("ttlSecondsAfterFinished")
        and not shutdown,
        "deletionRules exclude shutdownAfterJobFinishes": rules and shutdown,
        "suspend needs shutdownAfterJobFinishes": job.get("suspend") and not shutdown,
        "suspend excludes clusterSelector": job.get("suspend") and selector,
        "backoffLimit excludes clusterSelector": job.get("backoffLimit") and selector,
        "SidecarMode excludes clusterSelector": mode == "SidecarMode" and selector,
        "SidecarMode excludes submitterPodTemplate": mode == "SidecarMode"
        and "submitterPodTemplate" in job,
        "SidecarMode excludes submitterConfig": mode == "SidecarMode" and "submitterConfig" in job,
        "InteractiveMode excludes backoffLimit": mode == "InteractiveMode"
        and job.get("backoffLimit"),
        f"submissionMode {mode} is unknown": mode
        not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
        "backoffLimit is negative": job.get("backoffLimit", 0) < 0,
        "activeDeadlineSeconds is not positive": job.get("activeDeadlineSeconds", 1) < 1,
        "runtimeEnvYAML is no mapping": not isinstance(
            yaml.safe_load(job.get("runtimeEnvYAML", "{}")), dict
        ),
    }
    return [rule for rule, is_broken in broken.items() if is_broken] + _deletion_errors(job, rules)


def _deletion_errors(job: dict[str, Any], rules: list[dict[str, Any]]) -> list[str]:
    errors, waits = [], Counter[tuple[str, str]]()
    order = {"DeleteWorkers": 0, "DeleteCluster": 1, "DeleteSelf": 2}
    last: dict[str, tuple[int, int]] = {}
    for rule in sorted(rules, key=lambda rule: order.get(rule["policy"], 3)):
        condition = rule["condition"]
        states = [
            str(condition[name])
            for name in ("jobStatus", "jobDeploymentStatus")
            if name in condition
        ]
        if len(states) != 1:
            errors.append("a condition has one of jobStatus and jobDeploymentStatus")
            continue
        waits[states[0], rule["policy"]] += 1
        if rule["policy"] == "DeleteWorkers" and job.get("rayClusterSpec", {}).get(
            "enableInTreeAutoscaling"
        ):
            errors.append("DeleteWorkers excludes autoscaling")
        if rule["policy"] in order:
            seconds = condition.get("ttlSeconds", 0)
            if seconds < last.get(states[0], (0, 0))[1]:
                errors.append(f"{rule['policy']} comes before a smaller deletion")
            last[states[0]] = (order[rule["policy"]], seconds)
    return errors + [
        f"{policy} is there twice for {state}" for (state, policy), n in waits.items() if n > 1
    ]


def _queue_errors(job: dict[str, Any]) -> list[str]:
    cluster = job.get("rayClusterSpec", {})
    broken = {
        "Kueue needs shutdownAfterJobFinishes": not job.get("shutdownAfterJobFinishes"),
        "Kueue excludes clusterSelector": "clusterSelector" in job,
        "Kueue excludes autoscaling": cluster.get("enableInTreeAutoscaling"),
        "Kueue takes 17 worker groups at most": len(cluster.get("workerGroupSpecs", [])) > 17,
    }
    return [rule for rule, is_broken in broken.items() if is_broken]


def _cluster_errors(cluster: dict[str, Any]) -> list[str]:
    workers = cluster.get("workerGroupSpecs", [])
    scaled = cluster.get("enableInTreeAutoscaling", False)
    version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
    v2 = scaled and (cluster.get("autoscalerOptions", {}).get("version") == "v2")
    errors = []
    for group in [cluster["headGroupSpec"], *workers]:
        name, pod, start = (
            group.get("groupName", "head"),
            group["template"]["spec"],
            group.get("rayStartParams", {}),
        )
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        broken = {
            "has no container": not pod["containers"],
            "has minReplicas above maxReplicas, or below 0": not 0 <= low <= high,
            "has replicas out of minReplicas..maxReplicas": not low
            <= group.get("replicas", low)
            <= high,
            "has resources in two places": {"num-cpus", "num-gpus", "memory", "resources"}
            & start.keys()
            and group.get("resources"),
            "has labels in rayStartParams": "labels" in start,
            "may not restart its pods under autoscaler v2": v2
            and pod.get("restartPolicy", "Never") != "Never",
            "needs autoscaler v2 for idleTimeoutSeconds": "idleTimeoutSeconds" in group and not v2,
            "needs autoscaler v2 and Ray 2.56 for priority": group.get("priority")
            and not (v2 and version >= (2, 56)),
            "cannot be suspended under autoscaling": group.get("suspend") and scaled,
        }
        errors += [f"{name} {rule}" for rule, is_broken in broken.items() if is_broken]
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        errors.append("a token needs Ray 2.52")
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names):
        errors.append("two worker groups have one name")
    return errors

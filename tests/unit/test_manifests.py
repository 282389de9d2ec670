"""Manifests, schedules and images: what KubeRay, Kubernetes, Ray and this project's own command line say of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from conftest import REPOSITORY, readme_block
from kuberay import DEFAULTED, KINDS, clusters, rule_errors, schema_errors
from manifests import DOCUMENTS, RAY, manifest
from ray.dashboard.modules.job.cli import submit
from ray.serve.schema import ServeDeploySchema
from schedules import SUBMIT_ONCE, airflow_dag, submit_once

from pipelines.arguments import parse
from pipelines.job_options import corpus_command_options
from pipelines.serve.config import service_options

JOBS = REPOSITORY / "jobs"
once = submit_once()
RUNTIME_ENV = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_api_server_knows_every_field(name):
    assert schema_errors(DOCUMENTS[name]) == []


@pytest.mark.parametrize("name", RAY)
def test_the_controller_takes_it(name):
    assert rule_errors(RAY[name]) == []


def test_every_kind_is_there():
    assert {document["kind"] for document in RAY.values()} == set(KINDS)
    assert "kueue.x-k8s.io/queue-name" in manifest("rayjob-kueue")["metadata"]["labels"]


def at(document: Any, path: str) -> tuple[Any, Any]:
    """The place in a document that a dotted path names: what holds it, and its key."""
    *path_to, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in path_to:
        document = document[part]
    return document, last


@pytest.mark.parametrize(
    ("name", "path", "value", "error"),
    [
        ("rayjob", "spec.entryPoint", "x", "'entryPoint' was unexpected"),
        ("rayjob", "spec.backoffLimit", "2", "is not of type 'integer'"),
        ("rayjob", "spec.deletionStrategy.deletionRules.0.policy", "Delete", "is not one of"),
        (
            "rayjob",
            "spec.rayClusterSpec.workerGroupSpecs.0.maxReplica",
            3,
            "'maxReplica' was unexpected",
        ),
        (
            "rayjob",
            "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus",
            0,
            "is not of type 'string'",
        ),
        (
            "raycluster",
            "spec.workerGroupSpecs.1.template.spec.containers.0.images",
            "x",
            "'images' was unexpected",
        ),
        ("raycronjob", "spec.timezone", "UTC", "'timezone' was unexpected"),
        (
            "rayservice",
            "spec.rayClusterConfig.headGroupSpec.template.spec.volumes.0.emptyDir",
            1,
            "is not of type",
        ),
    ],
)
def test_a_mistake_in_a_field_is_found(name, path, value, error):
    document = manifest(name)
    place, key = at(document, path)
    place[key] = value
    assert [found for found in schema_errors(document) if error in found], schema_errors(document)


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("rayjob", {"metadata.generateName": "a" * 43}, "48 characters, a RayJob at most 47"),
        ("raycronjob", {"metadata.name": "a" * 37}, "37 characters, a RayCronJob at most 36"),
        ("raycluster", {"metadata.name": "Jobs"}, "no DNS label"),
        (
            "rayjob",
            {"spec.shutdownAfterJobFinishes": True},
            "deletionRules exclude shutdownAfterJobFinishes",
        ),
        (
            "rayjob",
            {"spec.ttlSecondsAfterFinished": 60},
            "ttlSecondsAfterFinished needs shutdownAfterJobFinishes",
        ),
        (
            "rayjob",
            {"spec.submissionMode": "SidecarMode", "spec.submitterPodTemplate": {}},
            "SidecarMode excludes submitterPodTemplate",
        ),
        (
            "rayjob",
            {"spec.deletionStrategy.deletionRules.1.condition.ttlSeconds": 1},
            "DeleteSelf comes before",
        ),
        (
            "rayjob",
            {"spec.deletionStrategy.deletionRules.1.policy": "DeleteCluster"},
            "is there twice for SUCCEEDED",
        ),
        (
            "rayjob",
            {"spec.deletionStrategy.deletionRules.0.condition": {}},
            "one of jobStatus and jobDeploymentStatus",
        ),
        ("rayjob", {"spec.runtimeEnvYAML": "text"}, "runtimeEnvYAML is no mapping"),
        (
            "rayjob",
            {"spec.rayClusterSpec.workerGroupSpecs.0.minReplicas": 9},
            "minReplicas above maxReplicas",
        ),
        (
            "rayjob-kueue",
            {"spec.shutdownAfterJobFinishes": False},
            "Kueue needs shutdownAfterJobFinishes",
        ),
        ("rayjob-kueue", {"spec.clusterSelector": {"a": "b"}}, "Kueue excludes clusterSelector"),
        (
            "rayjob-kueue",
            {"spec.rayClusterSpec.enableInTreeAutoscaling": True},
            "Kueue excludes autoscaling",
        ),
        ("raycronjob", {"spec.schedule": "TZ=UTC 0 2 * * *"}, "the time zone is timeZone"),
        ("raycronjob", {"spec.timeZone": "Europe/Nowhere"}, "is unknown"),
        (
            "raycluster",
            {"spec.autoscalerOptions.version": "v1"},
            "needs autoscaler v2 and Ray 2.56 for priority",
        ),
        ("raycluster", {"spec.rayVersion": "2.51.0"}, "a token needs Ray 2.52"),
        (
            "rayservice",
            {"spec.rayClusterConfig.workerGroupSpecs.0.template.spec.restartPolicy": "Always"},
            "restart",
        ),
    ],
)
def test_a_broken_rule_of_the_controller_is_found(name, changes, error):
    document = manifest(name)
    for path, value in changes.items():
        place, key = at(document, path)
        place[key] = value
    assert [found for found in rule_errors(document) if error in found], rule_errors(document)


# ---- the operator's own definitions, where they are at hand


def definitions() -> dict[str, dict[str, Any]]:
    """The schema of the `spec` of each kind in the folder KUBERAY_CRDS; the test is skipped without it."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip(
            "KUBERAY_CRDS names no folder with KubeRay's definitions (in its Helm chart: crds/)"
        )
    found = {}
    for file in Path(folder).glob("*.yaml"):
        crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        (schema,) = [version["schema"] for version in crd["versions"] if version["name"] == "v1"]
        found[crd["names"]["kind"]] = schema["openAPIV3Schema"]["properties"]["spec"]
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> list[str]:
    """Where a schema of ours says something else than theirs of the same field."""
    if "$ref" in ours:
        return []
    found = [
        f"{path}: {k}"
        for k in ("type", "enum", "minimum", "minItems", "minLength")
        if ours.get(k) != theirs.get(k)
    ]
    if set(ours.get("required", [])) != set(theirs.get("required", [])) - DEFAULTED:
        found.append(f"{path}: required {theirs.get('required')}")
    for name, field in ours.get("properties", {}).items():
        known = theirs.get("properties", {}).get(name)
        found += (
            differences(field, known, f"{path}.{name}") if known else [f"{path}.{name} is unknown"]
        )
    return found + (
        differences(ours["items"], theirs["items"], f"{path}[]") if "items" in ours else []
    )


def closed(schema: Any) -> Any:
    """A schema of a definition as a strict API server reads it: no unknown fields, defaults filled in first."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", None):
        schema = {"type": ["integer", "number", "string"]}
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        schema["required"] = [
            n for n in schema.get("required", []) if "default" not in properties.get(n, {})
        ]
    return schema


def test_the_fields_are_those_of_the_operators_definitions():
    theirs = definitions()
    assert [
        line for kind, ours in KINDS.items() for line in differences(ours, theirs[kind], kind)
    ] == []
    for name, document in RAY.items():
        validator = jsonschema.Draft202012Validator(closed(theirs[document["kind"]]))
        assert [
            f"{e.json_path}: {e.message}" for e in validator.iter_errors(document["spec"])
        ] == [], name


# ---- command lines


def submissions() -> dict[str, tuple[list[str], dict[str, Any] | None]]:
    """Each command line of a job in a file of ours, with its runtime environment, None for one that sets none."""
    found: dict[str, tuple[list[str], dict[str, Any] | None]] = {}
    for name, document in DOCUMENTS.items():
        spec = document.get("spec", {})
        job = spec.get("jobTemplate", spec)
        if "entrypoint" in job:
            found[name] = shlex.split(job["entrypoint"]), yaml.safe_load(job["runtimeEnvYAML"])
        elif document["kind"] == "CronJob":
            (container,) = job["spec"]["template"]["spec"]["containers"]
            if "submit_once.py" in container["command"][1]:
                found[name] = submitted([*container["command"], *container["args"]])
    service = (JOBS / "schedules/label-articles.service").read_text().replace("\\\n", " ")
    (start,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    found["label-articles.service"] = submitted(shlex.split(start))
    sky = yaml.safe_load((JOBS / "schedules/sky.yaml").read_text())
    values = sky["envs"] | {"SKYPILOT_NUM_NODES": str(sky["num_nodes"])}
    run = re.sub(
        r"\$(\w+)", lambda name: values.get(name[1], name[0]), sky["run"].replace("\\\n", " ")
    )
    found["sky.yaml"] = submitted(
        shlex.split(next(line for line in run.splitlines() if " submit " in line))
    )
    dag = airflow_dag()
    found["airflow_dag.py"] = shlex.split(dag["JOB"]), once.RUNTIME_ENV
    for file in ("README.md", "jobs/README.md"):
        blocks = "\n".join(
            re.findall(r"```bash\n(.*?)```", (REPOSITORY / file).read_text(), re.DOTALL)
        )
        for at, line in enumerate(
            re.findall(
                r"^(?:ray job submit|python jobs/schedules/submit_once.py) .*$",
                blocks.replace("\\\n", " "),
                re.MULTILINE,
            )
        ):
            found[f"{file}:{at}"] = submitted(shlex.split(line))
    return found


def submitted(command: list[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The job and the runtime environment of a `ray job submit`, as Ray's own command line reads it, or of ours."""
    if Path(command[0]).name == "python":
        assert (REPOSITORY / command[1].removeprefix("/app/")).samefile(SUBMIT_ONCE)
        arguments = [word.replace("$(NAME)", "nightly-29412345") for word in command[2:]]
        run, _ = once.parsed(["--address=http://head:8265", *arguments])
        return shlex.split(run.entrypoint), once.RUNTIME_ENV
    assert Path(command[0]).name == "ray"
    assert command[1:3] == ["job", "submit"]
    options = submit.make_context("submit", command[3:]).params
    given = options["runtime_env_json"]
    return list(options["entrypoint"]), None if given is None else yaml.safe_load(given)


SUBMISSIONS = submissions()


def test_every_way_to_submit_is_among_them():
    assert {name.partition(":")[0] for name in SUBMISSIONS} == {
        "rayjob.yaml", "rayjob-shared-volume.yaml", "rayjob-kueue.yaml", "raycronjob.yaml", "cronjob-submits.yaml", "label-articles.service",
        "sky.yaml", "airflow_dag.py", "README.md", "jobs/README.md",
    }  # fmt: skip


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submitted_job_is_a_command_of_ours(name):
    """The script exists, its options do, and their values are valid; a job that is stopped has time for its report."""
    (python, script, *arguments), runtime_env = SUBMISSIONS[name]
    assert python == "python"
    (task,) = re.findall(
        r'run_command\("(\w+)"', (REPOSITORY / script.removeprefix("/app/")).read_text()
    )
    options = parse(corpus_command_options(task), arguments, {})
    assert all(options.required())
    assert runtime_env == RUNTIME_ENV


@pytest.mark.parametrize("name", ["rayjob", "rayjob-shared-volume", "rayjob-kueue", "raycronjob"])
def test_a_job_has_the_actors_of_its_cluster(name):
    """One actor a GPU: the numbers of --actors are those of the worker group, so that none waits and none idles."""
    document = manifest(name)
    job = document["spec"].get("jobTemplate", document["spec"])
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    low, _, high = re.search(r"--actors (\S+)", job["entrypoint"])[1].partition(":")
    assert (int(low), int(high or low)) == (group["minReplicas"], group["maxReplicas"])
    assert group["replicas"] == group["minReplicas"]


def test_the_first_backfill_is_rayjob_with_other_numbers():
    """The command of the README, with a kubectl that shows what it is given."""
    command = readme_block("backfill", "jobs/README.md").replace("kubectl create -f -", "cat")
    shown = subprocess.run(
        ["bash", "-ec", command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    document = yaml.safe_load(shown.stdout)
    assert schema_errors(document) + rule_errors(document) == []
    job = document["spec"]
    assert job["activeDeadlineSeconds"] == 7 * 24 * 3600
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 32)
    assert job["entrypoint"].endswith("--actors 1:32")


def test_the_secrets_of_the_readme_are_those_of_the_manifests():
    """Names and keys, and files that exist."""
    commands = readme_block("kubernetes", "jobs/README.md")
    made = set(re.findall(r"kubectl create secret (?:generic|docker-registry) (\S+)", commands))
    text = "\n".join(file.read_text() for file in (JOBS / "kubernetes").glob("*.yaml"))
    named = set(re.findall(r"secretRef: {name: ([\w-]+)|secretKeyRef: {name: ([\w-]+)", text))
    account = DOCUMENTS["access.yaml:ServiceAccount"]["imagePullSecrets"]
    used = {name for pair in named for name in pair if name} | {each["name"] for each in account}
    # KubeRay makes the secret of the cluster's token; serve/README.md has that of the service's keys.
    assert made == used - {"modernbert-jobs", "modernbert-api"}
    assert "--from-literal=token=" in commands
    files = re.findall(r" -f (\S+)", commands)
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []


JOB_NAME = "metadata.labels['batch.kubernetes.io/job-name']"
"""Where a pod has the name of its Job, which a CronJob makes of its own and the minute in the schedule."""


def test_the_cronjob_submits_to_the_cluster_beside_it():
    (job,) = [
        document for name, document in DOCUMENTS.items() if name == "cronjob-submits.yaml:CronJob"
    ]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    cluster = manifest("raycluster")
    name = cluster["metadata"]["name"]
    assert f"--address=http://{name}-head-svc:8265" in container["args"]
    environment = {variable["name"]: variable for variable in container["env"]}
    token = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token == {"name": name, "key": "auth_token"}
    assert container["command"][-2:] == ["--id", "$(NAME)"]
    assert environment["NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == JOB_NAME
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert {group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"]} == {0}


@pytest.mark.parametrize(
    ("states", "code", "says"),
    [
        (
            ["x", "x Running RUNNING", "?", "x Complete SUCCEEDED Job finished"],
            0,
            "x Complete SUCCEEDED Job finished",
        ),
        (
            ["x Running", "x Retrying FAILED", "x Failed FAILED Job entrypoint ended with 2"],
            1,
            "ended with 2",
        ),
        (["x Initializing", "x Failed  The RayJob has passed"], 1, "has passed"),
        (["x Complete STOPPED"], 1, "STOPPED"),
        (["x Running RUNNING", ""], 1, "rayjobs.ray.io/nightly-29412345: deleted"),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_the_cronjob_waits_for_the_rayjob_of_its_night(states, code, says, is_there, tmp_path):
    """The script of the manifest, with a kubectl that tells one state after another; "?" is one that cannot be had.

    Where a pod before this one has created the RayJob, it is not created again.
    """
    done = create_and_wait(tmp_path, states, "AlreadyExists" if is_there else "")
    assert (done.returncode, done.stderr) == (code, "AlreadyExists\n" if is_there else "")
    assert says in done.stdout
    created = yaml.safe_load((tmp_path / "created").read_text())
    expected = manifest("rayjob")
    expected["metadata"] = {"name": "nightly-29412345"}
    assert created == expected


def test_the_cronjob_tries_again_where_kubernetes_does_not_answer(tmp_path):
    """With a code that the policy of its Job counts as a lost pod, not as a failed run."""
    done = create_and_wait(tmp_path, ["?"], "Unable to connect to the server")
    assert done.returncode == 75
    job = DOCUMENTS["cronjob-creates-rayjob.yaml:CronJob"]["spec"]["jobTemplate"]["spec"]
    final = job["podFailurePolicy"]["rules"][0]
    assert final == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}


def create_and_wait(folder: Path, states: list[str], refusal: str) -> Any:
    """Run the script of cronjob-creates-rayjob.yaml beside a kubectl that refuses to create, or does."""
    job = DOCUMENTS["cronjob-creates-rayjob.yaml:CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == JOB_NAME
    # The first `get` after a refusal is not one of those that wait.
    told = (["x"] if refusal == "AlreadyExists" else []) + states
    (folder / "states").write_text("".join(f"{state}\n" for state in told))
    kubectl = f"""#!/bin/sh
        cd {folder}
        if [ $1 = create ]; then
            cat > created; refusal="{refusal}"
            [ -z "$refusal" ] && exit; echo "$refusal" >&2; exit 1
        fi
        state=$(head -n 1 states); sed -i 1d states
        [ "$state" = "?" ] && exit 1
        echo "$state" """
    for name, text in {"kubectl": kubectl, "sleep": "#!/bin/sh"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    script = container["args"][0].replace("/manifest/", f"{JOBS}/kubernetes/")
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "NAME": "nightly-29412345",
    }
    call = [*container["command"], script]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=20)


# ---- the service, schedules, versions


def test_ray_serve_takes_the_service():
    config = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    (model,) = service_options(application.args).models
    group = manifest("rayservice")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (model.device, model.replicas, model.max_replicas) == (
        "cuda",
        group["minReplicas"],
        group["maxReplicas"],
    )
    assert config["http_options"]["port"] == 8000  # the port of the service that KubeRay makes


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
def test_systemd_takes_the_timer(tmp_path):
    for name in ("label-articles.service", "label-articles.timer"):
        text = (JOBS / "schedules" / name).read_text()
        # systemd looks for the program and the user
        text = text.replace("/opt/modernbert-ray/.venv/bin/python", sys.executable).replace(
            "User=modernbert", "User=root"
        )
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("label-articles.service", "label-articles.timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Persistent=true" in (tmp_path / "label-articles.timer").read_text()


def test_versions_are_those_of_the_constraints():
    """Ray in the images, in the manifests and for Airflow, and the image's tag."""
    constraints = dict(
        re.findall(r"^([\w-]+)==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    )
    version = re.search(
        r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE
    )[1]
    assert {
        cluster["rayVersion"] for document in RAY.values() for cluster in clusters(document)
    } == {constraints["ray"]}
    files = [
        REPOSITORY / "cluster.yaml",
        *JOBS.glob("docker/*"),
        *JOBS.glob("kubernetes/*"),
        *JOBS.glob("schedules/*"),
    ]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    assert set(re.findall(r"rayproject/ray:([\d.]+)", text)) == {constraints["ray"]}
    assert set(re.findall(r"ray\[default\]==([\d.]+)", text)) == {constraints["ray"]}
    assert set(re.findall(r"/modernbert-ray:([\d.]+)-cpu|/modernbert-ray:([\d.]+)-cuda", text)) == {
        (version, ""), ("", version),
    }  # fmt: skip


PLACEHOLDERS = (
    r"registry\.example\.com|your-bucket|192\.0\.2\.|123456789012|ami-0{17}|/opt/modernbert-ray"
)


@pytest.mark.parametrize(
    "file",
    [
        "cluster.yaml",
        "jobs/cluster.local.yaml",
        *(f"jobs/{d}/*" for d in ("kubernetes", "schedules")),
    ],
)
def test_what_users_must_change_is_marked(file):
    """A placeholder has "yours" on its line, or a little above it."""
    for path in filter(Path.is_file, REPOSITORY.glob(file)):
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            if re.search(PLACEHOLDERS, line) and not line.startswith("#"):
                assert any("yours" in near for near in lines[max(at - 9, 0) : at + 1]), (
                    f"{path.name}:{at + 1}: {line}"
                )


def test_the_dashboard_of_jobs_shows_metrics_that_ray_has():
    ray_folder = Path(ray.__file__).parent
    sources = ("data/_internal/stats.py", "dashboard/modules/reporter/reporter_agent.py")
    known = {
        name
        for source in sources
        for name in re.findall(r'"([a-z_]+)"', (ray_folder / source).read_text())
    }
    shown = set(re.findall(r"\bray_(\w+)", (REPOSITORY / "jobs/grafana-jobs.json").read_text()))
    # Those of the job itself are in integration/test_monitoring.py.
    shown = {name for name in shown if not name.startswith("modernbert_job_")}
    assert len(shown) >= 9
    assert shown <= known, shown - known

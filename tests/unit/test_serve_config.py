"""The service's configuration: what is understood, and the one line for what is not."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from pipelines.errors import UserError
from pipelines.serve.config import check_checkpoints, service_options
from pipelines.serve.deployment import build

REPOSITORY = Path(__file__).parents[2]


def entry(**options):
    return {
        "name": "intent",
        "task": "classify",
        "model": str(REPOSITORY / "jobs/demo/intent-classifier"),
        **options,
    }


def test_without_a_configuration_the_demos_are_served():
    options = service_options({})
    assert {model.name: model.task for model in options.models} == {
        "intent": "classify", "pii": "tag", "mask": "fill", "sentence": "embed",
    }  # fmt: skip
    check_checkpoints(options.models)


def test_the_sample_configuration_serves_the_demos(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (application,) = yaml.safe_load(Path("jobs/serve.yaml").read_text())["applications"]
    options = service_options(application["args"])
    assert [(model.name, model.task) for model in options.models] == [
        (model.name, model.task) for model in service_options({}).models
    ]
    check_checkpoints(options.models)
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"


def test_a_file_and_what_is_given_beside_it(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(
        yaml.safe_dump(
            {"one-process": False, "replicas": 2, "models": [entry(**{"max-length": 64})]}
        )
    )
    options = service_options(
        {"config": str(file), "one_process": "true"}
    )  # `serve run` gives strings
    assert (options.one_process, options.replicas, options.models[0].max_length) == (True, 2, 64)


def test_the_environment_of_jobs_does_not_reach_served_models(monkeypatch):
    monkeypatch.setenv("MODERNBERT_MAX_LENGTH", "7")
    assert service_options({"models": [entry()]}).models[0].max_length is None


def test_the_dashboard_shows_every_metric_and_no_other():
    message = (REPOSITORY / "pipelines/serve/metrics.py").read_text()
    shown = re.findall(
        r"\bray_(modernbert_\w+?)(?:_total|_bucket|_sum|_count)?\b(?!_)",
        (REPOSITORY / "jobs/grafana.json").read_text(),
    )
    assert set(shown) == set(re.findall(r'"(modernbert_\w+)"', message))
    assert len(set(shown)) == 17


MISTAKES = [
    ({"models": []}, "models is empty; name at least one"),
    ({"models": "intent"}, "models 'intent': must be a list, an entry a model"),
    (
        {"models": ["intent"]},
        r"models\[0\] is 'intent'; it must hold options as 'name: value' lines",
    ),
    (
        {"models": [entry(task="label")]},
        r"models\[0\]: task 'label' must be one of classify, zero_shot, tag, answer, fill, embed",
    ),
    ({"models": [entry(name="a b")]}, r"models\[0\]: name 'a b': String should match pattern"),
    (
        {"models": [entry(name="http")]},
        r"models\[0\]: the name 'http' is the HTTP side's own; choose another",
    ),
    (
        {"models": [entry(aliases=["a b"])]},
        r"models\[0\]: aliases.0 'a b': String should match pattern",
    ),
    (
        {"models": [entry(aliases=["intent"])]},
        "models: the alias 'intent' is another name or alias, too; each must",
    ),
    (
        {"models": [entry(aliases=["x/y", "x/y"])]},
        "models: the alias 'x/y' is another name or alias, too; each must",
    ),
    (
        {"models": [entry(openai_truncate=True)]},
        r"models\[0\]: openai_truncate is for embed, .* does classify",
    ),
    (
        {"models": [entry()], "http": {"max_inputs": 1 << 17}},
        "http.max_inputs 131072: must be less than or equal to",
    ),
    (
        {"models": [entry(), entry()]},
        "models: the name 'intent' is there 2 times; each must differ",
    ),
    ({"models": [entry(top=3)]}, r"models\[0\]: top is not an option"),
    ({"models": [entry(aggregation="simple")]}, r"models\[0\]: aggregation is not an option"),
    (
        {"models": [entry(top_k=0)]},
        r"models\[0\]: top_k 0: must be greater than or equal to 1|top_k 0: .*",
    ),
    (
        {"models": [entry(device="tpu")]},
        r"models\[0\]: device 'tpu': must be 'auto', 'cpu' or 'cuda'",
    ),
    ({"models": [{"name": "a", "task": "tag"}]}, r"models\[0\]: model is missing"),
    (
        {"models": [entry(replicas=4, max_replicas=2)]},
        r"models\[0\]: max_replicas 2 is below replicas 4",
    ),
    ({"http": {"max_body": 1}}, "http.max_body is not an option"),
    ({"replicas": "many"}, "replicas 'many': must be a valid integer"),
    ({"port": 80}, "port is not an option"),
    ({"config": "no/such.yaml"}, "--config no/such.yaml: .*No such file"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=lambda value: str(value)[:50])
def test_mistakes(given, message):
    with pytest.raises(UserError, match=f"^{message}") as wrong:
        service_options(given)
    assert len(str(wrong.value).splitlines()) == 1


NO_FIT = [
    (entry(model="no/such"), r"models\[0\] 'intent': model 'no/such' is not a folder"),
    (entry(task="tag"), r"models\[0\] 'intent': .*ForSequenceClassification: it fits classify"),
    (
        entry(revision="v2"),
        r"models\[0\] 'intent': revision 'v2' is for a repository .*, and model is a folder",
    ),
    (entry(top_k=9999), r"models\[0\] 'intent': top_k 9999 must be from 1 to the model's"),
    (entry(max_length=100_000), r"models\[0\] 'intent': max_length 100000 is above the model's"),
]


@pytest.mark.parametrize(("model", "message"), NO_FIT, ids=lambda value: str(value)[-50:])
def test_a_wrong_checkpoint_stops_the_command_with_one_line(model, message):
    """click prints a ClickException without a traceback."""
    with pytest.raises(click.ClickException, match=message) as wrong:
        build({"models": [model]})
    assert len(wrong.value.format_message().splitlines()) == 1


def test_a_gpu_that_is_nowhere(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # an earlier test may have joined one
    monkeypatch.setenv("RAY_ADDRESS", "local")
    model = entry(device="cuda")
    with pytest.raises(
        click.ClickException, match=r"^models\[0\] 'intent': device cuda, but there"
    ):
        build({"models": [model]})
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # another Ray, which may have some
    build({"models": [model]})

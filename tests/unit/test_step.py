"""A task as a step of a Ray Dataset, without Ray: mistakes in one line, every row with an answer or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from arrow_types import columns_of_every_type
from commands import LocalDataset

from pipelines import pipeline, processor
from pipelines.dataset import execution, stages, step_actors
from pipelines.dataset.stages import answer, tokenise
from pipelines.dataset.step_actors import StepActors, parse_concurrency, step_pool
from pipelines.errors import UserError
from pipelines.raydata import wire
from pipelines.raydata.actor import Predict

MODELS = Path(__file__).parents[2] / "jobs/demo"
CLASSIFIER = str(MODELS / "intent-classifier")
BAD_TEXTS: dict[bytes | None, str] = {
    None: "text is null",
    b"": "text is empty",
    b" \n": "text is empty",
    b"\xff\xfea": "text is not valid UTF-8",
    b"far too long a text": "longer than 18 characters",
}
GOOD_TEXTS = [b"hello", b"wake me up at 9", "wie geht's, 中文?".encode()]
BROKEN = "the device broke"


def strings(values: list[bytes | None]) -> pa.Array:
    """An array of strings that need not be valid UTF-8."""
    return pa.array(values, pa.binary()).view(pa.string())


def words(values: list[bytes | None]) -> pa.Array:
    """The same as a dictionary."""
    encoded = pa.array(values, pa.binary()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.view(pa.string()))


def as_bytes(values: list[bytes | None]) -> pa.Array:
    """The same as bytes."""
    return pa.array(values, pa.large_binary())


STORED = [strings, words, as_bytes]
"""How a column stores its texts."""


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    """cluster((cpus, gpus), …): the nodes of the Ray cluster, which no test joins; gpu_type: that of the first node."""

    def cluster(*nodes: tuple[int, int], fixed: bool = True, gpu_type: str | None = None) -> None:
        there = {"CPU": sum(cpus for cpus, _ in nodes), "GPU": sum(gpus for _, gpus in nodes)}
        alive = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
        if gpu_type is not None:
            alive[0]["Resources"][f"accelerator_type:{gpu_type}"] = 1
        monkeypatch.setattr("ray.nodes", lambda: alive)
        monkeypatch.setattr("ray.cluster_resources", lambda: there)
        monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 0.25})
        monkeypatch.setattr(step_actors, "wait_for_nodes", lambda: None)
        monkeypatch.setattr("pipelines.raydata.placement.cluster_resources", lambda: there)
        monkeypatch.setattr(execution, "cluster_resources", lambda: there)
        for module in (step_actors, execution):
            monkeypatch.setattr(module, "is_fixed", lambda: fixed)

    cluster((2, 0))
    return cluster


@pytest.fixture(scope="module")
def actor() -> Predict:
    """A model actor without its process."""
    return Predict(processor("classify", CLASSIFIER, device="cpu").step.run)


@pytest.mark.parametrize("outcome", ["answered", wire.RAISED, wire.NONE_ANSWERED, wire.START])
@pytest.mark.parametrize("seed", range(6))
def test_every_row_has_an_answer_or_a_reason(seed, outcome, actor, monkeypatch):
    """Whatever texts a batch holds, and whatever becomes of it."""
    monkeypatch.setattr(stages, "MAX_CHARACTERS", 18)
    dice = np.random.default_rng(seed)
    pool = [*BAD_TEXTS, *GOOD_TEXTS]
    texts = [pool[i] for i in dice.integers(0, len(pool), 3 * seed)]
    table = pa.table({"text": STORED[seed % 3](texts), "id": range(len(texts))})
    step = processor("classify", CLASSIFIER, device="cpu", long_documents="windows").step
    row = tokenise(step, table)
    predict = actor.predictor.predict

    def predict_nothing(input_ids: Any, cu_seqlens: Any, *others: Any) -> Any:
        if outcome == wire.RAISED:
            raise ValueError(f"{BROKEN}\nin two lines")
        predictions = predict(input_ids, cu_seqlens, *others)
        predictions.failed.update(dict.fromkeys(range(len(cu_seqlens) - 1), BROKEN))
        return predictions

    monkeypatch.setattr(actor, "has_answered", False)
    monkeypatch.setattr(actor, "_check_health", lambda *_: None)
    if outcome == wire.START:
        monkeypatch.setattr(actor, "start_error", f"{BROKEN}\nTraceback")
        with pytest.raises(RuntimeError, match=f"^no actor starts: {BROKEN}$"):
            answer(step, actor(row))
        return
    if outcome != "answered":
        monkeypatch.setattr(actor.predictor, "predict", predict_nothing)
    got = answer(step, actor(row))
    want = [BAD_TEXTS.get(text, None if outcome == "answered" else BROKEN) for text in texts]
    assert got["error"].to_pylist() == want
    assert got["id"].to_pylist() == table["id"].to_pylist()
    for name in ("label", "score", "n_tokens", "n_windows", "truncated"):
        assert [value is None for value in got[name].to_pylist()] == [
            reason is not None for reason in want
        ]
    assert got.schema == pa.schema([*table.schema, *step.columns.added])
    got.validate(full=True)
    if "text is not valid UTF-8" in want and STORED[seed % 3] is words:
        assert "\ufffd\ufffda" in got["text"].to_pylist()  # Arrow does not validate dictionaries


def test_columns_of_every_type_come_out_as_they_went_in():
    columns = columns_of_every_type(rows=6)
    table = pa.table({"text": strings([b"hello", None, b"\xff", b"", b"bye", b"hello"]), **columns})
    got = processor("classify", CLASSIFIER, batch_size=4)(LocalDataset(table)).table
    assert got["error"].to_pylist()[:4] == [
        None,
        "text is null",
        "text is not valid UTF-8",
        "text is empty",
    ]
    for name, column in columns.items():
        assert got[name].type == column.type, name
        assert got[name].to_pylist() == column.to_pylist(), name


@pytest.mark.parametrize(
    "name", ["shard", "given", "rows", "values", "splits", "cause", "Error", "rejects"]
)
def test_columns_may_have_the_names_of_what_travels_inside(name):
    table = pa.table({"text": ["hello", None], name: [1, 2]})
    got = processor("classify", CLASSIFIER, prefix="p_")(LocalDataset(table)).table
    assert got[name].to_pylist() == [1, 2]
    assert got["p_error"].to_pylist() == [None, "text is null"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["a"]}, "column 'text' is missing; the dataset has body"),
        (
            {"text": ["a"], "label": [1]},
            "column 'label' is in the dataset already; give prefix= or output_columns=, or rename it",
        ),
        (
            {"text": ["a"], "Label": [1]},
            "column 'Label' is in the dataset already (as 'label' for readers that ignore case); give prefix= or "
            "output_columns=, or rename it",
        ),
        (
            {"text": ["a"], "ERROR": [1]},
            "column 'ERROR' is in the dataset already (as 'error' for readers that ignore case); give prefix= or "
            "output_columns=, or rename it",
        ),
        (
            pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]),
            "column 'text' is in the dataset twice; rename or drop one",
        ),
        ({"text": [1]}, "column 'text' holds int64, not text; cast it, or name another"),
        (
            {"text": [["a"]]},
            "column 'text' holds list<item: string>, not text; cast it, or name another",
        ),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_columns_that_do_not_fit_are_told_in_one_line(table, message, known, monkeypatch):
    """When the step is made where the columns are known, else by the task that reads them first."""
    if not known:
        monkeypatch.setattr(LocalDataset, "schema", lambda *_, **__: None)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        processor("classify", CLASSIFIER)(LocalDataset(pa.table(table)))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pa.table({"text": ["a"]}), "a pyarrow.Table: make one with ray.data.from_arrow"),
        (pd.DataFrame({"text": ["a"]}), "a pandas.DataFrame: make one with ray.data.from_pandas"),
        (["a"], "a builtins.list: make one with ray.data.from_items"),
        ("a", "a builtins.str: make one with ray.data.from_items"),
    ],
)
def test_what_is_no_dataset_is_told_how_to_become_one(given, message):
    message = f"a step takes a Dataset of Ray, not {message}; for texts in memory there is pipelines.pipeline"
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        processor("classify", CLASSIFIER)(given)
    assert str(raised.value) == message


ALLOWED = "must be a number from 1 on, (MIN, MAX) or 'auto'"
SHARE = (
    "must be above 0 and at most 1: an actor runs on one GPU or a share of it (concurrency= says how many there are; "
    'device="cpu" is for CPUs)'
)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ((), {"concurrency": "many"}, f"concurrency 'many' {ALLOWED}"),
        ((), {"concurrency": "3"}, f"concurrency '3' {ALLOWED}"),
        ((), {"concurrency": None}, f"concurrency None {ALLOWED}"),
        ((), {"concurrency": 0}, f"concurrency 0 {ALLOWED}"),
        ((), {"concurrency": -1}, f"concurrency -1 {ALLOWED}"),
        ((), {"concurrency": True}, f"concurrency True {ALLOWED}"),
        ((), {"concurrency": 1.5}, f"concurrency 1.5 {ALLOWED}"),
        ((), {"concurrency": (2,)}, f"concurrency (2,) {ALLOWED}"),
        ((), {"concurrency": (0, 1)}, f"concurrency (0, 1) {ALLOWED}"),
        ((), {"concurrency": (1, 2, 3)}, f"concurrency (1, 2, 3) {ALLOWED}"),
        ((), {"concurrency": (4, 2)}, "concurrency (4, 2): MIN 4 is above MAX 2"),
        ((), {"num_gpus": 0}, f"num_gpus 0 {SHARE}"),
        ((), {"num_gpus": 2}, f"num_gpus 2 {SHARE}"),
        ((), {"num_gpus": True}, f"num_gpus True {SHARE}"),
        ((), {"num_gpus": "0.5"}, f"num_gpus '0.5' {SHARE}"),
        (
            (),
            {"num_gpus": 0.5, "device": "cpu"},
            'num_gpus 0.5 is for GPUs, and device is "cpu": leave one of them out',
        ),
        (
            (),
            {"accelerator_type": "L4", "device": "cpu"},
            "accelerator_type 'L4' is for GPUs, and device is \"cpu\": leave one of them out",
        ),
        (
            (),
            {"accelerator_type": 4},
            "accelerator_type 4 must be a type of GPU in Ray's words, as 'L4'",
        ),
        (
            (),
            {"runtime_env": "env.yaml"},
            'runtime_env is a str and must be a dictionary, as {"env_vars": {"HF_HOME": "/models"}}',
        ),
        ((), {"runtime_env": {"pipp": []}}, "runtime_env has 'pipp'; Ray takes conda, config, "),
        ((), {"runtime_env": {"pip": 5}}, "runtime_env: TypeError: runtime_env['pip'] must be "),
        ((), {"actors": 1}, "actors is not an option of a step: concurrency= says how many"),
        ((), {"batch_rows": 1}, "batch_rows is not an option of a step: batch_size= says how many"),
        ((), {"num_cpus": 1}, "num_cpus is not an option of a step: actors share the CPUs; "),
        (
            (),
            {"columns": ["text"]},
            "columns is not an option of a step: name the columns after the model, one by one",
        ),
        ((["text"],), {}, "column ['text'] must be a name; give several one by one: 'a', 'b'"),
        (
            ("a",),
            {"text_column": "a"},
            "text_column and 'a' both name columns: give the columns in one way",
        ),
        (("a", "b", "c"), {}, "classify takes 1 or 2 columns of texts, not 3"),
        ((), {"batch_size": 0}, "batch_size 0 must be a whole number above 0, and at "),
        ((), {"batch_size": "8"}, "batch_size '8' must be a whole number above 0"),
        (
            (),
            {"batch_size": 10**30},
            f"batch_size {10**30} must be a whole number above 0, and at ",
        ),
        ((), {"batch_timeout_s": float("inf")}, "batch_timeout_s inf must be a number above 0, "),
        ((), {"model": 5}, "model 5 must be a folder, a Hugging Face hub id or a URI of "),
        ((), {"model": ""}, "model '' must be a folder, a Hugging Face hub id or a URI of "),
        ((), {"batch_timeout_s": 0}, "batch_timeout_s 0 must be a number above 0"),
        ((), {"prefix": None}, "prefix None must be a text"),
        (
            (),
            {"output_columns": ["label"]},
            "output_columns ['label'] must be a mapping, as {'label': 'my_label'}",
        ),
        (
            (),
            {"output_columns": {"labels": "a"}},
            "output_columns names 'labels', which classify does not add; it adds label, score, n_tokens, n_windows, "
            "truncated, error",
        ),
        (
            (),
            {"output_columns": {"label": ""}},
            "output_columns 'label': '' must be a name, as {'label': 'my_label'}",
        ),
        (
            (),
            {"output_columns": {"label": "Score"}},
            "two output columns would be called 'score': give each a name of its own in output_columns",
        ),
        (
            (),
            {"function_to_apply": "none", "function": "none"},
            "function_to_apply and function are two names of one",
        ),
        (
            (),
            {"function_to_apply": "relu"},
            "function 'relu': must be 'softmax', 'sigmoid' or 'none'",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line_when_the_step_is_made(columns, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        processor("classify", *[options.pop("model", CLASSIFIER), *columns], **options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_numbers_may_be_numpys():
    step = processor("classify", CLASSIFIER, batch_size=np.int64(1), batch_timeout_s=np.float32(9))
    assert len(step(LocalDataset(pa.table({"text": ["hello", "bye"]}))).table) == 2


def test_names_of_transformers_and_of_the_job_are_taken():
    step = processor(
        "text-classification", Path(CLASSIFIER), text_column="body", function_to_apply="SIGMOID"
    )
    texts = ["hello", "wake me up at nine"]
    got = step(LocalDataset(pa.table({"body": texts}))).table
    want = pipeline("classify", CLASSIFIER, function="sigmoid")(texts)
    assert got["label"].to_pylist() == [each["label"] for each in want]
    np.testing.assert_allclose(got["score"].to_numpy(), [each["score"] for each in want], rtol=1e-6)


def test_output_columns_have_the_names_that_they_are_given():
    table = pa.table({"text": ["hello", None], "label": ["gold", "gold"]})
    names = {"label": "topic", "error": "reason"}
    step = processor("classify", CLASSIFIER, prefix="p_", output_columns=names)
    got = step(LocalDataset(table)).table
    assert got.column_names == [
        *("text", "label", "topic", "p_score", "p_n_tokens", "p_n_windows", "p_truncated", "reason")
    ]
    plain = processor("classify", CLASSIFIER)(LocalDataset(table.select(["text"]))).table
    assert got["topic"].to_pylist() == plain["label"].to_pylist()
    assert got["reason"].to_pylist() == [None, "text is null"]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("auto", (1, None)), (1, (1, 1)), (3, (1, 3)), (np.int64(3), (1, 3)), ((2, 3), (2, 3)),
        ([2, 3], (2, 3)), ((4, 4), (4, 4)),
    ],
)  # fmt: skip
def test_actors_are_asked_for_as_in_ray(given, counts):
    assert parse_concurrency(given) == counts


@pytest.mark.parametrize("seed", range(200))
def test_steps_leave_a_whole_core_to_what_reads(seed, cluster):
    """Whatever the cluster, and whatever the least actors: those of eight steps are no reason to wait for ever."""
    dice = np.random.default_rng(seed)
    nodes = [
        (int(dice.integers(1, 65)), int(dice.integers(0, 3))) for _ in range(dice.integers(1, 6))
    ]
    cluster(*nodes)
    cpus, gpus = (sum(node[i] for node in nodes) for i in (0, 1))
    device = "cuda" if gpus and seed % 2 else "cpu"
    there = gpus if device == "cuda" else cpus
    least = int(dice.integers(1, there + 1))
    actors, reserved = step_pool(StepActors(least, None), device)
    assert actors == (least, there)
    assert 0 <= reserved["num_cpus"] <= 1
    assert 8 * least * reserved["num_cpus"] <= max(node[0] for node in nodes) - 1
    assert reserved.get("num_gpus") == (None if device == "cpu" else 1 if gpus > 1 else 1 / 8)
    with pytest.raises(
        UserError, match=f"^{there + 1:,} actors need a [CG]PU each; the Ray cluster has "
    ):
        step_pool(StepActors(there + 1, None), device)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.5, 1 / 3, 0.3, 0.25, 0.1, 0.001])
def test_as_many_actors_share_a_gpu_as_ray_places_there(share, cluster):
    cluster((64, 2), (64, 1), (64, 0))
    places = 0
    for _ in range(3):  # a GPU after the other: no actor runs on two
        left = 1.0
        while left + 1e-9 >= share:
            left -= share
            places += 1
    actors, reserved = step_pool(StepActors(1, None, num_gpus=share), "cuda")
    assert (actors, reserved["num_gpus"]) == ((1, places), share)
    assert step_pool(StepActors(places, places, num_gpus=share), "cuda")[0] == (places, places)
    with pytest.raises(UserError, match=f"; .*: give at most {places:,}$"):
        step_pool(StepActors(places + 1, None, num_gpus=share), "cuda")


def test_a_type_of_gpu_is_that_of_some_nodes(cluster):
    cluster((8, 2), (64, 8), gpu_type="L4")
    actors, reserved = step_pool(StepActors(1, None, accelerator_type="L4"), "cuda")
    assert actors == (1, 2)
    assert reserved["accelerator_type"] == "L4"
    with pytest.raises(UserError) as raised:
        step_pool(StepActors(1, None, accelerator_type="H100"), "cuda")
    assert str(raised.value) == (
        "accelerator_type 'H100' is on no node of the Ray cluster, which has L4"
    )
    with pytest.raises(
        UserError, match=r"^5 actors need 0\.5 of a GPU of type L4 each; .* at most 4$"
    ):
        step_pool(StepActors(5, 5, 0.5, "L4"), "cuda")


def test_a_step_tells_what_its_cluster_has(cluster):
    cluster((8, 1), (8, 1), (0, 0))
    with pytest.raises(UserError) as raised:
        step_pool(StepActors(3, 3), "cuda")
    assert str(raised.value) == (
        "3 actors need a GPU each; the Ray cluster has 16 CPUs and 2 GPUs (2 nodes of 8 CPUs and 1 GPU, 1 node of 0 "
        "CPUs): give at most 2, or num_gpus=, the share of a GPU that each takes"
    )


def test_an_autoscaler_sees_what_actors_take(cluster):
    cluster((2, 0), fixed=False)
    assert step_pool(StepActors(2, 64), "cpu") == ((2, 64), {"num_cpus": 0.9})
    assert step_pool(StepActors(1, None, 0.5, "H100"), "cuda") == (
        (1, None),
        {"num_cpus": 1.0, "num_gpus": 0.5, "accelerator_type": "H100"},
    )


@pytest.mark.parametrize(
    ("rows", "concurrency", "batches"),
    [(600, 1, [512, 88]), (600, 2, [300, 300]), (3, 2, [2, 1]), (600, "auto", [300, 300])],
)
def test_a_small_dataset_has_a_batch_for_each_actor(rows, concurrency, batches, monkeypatch):
    seen: list[int] = []
    tokenise_batch = stages.tokenise

    def count(step, table):
        seen.append(len(table))
        return tokenise_batch(step, table)

    monkeypatch.setattr("pipelines.dataset.processor.tokenise", count)
    step = processor("classify", CLASSIFIER, concurrency=concurrency)
    step(LocalDataset(pa.table({"text": ["hello"] * rows})))
    assert seen == batches

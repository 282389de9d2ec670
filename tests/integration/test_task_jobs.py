"""The corpus jobs of all tasks: answers as in memory, every row once, long documents, bad rows, wrong models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import deltalake
import httpx
import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
from checkpoints import write_checkpoint, write_gliclass, write_multi_vector, write_tokenizer
from commands import LocalDataset, run_job, run_script
from conftest import REPOSITORY, SOAK, readme_block
from online_service import serving
from predictions import assert_close

from pipelines import pipeline, processor, run_corpus
from pipelines.options import TASKS
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

NLI = ["contradiction", "neutral", "entailment"]
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("ModernBertForSequenceClassification", {"num_labels": 3}),
    "tag": (
        "ModernBertForTokenClassification",
        {"id2label": dict(enumerate(BIO)), "label2id": {label: i for i, label in enumerate(BIO)}},
    ),
    "answer": ("ModernBertForQuestionAnswering", {}),
    "fill": ("ModernBertForMaskedLM", {}),
    "embed": ("ModernBertModel", {}),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}),
    "zero_shot": (
        "ModernBertForSequenceClassification",
        {"id2label": dict(enumerate(NLI)), "label2id": {label: i for i, label in enumerate(NLI)}},
    ),
    "sparse": ("ModernBertForMaskedLM", {}),
    "multi_vector": ("MultiVectorEncoder", {}),
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}
WORDS = [
    "the",
    "cat",
    "sat",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "👍🏽",
    "\r\n",
    "中文",
    "[SEP]",
    "mat.",
    "(on)",
]
ROWS, NULL, EMPTY, NO_MASK, LONG = 60, 4, 5, 6, 7
COLUMNS = {"answer": {"context_column": "text"}, "fill": {"text_column": "masked"},
           "rerank": {"query_column": "question", "passage_column": "text"}}  # fmt: skip

FORMS = {"gliclass": "zero_shot"}
"""Other forms of checkpoints, and the task that runs them."""
LABELS = {"labels": ["cat", "the mat", "politics"]}
OPTIONS = {"zero_shot": LABELS, "gliclass": LABELS}
"""What a task needs to be told."""
WINDOWS = {"zero_shot": 3}
"""The windows of a document that is cut off, where that is not one: a window for each label."""
ON_RAY = set(MODELS) if SOAK else {"answer", "embed"}
"""Of two texts, and of one with lists in a column: their jobs run on Ray, the stages of the others without."""
STEPS_ON_RAY = set(MODELS) if SOAK else {"answer"}
"""As above; what a step of embed gives on Ray is compared with memory where it stands between two tables."""
STEP_COLUMNS = {"answer": ("question", "text"), "fill": ("masked",), "rerank": ("question", "text")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (architecture, settings) in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        if name == "multi_vector":
            folders[name] = write_multi_vector(folders[name])
            continue
        write_checkpoint(folders[name], architecture=architecture, heat=1.5, **SMALL, **settings)
        write_tokenizer(folders[name])
    folders["gliclass"] = write_gliclass(
        tmp_path_factory.mktemp("gliclass"), prompt_first=True, normalize_features=True
    )
    return folders


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 300 words and one of more than 100,000 tokens; masked texts, questions, and rows that hold none."""
    dice = np.random.default_rng(0)
    texts: list[str | None] = [
        " ".join(dice.choice(WORDS, size=n)) for n in dice.integers(1, 150, ROWS)
    ]
    texts[LONG] = "the cat sat on the mat and " * 15_000
    masked = [f"the [MASK] sat {text} [MASK]" for text in texts]
    masked[LONG] = f"the [MASK] sat {texts[LONG]} then the [MASK]"
    questions: list[str | None] = [
        " ".join(dice.choice(WORDS[:3], size=2)) + "?" for _ in range(ROWS)
    ]
    texts = [f"{text} and the other cat sat there too" for text in texts]
    texts[NULL], masked[NULL], texts[EMPTY], questions[EMPTY], masked[NO_MASK] = (
        None,
        "\t",
        " ",
        "",
        "no mask",
    )
    file = tmp_path_factory.mktemp("corpus") / "in.parquet"
    columns = {"id": range(ROWS), "text": texts, "masked": masked, "question": questions}
    pq.write_table(pa.table(columns), file, row_group_size=25)
    return file


def run(task: str, corpus: Path, model: Path, output: Path, **options: Any) -> int:
    return run_job(
        FORMS.get(task, task),
        input=corpus,
        model=model,
        output=output,
        **COLUMNS.get(task, {}) | OPTIONS.get(task, {}) | options,
    )


def in_memory(task: str, model: Path, rows: list[dict[str, Any]], **options: Any) -> list[Any]:
    """What `pipeline` says of the same rows, in the columns of the job."""
    more = {"aggregation": "simple"} if task == "tag" else OPTIONS.get(task, {})
    pipe = pipeline(FORMS.get(task, task), str(model), **more, **options)
    if task in ("answer", "rerank"):
        documents = [(row["question"], row["text"]) for row in rows]
    else:
        documents = [row["masked" if task == "fill" else "text"] for row in rows]
    result, failed = pipe.predictor.answer(documents, pipe.task({}))
    assert not failed
    return pipe.task({}).decode(result).to_pylist()


BAD = {
    "classify": {NULL: "text is null", EMPTY: "text is empty"},
    "tag": {NULL: "text is null", EMPTY: "text is empty"},
    "answer": {NULL: "context is null", EMPTY: "question is empty"},
    "fill": {NULL: "text is empty", NO_MASK: "text has no [MASK]"},
    "embed": {NULL: "text is null", EMPTY: "text is empty"},
    "rerank": {NULL: "passage is null", EMPTY: "query is empty"},
    **{
        task: {NULL: "text is null", EMPTY: "text is empty"}
        for task in ("zero_shot", "gliclass", "sparse", "multi_vector")
    },
}


CHUNK = 20
"""Texts in a request."""


def over_http(
    task: str, model: Path, rows: list[dict[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    """What HTTP says of the same rows, in the columns of the job that its replies have."""
    name = FORMS.get(task, task)
    entry = {"name": "model", "task": name, "model": str(model), **OPTIONS.get(task, {}), **options}
    models = LocalModelClient(served_models([entry]))
    with serving(models) as url, httpx.Client(base_url=url, timeout=120) as client:

        def ask(path: str, body: dict[str, Any]) -> Any:
            reply = client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()

        chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
        got = [answer for chunk in chunks for answer in HTTP[name](ask, chunk)]
    models.close()
    return got


def _texts(rows: list[dict[str, Any]], column: str = "text") -> dict[str, Any]:
    return {"inputs": [row[column] for row in rows]}


def _classify(ask, rows):
    return [
        answer[0] for answer in ask("/models/model", _texts(rows) | {"parameters": {"top_k": 1}})
    ]


def _tag(ask, rows):
    names = {
        "label": "entity_group",
        "score": "score",
        "start": "start",
        "end": "end",
    }  # "word" is decoded tokens
    found = ask("/models/model", _texts(rows))
    return [
        {"entities": [{name: each[key] for name, key in names.items()} for each in row]}
        for row in found
    ]


def _answer(ask, rows):
    return ask(
        "/models/model",
        {"inputs": [{"question": row["question"], "context": row["text"]} for row in rows]},
    )


def _fill(ask, rows):
    names = {"token_id": "token", "score": "score"}
    found = ask("/models/model", _texts(rows, "masked"))
    masks = [
        row if isinstance(row[0], list) else [row] for row in found
    ]  # a text with one mask has no list of masks
    return [
        {
            "fills": [
                [{name: each[key] for name, key in names.items()} for each in mask] for mask in row
            ]
        }
        for row in masks
    ]


def _embed(ask, rows):
    found = ask("/models/model", _texts(rows) | {"normalize": False})
    return [{"embedding": vector} for vector in found]


def _rerank(ask, rows):
    return [ask("/rerank", {"query": row["question"], "texts": [row["text"]]})[0] for row in rows]


def _zero_shot(ask, rows):
    found = ask("/models/model", _texts(rows))
    columns = [
        {f"{name}s": [each[name] for each in row] for name in ("label", "score")} for row in found
    ]
    return [each | {"label": each["labels"][0], "score": each["scores"][0]} for each in columns]


def _sparse(ask, rows):
    names = {"token_id": "index", "weight": "value"}
    found = ask("/embed_sparse", _texts(rows))
    return [
        {"sparse": [{name: each[key] for name, key in names.items()} for each in row]}
        for row in found
    ]


def _multi_vector(ask, rows):
    found = ask("/v1/multi-vector", {"input": _texts(rows)["inputs"]})["data"]
    return [{"vectors": each["embeddings"]} for each in found]


HTTP = {
    "classify": _classify,
    "tag": _tag,
    "answer": _answer,
    "fill": _fill,
    "embed": _embed,
    "rerank": _rerank,
    "zero_shot": _zero_shot,
    "sparse": _sparse,
    "multi_vector": _multi_vector,
}


def test_every_task_is_compared_in_all_faces():
    assert set(MODELS) == set(HTTP) == {name for name, options in TASKS.items() if options.online}


def assert_http_as_the_job(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    """Each answer has the values of the columns of the job, which stores numbers as float32."""
    for one, other in zip(got, want, strict=True):
        assert one.keys() & other.keys(), (one, other)
        assert_close(_common(one, other), _common(other, one), tolerance=1e-7)


def _common(one: Any, other: Any) -> Any:
    """`one` without the keys that `other` lacks, at any depth."""
    if isinstance(one, dict):
        return {name: _common(value, other[name]) for name, value in one.items() if name in other}
    if isinstance(one, list) and len(one) == len(other):
        return [_common(mine, theirs) for mine, theirs in zip(one, other, strict=True)]
    return one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "long_documents"),
    [(task, "truncate") for task in (*MODELS, *FORMS)]
    + [(task, "windows") for task in (*MODELS, *FORMS) if task != "multi_vector"],
)
def test_a_job_answers_as_memory_does(
    task, long_documents, corpus, models, local_ray, tmp_path, request
):
    """Bit for bit on one machine, with a document of 100,000 tokens, whatever the packs: the CPU path's promise.

    So do a step of a Ray Dataset and HTTP, for documents that are truncated. Those that are not need no Ray.
    """
    if long_documents == "windows" or task not in ON_RAY:
        request.getfixturevalue("in_process")
    options = {"long_documents": long_documents, "max_length": 512}
    assert run(task, corpus, models[task], tmp_path / "out", **options) == 0
    got, rejected = (
        ds.dataset(tmp_path / "out").to_table(),
        pq.read_table(tmp_path / "out" / "_rejected"),
    )
    assert (
        dict(zip(rejected["id"].to_pylist(), rejected["_reason"].to_pylist(), strict=True))
        == BAD[task]
    )
    assert got["id"].to_pylist() == [i for i in range(ROWS) if i not in BAD[task]]
    names = [name for name in got.column_names if name not in ("id", "text", "masked", "question")]
    assert names[-3:] == ["n_tokens", "n_windows", "truncated"]
    rows = got.to_pylist()
    want = in_memory(task, models[task], rows, **options)
    assert [{name: row[name] for name in names[:-3]} for row in rows] == want
    long = next(row for row in rows if row["id"] == LONG)
    if long_documents == "truncate":
        windows = WINDOWS.get(task, 1)
        assert (long["n_windows"], long["truncated"]) == (windows, True)
        assert 490 < long["n_tokens"] <= 512  # zero_shot leaves room for its hypotheses
        assert {row["n_windows"] for row in rows} == {windows}
        options |= OPTIONS.get(task, {})
        step = processor(
            FORMS.get(task, task),
            str(models[task]),
            *STEP_COLUMNS.get(task, ()),
            batch_size=16,
            **options,
        )
        if task in STEPS_ON_RAY:
            dataset = step(
                ray.data.read_parquet(str(corpus)).map_batches(
                    lambda table: table, batch_format="pyarrow"
                )
            )
        else:
            dataset = step(LocalDataset(pq.read_table(corpus)))
        assert_as_the_job(list(dataset.iter_batches(batch_format="pyarrow")), rows, BAD[task])
        short = [i for i, row in enumerate(rows) if row["id"] != LONG]
        got = over_http(task, models[task], [rows[i] for i in short], **options)
        assert_http_as_the_job(got, [want[i] for i in short])
    else:
        assert long["n_tokens"] > 100_000
        assert long["n_windows"] > 200
        assert not any(got["truncated"].to_pylist())


def assert_as_the_job(
    batches: list[pa.Table], rows: list[dict[str, Any]], bad: dict[int, str]
) -> None:
    """Every row of the dataset is there, with the job's answer or the job's reason."""
    answered = {row["id"]: row for row in rows}
    got = sorted(pa.concat_tables(batches).to_pylist(), key=lambda row: row["id"])
    assert [row["id"] for row in got] == list(range(ROWS))
    for row in got:
        assert row.pop("error") == bad.get(row["id"])
        if row["id"] in answered:
            assert row == answered[row["id"]]
        else:
            assert {row[name] for name in ("n_tokens", "n_windows", "truncated")} == {None}


def test_a_step_with_a_mistake_is_refused_before_anything_runs(models, local_ray):
    model = str(models["classify"])
    for options, message in (
        ({"top": 3}, "top is not an option; there are model, "),
        ({"device": "tpu"}, "device 'tpu': "),
        ({"top_k": 0}, "top_k 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"dtype": "float8"}, "dtype float8 is for GPUs"),
    ):
        with pytest.raises(ValueError, match=message):
            processor("classify", model, **options)
    with pytest.raises(ValueError, match="answer takes 2 columns of texts, not 1"):
        processor("answer", str(models["answer"]), "text")
    with pytest.raises(ValueError, match="it fits classify"):
        processor("tag", model)
    dataset = LocalDataset(pa.table({"body": ["the cat"], "label": [1]}))
    with pytest.raises(ValueError, match="column 'text' is missing; the dataset has body, label"):
        processor("classify", model)(dataset)
    with pytest.raises(ValueError, match="column 'label' is in the dataset already; give prefix="):
        processor("classify", model, "body")(dataset)
    (row,) = processor("classify", model, "body", prefix="p_")(dataset).table.to_pylist()
    assert (row["label"], row["p_label"], row["p_error"]) == (1, row["p_label"], None)
    assert row["p_label"].startswith("LABEL_")


@pytest.mark.slow
def test_the_example_of_a_job_in_python_runs(local_ray, in_process, tmp_path, monkeypatch, capfd):
    block = readme_block("run-corpus", "pipelines/README.md").replace(
        "labelled/", f"{tmp_path}/labelled/"
    )
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, Any] = {}
    exec(block, names)
    assert "1000 994 6 {}" in capfd.readouterr().out
    done, sure = names["done"], names["sure"].to_pandas()
    assert (done.outcome, done.dataset().count(), done.rejects().count()) == ("complete", 994, 6)
    assert 0 < len(sure) < 994
    assert sure["score"].min() > 0.9
    assert set(done.rejects().to_pandas()["_reason"]) >= {"text is null", "text is empty"}
    with pytest.raises(ValueError, match="top is not an option; there are "):
        run_corpus("classify", input="a", output="b", model="c", top=3)
    with pytest.raises(ValueError, match="actors 'many': "):
        run_corpus("classify", input="a", output="b", model="c", actors="many")
    with pytest.raises(ValueError, match="task 'label' is unknown"):
        run_corpus("label", input="a", output="b", model="c")


def test_the_example_of_a_step_runs(local_ray, tmp_path, monkeypatch):
    block = readme_block("processor", "pipelines/README.md").replace(
        "vectors/", f"{tmp_path}/vectors/"
    )
    monkeypatch.chdir(REPOSITORY)
    exec(block, {})
    vectors = ds.dataset(tmp_path / "vectors").to_table()
    assert len(vectors) == 300
    assert vectors["error"].null_count == 297  # three messages hold no text
    assert vectors["embedding"].type == pa.list_(pa.float32(), 32)


@pytest.mark.slow
def test_a_step_between_tables_of_delta_and_lance(local_ray, tmp_path):
    """Any source and sink of Ray Data composes: rows of a Delta table become a Lance dataset and a Delta table.

    The vectors are those of memory, bit for bit.
    """
    rows = pq.read_table(REPOSITORY / "jobs/demo/messages.parquet").slice(0, 40)
    deltalake.write_deltalake(str(tmp_path / "delta"), rows)
    model = str(REPOSITORY / "jobs/demo/sentence-encoder")
    step = processor("embed", model, "text", dimensions=8)
    embedded = step(ray.data.read_delta(str(tmp_path / "delta"))).materialize()
    embedded.write_lance(str(tmp_path / "lance"))
    embedded.write_delta(str(tmp_path / "out"))
    want = pipeline("embed", model, dimensions=8)([text or "" for text in rows["text"].to_pylist()])
    for table in (
        lance.dataset(tmp_path / "lance").to_table(),
        deltalake.DeltaTable(tmp_path / "out").to_pyarrow_table(),
    ):
        got = {row["text"]: row for row in table.to_pylist()}
        assert set(got) == set(rows["text"].to_pylist())
        for text, vector in zip(rows["text"].to_pylist(), want, strict=True):
            if text and text.strip():
                assert got[text]["embedding"] == [float(value) for value in vector]
            else:
                assert got[text]["error"] in ("text is null", "text is empty")


@pytest.mark.slow
def test_the_types_of_columns(corpus, models, in_process, tmp_path):
    limited = {"limit": 20, "max_length": 64, "long_documents": "truncate"}
    assert (
        run(
            "embed",
            corpus,
            models["embed"],
            tmp_path / "half",
            precision="float16",
            dimensions=16,
            **limited,
        )
        == 0
    )
    assert run("answer", corpus, models["answer"], tmp_path / "answers", top_k=3, **limited) == 0
    assert (
        run(
            "tag",
            corpus,
            models["tag"],
            tmp_path / "tags",
            aggregation="first",
            output_prefix="p_",
            **limited,
        )
        == 0
    )
    embedding = ds.dataset(tmp_path / "half").schema.field("embedding").type
    assert embedding == pa.list_(pa.float16(), 16)
    answers = ds.dataset(tmp_path / "answers").to_table()
    assert answers["answers"].type.value_type.field("start").type == pa.int32()
    for row in answers.to_pylist():
        assert row["answer"] == row["text"][row["start"] : row["end"]]
        assert row["answers"][0] == {
            name: row[name] for name in ("answer", "score", "start", "end")
        }
        assert [a["score"] for a in row["answers"]] == sorted(
            (a["score"] for a in row["answers"]), reverse=True
        )
    tags = ds.dataset(tmp_path / "tags").to_table()
    assert tags["p_entities"].type.value_type.names == ["label", "score", "start", "end", "text"]
    for row in tags.to_pylist():
        assert all(e["text"] == row["text"][e["start"] : e["end"]] for e in row["p_entities"])


@pytest.mark.parametrize(
    ("job", "model", "message"),
    [
        ("tag", "classify", "is a ModernBertForSequenceClassification: it fits classify"),
        ("classify", "tag", "is a ModernBertForTokenClassification: it fits tag; classify runs a"),
        (
            "fill_mask",
            "embed",
            "is a ModernBertModel: it fits embed; fill runs a ModernBertForMaskedLM",
        ),
        ("answer", "fill", "is a ModernBertForMaskedLM: it fits fill (or embed)"),
        ("rerank", "classify", "has 3 labels: it fits classify; rerank runs a"),
    ],
)
def test_a_model_of_another_kind_stops_the_job_with_the_task_that_it_fits(
    job, model, message, models, corpus, tmp_path
):
    columns = COLUMNS.get(job.removesuffix("_mask"), {})
    named = {"input": corpus, "model": models[model], "output": "out", **columns}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    done = run_script(f"jobs/{job}_corpus.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "job", sorted(file.name for file in (REPOSITORY / "jobs").glob("*_corpus.py"))
)
def test_every_job_tells_a_mistake_in_one_line_and_exits_with_2(job, tmp_path):
    """One of them in a process of its own, as a user runs it: the scripts differ by a name."""
    model = "classify=x" if job == "several_corpus.py" else "x"
    arguments = ["--input", "nothing", "--output", "out", "--model", model]
    if SOAK or job == "rerank_corpus.py":
        command = [sys.executable, REPOSITORY / "jobs" / job, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    else:
        done = run_script(f"jobs/{job}", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: --input 'nothing' does not exist\n",
    )

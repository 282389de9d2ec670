"""A checkpoint, once loaded, never looks at its folder again; a process that loads another one than it should refuses.

Each form of checkpoint is loaded, then all its files are touched, replaced, half written and removed, in memory, online
and in a job's actor: answers stay the same, bit by bit.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import change_json, write_gliclass, write_multi_vector, write_task
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from modernbert.checkpoint import read_tensors
from modernbert.encoders.module_files import open_folder
from modernbert.files import fingerprint
from modernbert.linear import Linear
from modernbert.stored import CheckpointChanged, CheckpointError, StoredTensor, read_header
from pipelines import checkpoints, pipeline
from pipelines.checkpoints import Checkpoint
from pipelines.inference import predictor
from pipelines.inference.documents import encode
from pipelines.inference.loading import resolve_run
from pipelines.input.shards import Shard
from pipelines.model_options import model_options
from pipelines.raydata import wire
from pipelines.raydata.actor import Predict
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import PredictRequest
from pipelines.tasks.base import task_class

TEXTS = ["the cat sat on the mat", "and then the other cat"]
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def write_sentence(folder: Path) -> None:
    """An encoder with pooling, a dense layer and a layer norm, and a prompt."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    plain = write_task(folder.parent / "plain", "ModernBertModel", **SMALL)
    modules = [Transformer(str(plain)), Pooling(64, "mean"), Dense(64, 32), LayerNorm(32)]
    prompts = {"query": "the cat: ", "other": "on the mat "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder))


def write_reranker(folder: Path) -> None:
    """A cross-encoder of modules."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain = write_task(folder.parent / "plain", "ModernBertModel", **SMALL)
    last = Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    CrossEncoder(
        modules=[Transformer(str(plain)), Pooling(64, "cls"), last], device="cpu"
    ).save_pretrained(str(folder))


def write_static(folder: Path) -> None:
    """A sparse encoder with a Router, whose queries have weights without inference."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    plain = write_task(folder.parent / "plain", "ModernBertForMaskedLM", **SMALL)
    transformer = Transformer(str(plain), transformer_task="fill-mask")
    weights = torch.rand(
        len(transformer.tokenizer.get_vocab()), generator=torch.Generator().manual_seed(1)
    )
    queries = [SparseStaticEmbedding(transformer.tokenizer, weights)]
    modules = [Router.for_query_document(queries, [transformer, SpladePooling("max")])]
    SparseEncoder(modules=modules, device="cpu").save(str(folder))


def write_colbert(folder: Path) -> None:
    shutil.move(write_multi_vector(folder.parent / "parts"), folder)


def write_stanford(folder: Path) -> None:
    """A ColBERT as Stanford's library writes it: the last layer lies beside the encoder's weights."""
    write_task(folder, "ModernBertModel", **SMALL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    weights = {
        f"model.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()
    }
    weights["linear.weight"] = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 16, "doc_maxlen": 50}))


def write_adapter(folder: Path) -> None:
    """A classifier by PEFT, with its base in a folder beneath it."""
    import peft
    from transformers import AutoModelForSequenceClassification

    base = write_task(folder / "base", "ModernBertForMaskedLM", **SMALL)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4)
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["Wqkv"], init_lora_weights=False
    )
    peft.get_peft_model(model, settings).save_pretrained(folder)


def write_sharded(folder: Path) -> None:
    """A classifier in two files with an index."""
    from modernbert import ModernBertForSequenceClassification

    write_task(folder, "ModernBertForSequenceClassification", **SMALL, labels=[*"abcd"])
    model = ModernBertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=120_000)
    assert len(list(folder.glob("*.safetensors"))) > 1


def head(name: str, **config: object) -> Callable[[Path], object]:
    return lambda folder: write_task(folder, f"ModernBertFor{name}", **SMALL, **config)


FORMS: dict[str, tuple[Callable[[Path], object], str, list[dict]]] = {
    "classify": (
        head("SequenceClassification", labels=[*"abcd"]),
        "classify",
        [{"top_k": 2}, {"top_k": 3}],
    ),
    "shards": (write_sharded, "classify", [{"top_k": 2}, {"top_k": 3}]),
    "adapter": (write_adapter, "classify", [{"top_k": 2}, {"top_k": 3}]),
    "tag": (
        head("TokenClassification", labels=["O", "B-x", "I-x"]),
        "tag",
        [{"max_length": 8}, {"max_length": 9}],
    ),
    "answer": (head("QuestionAnswering"), "answer", [{"max_length": 16}, {"max_length": 17}]),
    "fill": (head("MaskedLM"), "fill", [{"top_k": 2}, {"top_k": 3}]),
    "zero_shot": (
        head("SequenceClassification", labels=["contradiction", "neutral", "entailment"]),
        "zero_shot",
        [{"labels": ["cat", "mat"]}, {"labels": ["cat", "the"]}],
    ),
    "gliclass": (write_gliclass, "zero_shot", [{"labels": ["cat", "mat"]}, {"labels": ["cat"]}]),
    "embed": (write_sentence, "embed", [{"dimensions": 8}, {"prompt_name": "other"}]),
    "rerank": (
        head("SequenceClassification", labels=["a"]),
        "rerank",
        [{"raw_scores": True}, {"max_length": 12}],
    ),
    "rerank of modules": (write_reranker, "rerank", [{"raw_scores": True}, {"max_length": 12}]),
    "sparse": (write_static, "sparse", [{"as_query": True}, {"top_k": 3}]),
    "multi_vector": (write_colbert, "multi_vector", [{"as_query": True}, {"max_length": 20}]),
    "stanford": (write_stanford, "multi_vector", [{"as_query": True}, {"max_length": 20}]),
    "maxsim": (write_stanford, "rerank", [{"max_length": 20}, {"max_length": 21}]),
}
"""How a checkpoint is written, its task, and the options of calls."""


def documents(task: str) -> list:
    if task in ("answer", "rerank"):
        return list(zip(TEXTS, reversed(TEXTS), strict=True))
    return [text + " [MASK]" for text in TEXTS] if task == "fill" else TEXTS


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of each form, written once."""
    folders: dict[str, Path] = {}

    def write(form: str) -> Path:
        if form not in folders:
            folders[form] = tmp_path_factory.mktemp("form") / "model"
            FORMS[form][0](folders[form])
        return folders[form]

    return write


@pytest.fixture(params=FORMS)
def form(request, written, tmp_path):
    """A copy of a checkpoint that may be changed, and its task."""
    shutil.copytree(written(request.param), tmp_path / "model")
    adapter = tmp_path / "model/adapter_config.json"
    if adapter.exists():
        change_json(adapter, base_model_name_or_path=str(tmp_path / "model/base"))
    return tmp_path / "model", *FORMS[request.param][1:]


def model_files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors", ".metadata")
    )


def changes(folder: Path) -> Iterator[str]:
    """Change all files of a checkpoint in place, again and again, each time in a worse way."""
    files = model_files(folder)
    for file in files:
        os.utime(file, (1, 1))
    yield "touched"
    for file in files:
        if (
            file.suffix == ".safetensors"
        ):  # as `cp` over the file does it: the same inode, other numbers
            with file.open("r+b") as stream:
                stream.seek(8 + int.from_bytes(stream.read(8), "little"))
                length = file.stat().st_size - stream.tell()
                stream.write(
                    np.random.default_rng(0)
                    .normal(size=length // 4 + 1)
                    .astype("f4")
                    .tobytes()[:length]
                )
    yield "other weights"
    for file in files:
        if file.name == "tokenizer.json":
            tokenizer = json.loads(file.read_text())
            vocabulary = tokenizer["model"]["vocab"]
            tokenizer["model"]["vocab"] = dict(
                zip(vocabulary, reversed(vocabulary.values()), strict=True)
            )
            tokenizer["post_processor"] = None
            file.write_text(json.dumps(tokenizer))
        elif file.name == "config.json" and "model_type" in (
            config := json.loads(file.read_text())
        ):
            labels = {
                "id2label": {"0": "x", "1": "y"},
                "label2id": {"x": 0, "y": 1},
                "num_hidden_layers": 1,
            }
            file.write_text(json.dumps(config | labels))
        elif file.name == "config.json":
            file.write_text(
                json.dumps({"pooling_mode": "max", "in_features": 3, "out_features": 3})
            )
        elif file.name == "modules.json":
            file.write_text("[]")
        elif file.name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
            file.write_text(
                json.dumps({"prompts": {"query": "x", "other": "y"}, "max_seq_length": 4})
            )
    yield "another tokenizer and other settings"
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    yield "half written"
    for file in files:
        os.truncate(file, 0)
    yield "empty"
    for file in files:
        file.unlink()
    yield "files removed"
    shutil.rmtree(folder)
    yield "folder removed"


def same(got, want) -> bool:
    """Whether answers are equal, bit by bit."""
    if isinstance(want, list | tuple):
        return len(got) == len(want) and all(map(same, got, want))
    return np.array_equal(got, want) if isinstance(want, np.ndarray) else got == want


def run_values(loaded: predictor.Predictor, task: str, options: list[dict]) -> list[np.ndarray]:
    """The model's values for documents, by tasks that are made anew for each call."""
    made = [model_options(task).parse(given) for given in options]
    tasks = [task_class(task).from_checkpoint(loaded.checkpoint, each) for each in made]
    return [loaded.answer(documents(task), each)[0].values for each in tasks]


@pytest.mark.parametrize("packed", [True, False], ids=["prepacked", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_predictor_keeps_its_model(form, dtype, packed, monkeypatch):
    """Weights are no view of a file: neither those that are prepacked, nor embeddings, norms, heads and layers."""
    folder, name, options = form
    if not packed:
        monkeypatch.setattr(predictor, "prepack", lambda _: None)
    checkpoint = Checkpoint.open(folder)
    made = task_class(name).from_checkpoint(checkpoint, model_options(name).parse(options[0]))
    loaded = predictor.Predictor(checkpoint, made, dtype=dtype)
    if dtype == "float32":  # oneDNN does not take bfloat16 on all CPUs
        assert (
            any(
                isinstance(each, Linear) and each.weight is not None
                for each in loaded.model.modules()
            )
            is not packed
        )
    before = run_values(loaded, name, options)
    assert all(len(values) for values in before)
    weights = {key: tensor.clone() for key, tensor in loaded.model.named_parameters()}
    for step in changes(folder):
        assert same(run_values(loaded, name, options), before), step
        assert all(
            torch.equal(tensor, weights[key]) for key, tensor in loaded.model.named_parameters()
        ), step


def call_pipeline(call, task: str, options: dict):
    if task == "rerank":
        return call(TEXTS[0], TEXTS, **options)
    if task == "answer":
        return call(question=TEXTS[0], context=TEXTS[1], **options)
    return call(documents(task), **options)


def test_in_memory(form):
    folder, name, options = form
    renamed = {"labels": "candidate_labels"} if name == "zero_shot" else {}
    options = [{renamed.get(key, key): value for key, value in given.items()} for given in options]
    call = pipeline(name, str(folder), device="cpu")
    before = [call_pipeline(call, name, given) for given in options]
    others = changes(folder)
    for step in others:
        assert same([call_pipeline(call, name, given) for given in options], before), step
        if step == "other weights":  # opened anew, it is the model that is there now
            now = [
                call_pipeline(pipeline(name, str(folder), device="cpu"), name, given)
                for given in options
            ]
            assert not same(now, before)


async def online(client: LocalModelClient, task: str, options: list[dict]) -> list:
    client.models["a"]._kept_task.cache_clear()  # a call's task is made anew
    answers = [
        await client.predict("a", PredictRequest(documents(task), options=given))
        for given in options
    ]
    assert not any(answer.failed for answer in answers)
    info, tokens = await client.info("a"), await client.tokenize("a", TEXTS)
    results = [
        [[*map(np.asarray, each)] if task == "sparse" else each for each in answer.results]
        for answer in answers
    ]
    return [results, [answer.n_tokens for answer in answers], info, [token.ids for token in tokens]]


def test_online(form):
    folder, name, options = form

    async def run() -> None:
        client = LocalModelClient(
            served_models([{"name": "a", "task": name, "model": str(folder)}])
        )
        before = await online(client, name, options)
        for step in changes(folder):
            assert same(await online(client, name, options), before), step
            client.models["a"].batcher.succeeded = 0.0
            await client.models["a"].check_health()
        client.close()

    asyncio.run(run())


def received(value):
    """A value as another process receives it."""
    content = pickle.dumps(value)
    checkpoints._received.cache_clear()
    return pickle.loads(content)


def run_of(folder: Path, task: str, options: dict):
    made = model_options(task).parse({"model": str(folder), "device": "cpu", **options})
    checkpoint = Checkpoint.open(folder)
    task_of_model = task_class(task).from_checkpoint(checkpoint, made)
    return resolve_run(made, checkpoint, task_of_model, made.device, 60.0)


def test_a_jobs_processes(form):
    """What an actor answers, and what a reader's tokenizer and a committer's make, after they have begun."""
    folder, name, options = form
    run = received(run_of(folder, name, options[0]))
    actor = Predict(run)
    assert actor.start_error is None

    def answers() -> list:
        windows = encode(run, documents(name), 1000)
        shard = Shard(name="s", format="", pieces=())
        row = wire.tokenised_row(shard, windows, np.arange(len(TEXTS)), [], 0.0)
        table = actor(row)
        assert table["error"][0].as_py() is None
        return [wire.array_of(table, each) for each in ("values", "splits", "input_ids")]

    before = answers()
    for step in changes(folder):
        assert same(answers(), before), step


def load_all(run) -> None:
    """Load what the processes of a job load: the tokenizer, and the model."""
    assert run.model.tokenizer.vocab_size
    predictor.Predictor(run.model, run.task, dtype="float32")


def test_another_process_refuses_other_files(form, tmp_path):
    """Each file of the checkpoint with one byte changed, cut off, removed, or emptied, and files that appear."""
    folder, name, options = form
    run = run_of(folder, name, options[0])
    load_all(received(run))
    before = fingerprint(run.model.encoder)
    shutil.copytree(folder, tmp_path / "kept")
    dice = random.Random(0)

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        at = dice.randrange(
            len(content) // 2, len(content)
        )  # in a file of weights: beyond the header
        content[at] ^= 1
        file.write_bytes(content)

    ways = [
        flip,
        lambda file: os.truncate(file, file.stat().st_size - 1),
        Path.unlink,
        lambda file: os.truncate(file, 0),
    ]
    known = set(run.model.folder.files.digests())
    if run.model.base:
        known |= {f"base/{name}" for name in run.model.base.folder.files.digests()}
    for file in model_files(folder):
        if str(file.relative_to(folder)) not in known:
            continue
        for way in ways:
            way(file)
            with pytest.raises(
                CheckpointChanged,
                match=r"has changed since the job began or the service was deployed",
            ):
                load_all(received(run))
            shutil.copy2(tmp_path / "kept" / file.relative_to(folder), file)
        load_all(received(run))
    for appears in ("added_tokens.json", "adapter_config.json", "special_tokens_map.json"):
        if not (folder / appears).exists():
            (folder / appears).write_text("{}")
            with pytest.raises(CheckpointChanged, match=appears):
                load_all(received(run))
            (folder / appears).unlink()
    assert fingerprint(run.model.encoder) == before


def test_files_that_no_answer_depends_on_may_change(written, tmp_path):
    """What a trainer writes beside a model while a job runs, and times."""
    shutil.copytree(written("classify"), tmp_path / "model")
    run = run_of(tmp_path / "model", "classify", {})
    shutil.copytree(written("tag"), tmp_path / "model" / "checkpoint-500")
    for name in ("trainer_state.json", "README.md", "optimizer.pt", "other.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    for file in model_files(tmp_path / "model"):
        os.utime(file, (1, 1))
    load_all(received(run))


def test_the_fingerprint_and_the_digests_are_of_the_same_files(written, tmp_path):
    """The driver records the fingerprint and sends the digests: a change between the two goes into neither."""
    shutil.copytree(written("embed"), tmp_path / "model")
    run = run_of(tmp_path / "model", "embed", {})
    before = run.task.fingerprint(run.model)
    assert before == run_of(written("embed"), "embed", {}).task.fingerprint(
        Checkpoint.open(written("embed"))
    )
    for _ in zip(range(2), changes(tmp_path / "model"), strict=False):
        pass  # touched, and other weights
    with pytest.raises(CheckpointChanged, match=r"\(.*model\.safetensors\)"):
        load_all(received(run))
    assert fingerprint(run.model.encoder) == fingerprint(open_folder(written("embed")))
    new = run_of(tmp_path / "model", "embed", {})
    assert new.task.fingerprint(new.model) != before
    load_all(received(new))


def test_a_checkpoint_travels_as_digests(written):
    checkpoint = Checkpoint.open(written("embed"))
    assert checkpoint.tokenizer is checkpoint.tokenizer
    assert len(pickle.dumps(checkpoint)) < 4000
    there = received(checkpoint)
    assert there == checkpoint
    assert pickle.loads(pickle.dumps(there)) is there
    assert there.folder.files.digests() == checkpoint.folder.files.digests()


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def random_tensors(dice: random.Random) -> dict[str, torch.Tensor]:
    tensors = {}
    for i in range(dice.randrange(1, 6)):
        shape = [dice.choice([0, 1, 3, 17]) for _ in range(dice.randrange(4))]
        tensors[f"{dice.choice('abc')}.{i}"] = torch.randn(shape).to(
            dice.choice([*DTYPES.values()])
        )
    return tensors


@pytest.mark.parametrize("seed", range(20))
def test_tensors_are_read_as_the_library_reads_them(tmp_path, seed):
    dice = random.Random(seed)
    torch.manual_seed(seed)
    tensors = random_tensors(dice)
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, {"format": "pt"})
    got = dict(read_tensors(file))
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name], tensor)
    wanted = dice.sample(sorted(tensors), dice.randrange(len(tensors)))
    assert [name for name, _ in read_tensors(file, wanted)] == [
        name for name in got if name in wanted
    ]


@pytest.mark.parametrize("seed", range(20))
def test_broken_files_are_refused_as_the_library_refuses_them(tmp_path, seed):
    """Bytes changed, cut off and added: where the library opens a file, we find the same tensors, else an error."""
    dice = random.Random(seed)
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(dice), file)
    whole = file.read_bytes()
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        end = 8 + int.from_bytes(whole[:8], "little")
        way = dice.randrange(4)
        if way == 0:
            content[dice.randrange(end)] = dice.choice(b'0123456789{}[],:"a \x00\xff')
        elif way == 1:
            del content[dice.randrange(len(content)) :]
        elif way == 2:
            content += b"\0" * dice.randrange(1, 9)
        else:
            at = dice.randrange(8, end)
            content[at:at] = dice.choice([b"9", b" ", b"-", b"[", b"1e9"])
        file.write_bytes(content)
        try:
            with safe_open(file, "pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                want = {
                    name: (each.get_dtype(), tuple(each.get_shape()))
                    for name, each in slices.items()
                }
        except (SafetensorError, OSError):
            refused += 1
            with pytest.raises(
                CheckpointError, match=r"is not a readable safetensors file|is stored as"
            ):
                dict(read_tensors(file))
        else:
            found: dict[str, StoredTensor] = read_header(file)
            assert {name: (each.dtype, each.shape) for name, each in found.items()} == want
    assert refused > 50

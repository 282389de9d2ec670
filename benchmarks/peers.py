"""Engines for encoders on CPUs that `benchmarks/cpu_peers.py` measures, and how each is loaded.

An engine runs documents that are known beforehand and returns a row of values for each: the mean of the tokens' vectors,
or the logits of a classifier on it. Those that pad run them in three batchings, from the smallest batch to the largest.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.peer_models import Documents, is_classifier, pooled_model

BUDGET_TOKENS = 4096
OPENVINO_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""The precision of what is not quantised; OpenVINO runs bfloat16 in float32 where a CPU lacks it."""
Run = Callable[[], np.ndarray]


class Engine(NamedTuple):
    """One row of the table."""

    library: str
    """Imported before memory is measured."""
    load: Callable[[Path, Documents], dict[str, Run]]
    """Load a model's folder and return {batching: what runs all documents}."""
    takes_texts: bool = False
    """Whether it knows embeddings of texts alone, and no classifier's logits."""


def load_ours(folder: Path, documents: Documents, *, dtype: str) -> dict[str, Run]:
    """Load our predictor, as a corpus job does."""
    from pipelines.checkpoints import Checkpoint
    from pipelines.inference.predictor import Predictor
    from pipelines.options import ClassifyOptions, EmbedOptions
    from pipelines.tasks.classify import Classify
    from pipelines.tasks.embed import Embed

    checkpoint = Checkpoint.open(folder)
    task = (
        Classify.from_checkpoint(checkpoint, ClassifyOptions())
        if is_classifier(folder)
        else Embed.from_checkpoint(checkpoint, EmbedOptions())
    )
    predictor = Predictor(checkpoint, task, dtype=dtype, budget_tokens=BUDGET_TOKENS, threads=1)
    ids = np.concatenate([np.array(each, np.int32) for each in documents.ids])
    starts = np.cumsum([0, *(len(each) for each in documents.ids)])
    return {"packed": lambda: predictor.predict(ids, starts).values}


def load_transformers(folder: Path, documents: Documents, *, dtype: str) -> dict[str, Run]:
    import torch

    model = pooled_model(folder, finite_masks=False).to(getattr(torch, dtype))

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()

    return padded_passes(run, documents)


def load_openvino(folder: Path, documents: Documents, *, dtype: str) -> dict[str, Run]:
    import openvino

    file = folder / ("openvino-int8.xml" if dtype == "int8" else "openvino.xml")
    options = {"INFERENCE_PRECISION_HINT": OPENVINO_HINTS[dtype], "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(file, "CPU", options)
    return padded_passes(lambda ids, mask: model([ids, mask])[0], documents)


def load_onnxruntime(folder: Path, documents: Documents, *, dtype: str) -> dict[str, Run]:
    import onnxruntime

    file = folder / ("onnx-int8.onnx" if dtype == "int8" else "onnx.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return padded_passes(
        lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))[0],
        documents,
    )


def load_sentence_transformers(folder: Path, documents: Documents) -> dict[str, Run]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    encode = partial(model.encode, documents.texts, show_progress_bar=False)
    return {f"batch {n}": partial(encode, batch_size=n) for n in (1, 8, 32)}


def load_infinity(folder: Path, documents: Documents) -> dict[str, Run]:
    from infinity_emb import EngineArgs, SyncEngineArray

    arguments = EngineArgs(
        model_name_or_path=str(folder),
        device="cpu",
        dtype="float32",
        bettertransformer=False,
        model_warmup=False,
        batch_size=8,
    )
    engines = SyncEngineArray.from_args([arguments])

    def run() -> np.ndarray:
        vectors, _ = engines.embed(model=str(folder), sentences=documents.texts).result()
        return np.array(vectors)

    return {"batch 8": run}


def padded_passes(
    run: Callable[[np.ndarray, np.ndarray], np.ndarray], documents: Documents
) -> dict[str, Run]:
    """Return the passes of an engine whose `run` takes padded tokens and their mask, (B, L) int64."""
    from benchmarks.encoder import padded_batches

    lengths = [len(each) for each in documents.ids]

    def run_all(batches: list[list[int]]) -> np.ndarray:
        values: dict[int, np.ndarray] = {}
        for rows in batches:
            longest = max(lengths[row] for row in rows)
            ids = np.zeros((len(rows), longest), np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = documents.ids[row]
                mask[place, : lengths[row]] = 1
            values |= zip(rows, run(ids, mask), strict=True)
        return np.stack([values[row] for row in range(len(lengths))])

    batchings = {
        "one at a time": padded_batches(lengths, None, 1),
        "token budget": padded_batches(lengths, BUDGET_TOKENS, None),
        "batch 8": padded_batches(lengths, None, 8),
    }
    return {name: partial(run_all, batches) for name, batches in batchings.items()}


MODELING = "transformers.models.modernbert.modeling_modernbert"
ENGINES = {
    "transformers, float32": Engine(MODELING, partial(load_transformers, dtype="float32")),
    "transformers, bfloat16": Engine(MODELING, partial(load_transformers, dtype="bfloat16")),
    "OpenVINO, float32": Engine("openvino", partial(load_openvino, dtype="float32")),
    "OpenVINO, bfloat16": Engine("openvino", partial(load_openvino, dtype="bfloat16")),
    "OpenVINO, int8 (NNCF)": Engine("openvino", partial(load_openvino, dtype="int8")),
    "ONNX Runtime, float32": Engine("onnxruntime", partial(load_onnxruntime, dtype="float32")),
    "ONNX Runtime, int8 dynamic": Engine("onnxruntime", partial(load_onnxruntime, dtype="int8")),
    "sentence-transformers, float32": Engine(
        "sentence_transformers", load_sentence_transformers, takes_texts=True
    ),
    "Infinity, float32": Engine("infinity_emb", load_infinity, takes_texts=True),
}
OURS = ["float32", "bfloat16"]
if importlib.util.find_spec("modernbert.int8"):
    OURS.append("int8")
ENGINES = {
    f"ours, {dtype}": Engine("pipelines.inference.predictor", partial(load_ours, dtype=dtype))
    for dtype in OURS
} | ENGINES


def serve_passes(name: str, folder: Path) -> None:
    """Load an engine and run the passes that are named on standard input, one a line; answer each in a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    engine = ENGINES[name]
    documents = Documents.read(folder)
    importlib.import_module(engine.library)
    bytes_before = memory_bytes("VmRSS")
    passes = engine.load(folder, documents)
    print(json.dumps(list(passes)), file=answers, flush=True)
    for line in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        values = passes[line.strip()]()
        figures = {
            "cpu_s": time.process_time() - cpu_started,
            "wall_s": time.perf_counter() - started,
            "peak_bytes": memory_bytes("VmHWM") - bytes_before,
        }
        np.save(folder / f"{name}.npy", values)
        print(json.dumps(figures), file=answers, flush=True)
    os._exit(0)  # threads of Infinity do not end


def memory_bytes(field: str) -> int:
    """Return a size of this process as Linux knows it."""
    status = Path("/proc/self/status").read_text()
    kilobytes = status.partition(f"{field}:")[2].split()[0]
    return int(kilobytes) * 1024


if __name__ == "__main__":
    serve_passes(sys.argv[1], Path(sys.argv[2]))

"""What runs a model: graphs, heads, the predictor, and peers beside them."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gpu_parts.common import (
    BASE,
    BUDGETS,
    DEVICE,
    DRY,
    HALF,
    LENGTHS,
    ROOT,
    batch_of,
    encoder_of,
    mixed_lengths,
    seconds_of,
    synchronize,
    wall_seconds,
    with_weights,
)  # fmt: skip
from benchmarks.gpu_parts.lines import Figures
from modernbert import gpu
from modernbert.encoders.sparse import SparseEncoder
from modernbert.encoders.sparse_config import SparseConfig
from modernbert.heads import (
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch


def graphs(figures: Figures) -> None:
    """Latency of one document: launched kernel by kernel, and as a CUDA graph."""
    model = encoder_of(BASE)
    start = time.perf_counter()
    model.enable_graphs()
    synchronize()
    figures["capture_common_s"] = time.perf_counter() - start
    for n in (16, 64) if DRY else (16, 128, 512, 2048, 4096):
        batch = batch_of([n])
        synchronize()
        plain = wall_seconds(lambda b=batch: model.run_layers(b))
        graphed = wall_seconds(lambda b=batch: model.forward_packed(b))
        figures[str(n)] = {"launched_us": plain * 1e6, "graph_us": graphed * 1e6}


def predictor(figures: Figures) -> None:
    """The predictor end to end on the mix of lengths, as a job's actor runs it: with a call at a time, and with two. The
    device's busy share is what the model alone would take of that time.
    """
    from pipelines.checkpoints import Checkpoint
    from pipelines.inference.predictor import Predictor
    from pipelines.options import ClassifyOptions
    from pipelines.tasks.classify import Classify

    folder = Path(tempfile.mkdtemp())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((ROOT / "jobs/demo/intent-classifier" / file).read_bytes())
    config = replace(BASE, vocab_size=4096, pad_token_id=0, num_labels=0, id2label={}, label2id={})
    torch.manual_seed(0)
    model = ModernBertForSequenceClassification(config)
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        folder / "model.safetensors",
    )
    names = {"architectures": ["ModernBertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | names))
    checkpoint = Checkpoint.open(folder)
    task = Classify.from_checkpoint(checkpoint, ClassifyOptions())
    total = 512 if DRY else 2_000_000
    for budget in BUDGETS:
        lengths = np.array(mixed_lengths(total))
        ids = np.random.default_rng(0).integers(5, 300, lengths.sum()).astype(np.int32)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        running = Predictor(
            checkpoint, task, device=DEVICE.type, dtype="auto", budget_tokens=budget
        )
        first = running.predict(ids, starts)
        one_s = predicting_s(running, ids, starts, calls=1)
        two_s = predicting_s(running, ids, starts, calls=2)
        batch = batch_of(mixed_lengths(budget))
        took = seconds_of(lambda m=running.model, b=batch: m.forward_packed(b))
        alone_s = took / len(batch.input_ids) * len(ids)
        figures[str(budget)] = {
            "tokens_s": len(ids) / one_s, "batches": first.batches, "failed": len(first.failed),
            "busy_share": alone_s / one_s, "busy_share_of_two_calls": 2 * alone_s / two_s,
            "fusions": running.fusions,
        }  # fmt: skip


def predicting_s(running: Any, ids: np.ndarray, starts: np.ndarray, calls: int) -> float:
    """Return how long calls of a predictor take that run at once."""
    threads = [threading.Thread(target=running.predict, args=(ids, starts)) for _ in range(calls)]
    begun = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return time.perf_counter() - begun


def heads(figures: Figures) -> None:
    """What heads add to the encoder, in TF32 as behind the predictor: tokens a second of each, and of the encoder."""
    lengths = [LENGTHS[1]] * (BUDGETS[-1] // LENGTHS[1])
    batch = batch_of(lengths)
    classes = {
        "encoder": ModernBertModel,
        "classify": ModernBertForSequenceClassification,
        "tag": ModernBertForTokenClassification,
    }
    with gpu.tf32_products(not DRY):
        for name, model_class in classes.items():
            model = half_encoder(with_weights(model_class, BASE))
            took = seconds_of(lambda m=model: m.forward_packed(batch))
            figures[name] = {"m_tokens_s": sum(lengths) / took / 1e6}
        of_words = SparseEncoder(
            half_encoder(with_weights(ModernBertForMaskedLM, BASE)), SparseConfig(Path())
        )
        took = seconds_of(lambda: of_words.launch(batch))
        figures["sparse"] = {"m_tokens_s": sum(lengths) / took / 1e6}


def half_encoder(model: Any) -> Any:
    """Put the encoder of a model into half precision; its head stays in float32."""
    for module in model.modules():
        if isinstance(module, ModernBertModel):
            module.to(HALF)
    return model


def peers(figures: Figures) -> None:
    """transformers (sdpa, padded, sorted by length) and sentence-transformers on the documents of the mix."""
    import transformers

    config = transformers.ModernBertConfig(
        vocab_size=50368, hidden_size=BASE.hidden_size, intermediate_size=BASE.intermediate_size,
        num_hidden_layers=BASE.num_hidden_layers, num_attention_heads=BASE.num_attention_heads,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = (
        transformers.ModernBertModel._from_config(config, attn_implementation="sdpa")
        .eval()
        .to(DEVICE, HALF)
    )
    lengths = mixed_lengths(256 if DRY else 200_000)
    documents = [
        torch.randint(5, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    for count in (2,) if DRY else (16, 32, 64):
        figures[f"transformers sdpa, batches of {count}"] = sum(lengths) / wall_seconds(
            lambda c=count: padded_pass(theirs, documents, c), 3
        )
    ours = encoder_of(BASE)
    budget = BUDGETS[-1]

    def packed_pass() -> None:
        start = 0
        while start < len(documents):
            stop = start + 1
            while stop < len(documents) and sum(lengths[start : stop + 1]) <= budget:
                stop += 1
            ids = torch.cat(documents[start:stop]).int().numpy()
            ours.forward_packed(PackedBatch.from_arrays(ids, lengths[start:stop], DEVICE))
            start = stop

    figures["ours"] = sum(lengths) / wall_seconds(packed_pass, 3)
    try:
        from sentence_transformers import SentenceTransformer

        demo = str(ROOT / "jobs/demo/sentence-encoder")
        texts = [("word " * min(n, 400)).strip() for n in lengths]
        encoder = SentenceTransformer(demo, device=DEVICE.type, model_kwargs={"dtype": HALF})
        figures["sentence-transformers, demo model, texts/s"] = len(texts) / wall_seconds(
            lambda: encoder.encode(texts, batch_size=32), 3
        )
    except ImportError as error:
        figures["sentence-transformers"] = str(error)


def padded_pass(model: Any, documents: list[torch.Tensor], count: int) -> None:
    for first in range(0, len(documents), count):
        group = documents[first : first + count]
        ids = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in group])[:, None]
        model(input_ids=ids.to(DEVICE), attention_mask=mask.to(DEVICE))

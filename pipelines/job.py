"""A job's options turned into what workers need, with everything checked that can be checked before work begins."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from modernbert.checkpoint import check_weights, fingerprint, load_config, resolve
from modernbert.config import ModernBertConfig
from modernbert.tokenizer import Tokenizer
from pipelines.cluster import cluster_resources
from pipelines.config import CorpusOptions, UserError
from pipelines.predictor import BUDGET_TOKENS, DTYPE
from pipelines.shards import Corpus, plan_corpus
from pipelines.tasks.classify import Classify
from pipelines.texts import is_text

ADDED = ("n_tokens", "truncated")
"""What every task adds beside its own columns."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know; no worker sees the options themselves."""

    source: str
    folder: Path
    model: Path
    task: Classify
    schema: pa.Schema
    text_column: str
    keep_columns: list[str]
    prefix: str
    max_length: int
    budget_tokens: int
    device: str
    dtype: str


def plan_job(options: CorpusOptions, make_task: Any) -> tuple[Job, Corpus, dict[str, Any]]:
    """Check everything that can be checked without work: model, tokenizer, input, columns. Starts no Ray."""
    for name in ("input", "model", "output"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} is missing")
    assert options.input
    assert options.model
    assert options.output
    folder = resolve(options.model)
    config = load_config(folder)
    task = make_task(config)
    check_weights(task.model_class, folder, config)
    max_length = _max_length(options.max_length, config, Tokenizer.from_folder(folder))
    source = options.input if "://" in options.input else str(Path(options.input).expanduser().absolute())
    corpus = plan_corpus(source, options.limit)
    target = Path(options.output).expanduser().absolute()
    if "://" not in source and Path(source).is_dir() and target.is_relative_to(source):
        raise UserError(f"output {options.output!r} lies in the input folder, which would be read again; name another")
    names = corpus.schema.names
    if options.text_column not in names:
        raise UserError(f"input has no column {options.text_column!r}; it has {', '.join(names)} (see --text-column)")
    if not is_text(kind := corpus.schema.field(options.text_column).type):
        raise UserError(f"column {options.text_column!r} holds {kind}, not text")
    keep = options.keep_columns if options.keep_columns is not None else names
    if absent := [name for name in keep if name not in names]:
        raise UserError(f"input has no column {', '.join(absent)}; it has {', '.join(names)} (see --keep-columns)")
    added = [options.output_prefix + name for name in [*task.columns.names, *ADDED]]
    if clash := [name for name in added if name in keep]:
        raise UserError(
            f"input already has {', '.join(clash)}, which this job adds: put a prefix before ours with "
            f"--output-prefix, or leave the input's out with --keep-columns"
        )
    device = _device(options.device)
    job = Job(
        source=source,
        folder=target,
        model=folder.absolute(),
        task=task,
        schema=corpus.schema,
        text_column=options.text_column,
        keep_columns=keep,
        prefix=options.output_prefix,
        max_length=max_length,
        budget_tokens=options.budget_tokens or BUDGET_TOKENS[device],
        device=device,
        dtype=DTYPE[device] if options.dtype == "auto" else options.dtype,
    )
    if (job.device, job.dtype) == ("cpu", "float16"):
        raise UserError("--dtype float16 is for GPUs; on CPUs use bfloat16 or float32")
    identity = {name: getattr(job, name) for name in ("source", "text_column", "keep_columns", "prefix", "max_length")}
    identity |= {"dtype": job.dtype, "limit": options.limit, "task": asdict(task) | {"name": task.name}}
    identity |= {"model": "" if options.dry_run else fingerprint(folder)}
    return job, corpus, json.loads(json.dumps(identity))


def _max_length(asked: int | None, config: ModernBertConfig, tokenizer: Tokenizer) -> int:
    longest = min(config.max_position_embeddings, tokenizer.model_max_length or config.max_position_embeddings)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"tokenizer.json has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}")
    if asked is not None and asked > config.max_position_embeddings:
        raise UserError(f"--max-length {asked} is above the model's {config.max_position_embeddings} positions")
    return asked or longest


def _device(asked: str) -> str:
    if asked == "cuda" or torch.cuda.is_available():
        found = torch.cuda.is_available() or cluster_resources().get("GPU", 0) >= 1
    else:
        found = bool(os.environ.get("RAY_ADDRESS")) and cluster_resources().get("GPU", 0) >= 1
    if asked == "cuda" and not found:
        raise UserError("--device cuda: there is no GPU here or in the Ray cluster; use cpu or auto")
    return "cuda" if found and asked != "cpu" else "cpu"

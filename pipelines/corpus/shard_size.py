"""How much a shard of a job holds: so much that the model is busy with it for some seconds."""

from __future__ import annotations

from pipelines.inference.loading import ModelRun
from pipelines.input.cutting import ShardSize
from pipelines.raydata.placement import gpu_tokens_s, weights_of_layers

SHARD_S = 20.0
"""How long an actor takes for a shard, about: machines differ by a factor of three both ways."""
_CPU_FLOPS = 2.0e11
"""The floating-point operations a second of a CPU core: between AVX2 in float32 and AMX in
bfloat16.
"""
_OF_AN_H100 = 0.4
"""The speed of a typical GPU beside that of an H100."""
_TEXT_BYTES_PER_TOKEN = 4
_VALUE_BYTES = 128 << 20
"""The most bytes of the model's values for a shard."""
_MAX_ROWS = 1 << 20


def shard_size(model_run: ModelRun, rows_per_file: int | None) -> ShardSize:
    """Return the most that a shard of a job holds.

    `rows_per_file`: the rows that the user wants in each part.
    """
    task = model_run.task
    config = model_run.model.config
    if model_run.device == "cuda":
        tokens_s = _OF_AN_H100 * gpu_tokens_s(config)
    else:
        tokens_s = _CPU_FLOPS / (2 * weights_of_layers(config))
    tokens = SHARD_S * tokens_s
    rows = _MAX_ROWS
    # float32 values, for each text or for so many tokens.
    values = _VALUE_BYTES // (4 * task.width)
    if task.tokens_per_row is None:
        rows = min(rows, values)
    else:
        tokens = min(tokens, values * task.tokens_per_row)
    read_bytes = None
    if task.stride is None:
        read_bytes = task.max_length * _TEXT_BYTES_PER_TOKEN
    return ShardSize(
        rows=max(rows, 1),
        text_bytes=max(int(tokens * _TEXT_BYTES_PER_TOKEN), 1),
        read_bytes=read_bytes,
        rows_per_file=rows_per_file,
    )

"""CUDA graphs of the encoder for small batches, whose launches take longer on the host than their
work on the GPU.

A graph is made for sizes of tokens, sequences and the longest sequence when they first come; a
batch is padded up to them. Rows after the last sequence are computed and not read: attention stays
within sequences, and all else is by row.

Shapes: T packed tokens, B sequences, D hidden.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modernbert.packing import PackedBatch

logger = logging.getLogger(__name__)
TOKENS = (128, 256, 512, 1024, 2048, 4096)
"""The sizes of batches that have graphs; above, the GPU takes longer than the launches."""
SEQUENCES = (1, 4, 16, 64, 256)
Size = tuple[int, int, int]
"""Tokens, sequences, and the bound of a sequence's tokens."""


class EncoderGraphs:
    """The graphs of an encoder. Calls must not overlap: all graphs share their input and the memory
    for results.
    """

    def __init__(self, run_layers: Callable[[PackedBatch], Tensor]):
        """Hold no graphs yet.

        `run_layers`: the encoder in half precision, (T, D), which must read nothing back.
        """
        self._run_layers = run_layers
        self._replays: dict[Size, tuple[PackedBatch, Callable[[], Tensor]]] = {}
        self._pool: Any = None
        self._failed = False

    def run(self, batch: PackedBatch) -> Tensor | None:
        """Return the hidden states (T, D), which the next call overwrites; None for a batch without
        a graph.
        """
        size = size_for(batch)
        if size is None or self._failed:
            return None
        if size not in self._replays:
            try:
                padded = pad_to(size, batch)
                copy_into(padded, batch)
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                replay = capture(lambda: self._run_layers(padded), self._pool)
                self._replays[size] = (padded, replay)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                logger.warning("no CUDA graphs, small batches take longer: %s", reason)
                self._failed = True
                return None
        padded, replay = self._replays[size]
        copy_into(padded, batch)
        return replay()[: batch.input_ids.numel()]


def size_for(batch: PackedBatch) -> Size | None:
    """Return the size of the graph for a batch; None where it is too large, or has more than ids in
    order.
    """
    tokens = batch.input_ids.numel()
    sequences = len(batch.seqlens)
    if tokens > TOKENS[-1] or sequences > SEQUENCES[-1]:
        return None
    if batch.inputs_embeds is not None or batch.visible:
        return None
    if batch.num_positions != batch.max_seqlen:
        return None
    token_size = TOKENS[bisect_left(TOKENS, tokens)]
    sequence_size = SEQUENCES[bisect_left(SEQUENCES, sequences)]
    bound = TOKENS[bisect_left(TOKENS, batch.max_seqlen)]
    return token_size, sequence_size, min(bound, token_size)


def pad_to(size: Size, like: PackedBatch) -> PackedBatch:
    """Create the batch that a graph reads, on the device of `like`: its tokens are zeros, in no
    sequence.
    """
    tokens, sequences, bound = size
    ids_T = like.input_ids.new_zeros(tokens)
    starts_B = like.cu_seqlens.new_zeros(sequences + 1)
    positions_T = like.position_ids.new_zeros(tokens)
    return PackedBatch(ids_T, starts_B, positions_T, (bound,), bound)


def copy_into(padded: PackedBatch, batch: PackedBatch) -> None:
    """Put a batch into the one that a graph reads; sequences that it does not have are empty."""
    tokens = batch.input_ids.numel()
    starts = len(batch.cu_seqlens)
    padded.input_ids[:tokens].copy_(batch.input_ids)
    padded.position_ids[:tokens].copy_(batch.position_ids)
    padded.cu_seqlens[:starts].copy_(batch.cu_seqlens)
    padded.cu_seqlens[starts:].fill_(tokens)


def capture(fn: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    """Capture the launches of `fn` in a CUDA graph, and return what launches them all and returns
    the result.

    `pool`: the memory that graphs share for what they compute on the way.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # Kernels are compiled and libraries set up before, on another stream.
    with torch.cuda.stream(side):
        fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may wait for their copies meanwhile.
    with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
        out = fn()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay

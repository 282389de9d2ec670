"""CUDA graphs of the encoder for small batches, whose launches take longer on the host than their
work on the GPU.

A graph is made for sizes of tokens, sequences and the longest sequence, for common ones at the
start and for others when they first come; a batch is padded up to them. Rows after the last
sequence are computed and not read: attention stays within sequences, and all else is by row.

Shapes: T packed tokens, B sequences, D hidden.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modernbert.attention_kernels import BLOCKS_PER_LAUNCH, started_blocks
from modernbert.packing import PackedBatch

logger = logging.getLogger(__name__)
TOKENS = (128, 256, 512, 1024, 2048, 4096)
"""The sizes of batches that have graphs; above, the GPU takes longer than the launches."""
SEQUENCES = (1, 4, 16, 64, 256)
_COMMON = (
    *((1, 128), (1, 256), (1, 512), (1, 1024)),
    *((4, 64), (4, 128), (4, 256)),
    *((16, 32), (16, 64), (16, 128)),
    *((64, 16), (64, 32)),
)  # (sequences, tokens in each) of the batches whose graphs are made at the start
_MOST_IDLE_BLOCKS = 11 * BLOCKS_PER_LAUNCH  # in a layer, which has as many launches without a graph
_FIRST_REST = 1000  # batches without a graph after a capture that failed; twice as many each time
Size = tuple[int, int, int]
"""Tokens, sequences, and the bound of a sequence's tokens."""


class EncoderGraphs:
    """The graphs of an encoder. Calls must not overlap: all graphs share their input and the memory
    for results. Captures of a process must not overlap either: callers hold `gpu.LAUNCHING`.
    """

    def __init__(self, run_layers: Callable[[PackedBatch], Tensor], heads: int = 0):
        """Hold no graphs yet.

        `run_layers`: the encoder in half precision, (T, D), which must read nothing back. `heads`:
        those whose attention starts blocks for a graph's size and not for its batch (flash-attn 2);
        0 for other kernels.
        """
        self._run_layers = run_layers
        self._heads = heads
        self._replays: dict[Size, tuple[PackedBatch, Callable[[], Tensor]]] = {}
        self._memory: tuple[torch.cuda.Stream, Any] | None = None
        self._resting = 0
        self._next_rest = _FIRST_REST

    def run(self, batch: PackedBatch) -> Tensor | None:
        """Return the hidden states (T, D), which the next call overwrites; None for a batch without
        a graph.
        """
        size = size_for(batch)
        if size is None or self._idle_blocks(size, batch) > _MOST_IDLE_BLOCKS:
            return None
        with torch.cuda.device_of(batch.input_ids):
            if size not in self._replays and not self._capture(size, batch):
                return None
            padded, replay = self._replays[size]
            copy_into(padded, batch)
            return replay()[: batch.input_ids.numel()]

    def capture_common(self, device: torch.device) -> None:
        """Make the graphs of common batches, so that no request waits for them."""
        for sequences, length in _COMMON:
            ids = np.zeros(sequences * length, dtype=np.int32)
            batch = PackedBatch.from_arrays(ids, (length,) * sequences, device)
            if self.run(batch) is None:
                return

    def _idle_blocks(self, size: Size, batch: PackedBatch) -> int:
        """Return how many blocks attention starts in a layer of a graph and not without it."""
        _, sequences, bound = size
        more = started_blocks(sequences, bound) - started_blocks(
            len(batch.seqlens), batch.max_seqlen
        )
        return self._heads * more

    def _capture(self, size: Size, batch: PackedBatch) -> bool:
        """Make the graph of a size; False where that fails, or failed for a batch not long ago."""
        if self._resting:
            self._resting -= 1
            return False
        try:
            if self._memory is None:
                # Graphs that share memory are captured on one stream.
                self._memory = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            padded = pad_to(size, batch)
            copy_into(padded, batch)
            replay = capture(lambda: self._run_layers(padded), *self._memory)
        except RuntimeError as error:  # also where memory is short, which may pass
            logger.warning(
                "no CUDA graphs for %d batches, small ones take longer: %s",
                self._next_rest,
                str(error).splitlines()[0],
            )
            self._resting = self._next_rest
            self._next_rest *= 2
            return False
        self._replays[size] = (padded, replay)
        return True


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


def capture(fn: Callable[[], Tensor], stream: torch.cuda.Stream, pool: Any) -> Callable[[], Tensor]:
    """Capture the launches of `fn` in a CUDA graph, and return what launches them all and returns
    the result.

    `stream`: where they are captured. `pool`: the memory that graphs of this stream share for what
    they compute on the way.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    # Kernels are compiled and libraries set up before, on another stream.
    with torch.cuda.stream(stream):
        fn()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may wait for their copies meanwhile.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            out = fn()
    finally:
        # torch leaves a thread on the stream of a capture that ends with an error.
        torch.cuda.set_stream(current)

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay

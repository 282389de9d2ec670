"""CUDA graphs of small batches: what they are given, and that padding changes nothing; a capture needs a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from checkpoints import make_hot, relative_error

from modernbert import graphs
from modernbert.attention import varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.graphs import EncoderGraphs, size_for
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch


def batch_of(*lengths: int) -> PackedBatch:
    ids = torch.randint(
        3, 300, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths))
    )
    return PackedBatch.from_lengths(ids, lengths)


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ((1,), (128, 1, 128)),
        ((128,), (128, 1, 128)),
        ((100, 29), (256, 4, 128)),
        ((130,) * 16, (4096, 16, 256)),
        ((4096,), (4096, 1, 4096)),
        ((4097,), None),
        ((1,) * 257, None),
    ],
)
def test_sizes(lengths, size):
    assert size_for(batch_of(*lengths)) == size


def test_batches_that_no_graph_fits():
    ids = torch.zeros(2, 5, dtype=torch.int64)
    from modernbert.inputs import ModelInputs

    assert (
        size_for(ModelInputs.from_padded(ids, None, position_ids=torch.arange(5) * 3).batch) is None
    )
    assert (
        size_for(ModelInputs.from_padded(None, None, inputs_embeds=torch.zeros(2, 5, 8)).batch)
        is None
    )


@pytest.fixture
def model(monkeypatch):
    """A model whose attention cuts a batch by `cu_seqlens`, as GPU kernels do, and leaves other rows undefined."""

    def attention(q, k, v, *, classes, window, backend, way, dropout, deterministic):
        starts = classes[0].cu_seqlens
        lengths = [stop - start for start, stop in pairwise(starts.tolist()) if stop > start]
        rows = slice(0, int(starts[-1]))
        out = torch.full_like(q, float("nan"))
        out[rows] = varlen_attention(
            q[rows], k[rows], v[rows], starts, lengths, window, backend=backend, way=way
        )
        return out

    monkeypatch.setattr("modernbert.model.packed_attention", attention)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    model = ModernBertModel(
        ModernBertConfig(vocab_size=300, local_attention=16, pad_token_id=0, **shape)
    ).eval()
    make_hot(model, 2.5)
    return model


class FakeGraphs:
    """torch.cuda's streams and graphs, as torch 2.13 has them, without a device: a graph runs its function again."""

    def __init__(self) -> None:
        self.default = "default"
        self.current = self.default
        self.sizes: list[int] = []
        """The tokens of each graph that was captured."""
        self.streams: list[object] = []
        """The stream of each capture, also of those that failed."""
        self.error: Exception | None = None
        """Raised in the next captures."""

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, _graph, _pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.streams.append(stream)
        self.current = stream
        if self.error is not None:
            raise self.error  # as capture_end does, so that the stream stays
        yield
        self.current = self.default


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeGraphs()

    class Stream:
        def wait_stream(self, other):
            pass

    fake.default = fake.current = Stream()
    for name, value in {
        "Stream": Stream,
        "current_stream": lambda: fake.current,
        "stream": fake.stream,
        "set_stream": lambda stream: setattr(fake, "current", stream),
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "graph": fake.graph,
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    capture = graphs.capture

    def capture_and_replay(fn, stream, pool):
        capture(fn, stream, pool)
        out = fn().clone()
        fake.sizes.append(len(out))
        return lambda: out.copy_(fn())

    monkeypatch.setattr(graphs, "capture", capture_and_replay)
    return fake


@torch.inference_mode()
def test_a_batch_in_a_graph_has_the_answers_of_the_batch_alone(model, cuda):
    batches = [
        batch_of(*lengths)
        for lengths in ((5,), (3, 60, 2), (90, 7), (128, 128), (1,) * 40, (3, 60, 1))
    ]
    want = [model.forward_packed(batch) for batch in batches]
    model._graphs = EncoderGraphs(model.run_layers)
    for batch, expected in zip(batches, want, strict=True):
        got = model.forward_packed(batch)
        assert got.shape == expected.shape
        assert relative_error(got, expected) < 1e-5  # products of other sizes
    assert cuda.sizes == [
        128,
        128,
        256,
        128,
    ]  # one for each size: batches of three and of two share one
    large = batch_of(*[64] * 65)
    assert relative_error(model.forward_packed(large), model.run_layers(large)) == 0
    assert len(cuda.sizes) == 4
    assert len(set(cuda.streams)) == 1  # graphs that share memory are captured on one stream


@torch.inference_mode()
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nmore"),
        RuntimeError("operation not permitted when stream is capturing\nmore"),
    ],
)
def test_a_capture_that_fails_is_warned_of_and_tried_again_later(
    model, cuda, monkeypatch, caplog, error
):
    monkeypatch.setattr(graphs, "_FIRST_REST", 3)
    batch = batch_of(5, 9)
    want = model.forward_packed(batch)
    model._graphs = EncoderGraphs(model.run_layers)
    cuda.error = error
    for _ in range(5):  # fails, rests for three batches, fails
        assert torch.equal(model.forward_packed(batch), want)
        assert cuda.current is cuda.default
    reason = str(error).splitlines()[0]
    assert [record.message for record in caplog.records] == [
        f"no CUDA graphs for {batches} batches, small ones take longer: {reason}"
        for batches in (3, 6)
    ]
    cuda.error = None
    assert [model.forward_packed(batch) is not None and len(cuda.sizes) for _ in range(7)] == [
        *[0] * 6,
        1,
    ]


@torch.inference_mode()
def test_models_capture_on_streams_of_their_own(model, cuda):
    for _ in range(2):
        EncoderGraphs(model.run_layers).run(batch_of(5))
    assert len(set(cuda.streams)) == 2


@torch.inference_mode()
def test_graphs_of_common_batches_are_made_at_the_start(model, cuda):
    graphs_of_model = EncoderGraphs(model.run_layers, heads=2)
    graphs_of_model.capture_common(torch.device("cpu"))
    assert len(cuda.sizes) == 12
    for lengths in ((7,), (300,), (30, 30, 70), (35,) * 10, (9,) * 60):
        graphs_of_model.run(batch_of(*lengths))
    assert len(cuda.sizes) == 12


@pytest.mark.parametrize(
    ("lengths", "heads", "in_graph"),
    [
        ((20,) * 100 + (2040,), 12, False),  # 256 sequences of 2,048 tokens: 49,152 blocks a layer
        ((20,) * 100 + (2040,), 0, True),  # a kernel that starts no idle blocks
        ((100,) * 30, 12, True),
        ((1, 1, 1, 1, 1, 300), 12, True),
        ((4096,), 12, True),
    ],
)
@torch.inference_mode()
def test_no_graph_where_flash_attn_2_would_start_too_many_idle_blocks(
    cuda, lengths, heads, in_graph
):
    graphs_of_model = EncoderGraphs(lambda batch: batch.input_ids[:, None].float(), heads)
    assert (graphs_of_model.run(batch_of(*lengths)) is not None) == in_graph


def test_host_backends_have_no_graphs(model):
    model.enable_graphs()
    assert model._graphs is None

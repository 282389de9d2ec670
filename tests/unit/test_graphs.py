"""CUDA graphs of small batches: what they are given, and that padding changes nothing; a capture needs a GPU."""

from __future__ import annotations

from itertools import pairwise

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


@pytest.fixture
def captures(monkeypatch):
    """The sizes of results of graphs that are made; a graph here runs its function again, into the same memory."""
    made: list[int] = []

    def capture(fn, pool):
        out = fn().clone()
        made.append(len(out))
        return lambda: out.copy_(fn())

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return made


@torch.inference_mode()
def test_a_batch_in_a_graph_has_the_answers_of_the_batch_alone(model, captures):
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
    assert captures == [
        128,
        128,
        256,
        128,
    ]  # one for each size: batches of three and of two share one
    large = batch_of(*[64] * 65)
    assert relative_error(model.forward_packed(large), model.run_layers(large)) == 0
    assert len(captures) == 4


@torch.inference_mode()
def test_a_capture_that_fails_is_warned_of_once(model, monkeypatch, caplog):
    def capture(fn, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    batch = batch_of(5, 9)
    want = model.forward_packed(batch)
    model._graphs = EncoderGraphs(model.run_layers)
    assert all(torch.equal(model.forward_packed(batch), want) for _ in range(2))
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs, small batches take longer: operation not permitted when stream is capturing"
    ]


def test_host_backends_have_no_graphs(model):
    model.enable_graphs()
    assert model._graphs is None

"""The ways of attention on CPUs, which of them is taken, and that the actors of a job agree."""

from __future__ import annotations

import pytest
import torch
from checkpoints import relative_error
from test_attention import plain

from modernbert import cpu, native
from modernbert.attention import varlen_attention
from modernbert.cpu import WAYS, bfloat16_slowdown, fastest_way, processor
from modernbert.torch_attention import FUSED
from pipelines.raydata.watch import Watch

LENGTHS = (1, 9, 9, 65, 66, 130, 251, 400)
WINDOW = (64, 64)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("window", [None, WINDOW])
@torch.inference_mode()
def test_each_way_is_the_plain_formula_and_no_sequence_depends_on_another(way, window):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, sum(LENGTHS), 2, 64) * 2).bfloat16()
    starts = torch.tensor((0, *LENGTHS)).cumsum(0).int()
    got = varlen_attention(q, k, v, starts, LENGTHS, window, way=way)
    # bf16 has 8 bits of mantissa, in inputs, scores and weights.
    want = plain(q, k, v, LENGTHS, window)
    assert relative_error(got.double(), want) < 2e-2
    for start, length in zip(starts, LENGTHS, strict=False):
        rows = slice(int(start), int(start) + length)
        only = torch.tensor([0, length], dtype=torch.int32)
        alone = varlen_attention(q[rows], k[rows], v[rows], only, (length,), window, way=way)
        assert torch.equal(alone, got[rows])


@pytest.mark.parametrize("fastest", WAYS, ids=str)
def test_the_fastest_way_is_taken_where_it_clearly_wins(monkeypatch, fastest):
    asked = []

    def seconds(q, _k, _v, window, way):
        asked.append((q.shape[1:], q.dtype, window))
        return 0.5 if way == fastest else 1.0

    monkeypatch.setattr(cpu, "_seconds", seconds)
    find = fastest_way.__wrapped__  # without what this process remembers
    assert find(6, 32, WINDOW, torch.bfloat16) == fastest
    assert set(asked) == {((6, 32), torch.bfloat16, WINDOW)}  # the model's own shapes
    asked.clear()
    monkeypatch.setattr(native, "library", lambda: None)
    assert find(6, 32, WINDOW, torch.float32) == FUSED
    assert asked == []  # there is one way


def test_the_first_way_is_taken_where_none_clearly_wins(monkeypatch):
    monkeypatch.setattr(cpu, "_seconds", lambda *arguments: 1.0 if arguments[4] == FUSED else 0.95)
    assert fastest_way.__wrapped__(6, 32, WINDOW, torch.bfloat16) == FUSED


def test_what_is_timed_is_timed_here():
    assert fastest_way.__wrapped__(2, 32, WINDOW, torch.bfloat16) in WAYS
    assert 0.05 < bfloat16_slowdown() < 50


def test_the_processor_is_named_with_what_it_multiplies(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with_amx = processor.__wrapped__()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert "AMX" in with_amx
    assert "AMX" not in processor.__wrapped__()


def test_actors_on_one_kind_of_processor_agree_and_so_does_a_later_attempt():
    watch = Watch()
    assert watch.agree("x (AMX)", ("sdpa", 64)) == ("sdpa", 64)
    assert watch.agree("x (AMX)", ("matmul", 64)) == ("sdpa", 64)
    assert watch.agree("y", ("matmul", 64)) == ("matmul", 64)
    later = Watch(watch.ways())
    assert later.agree("x (AMX)", ("matmul", 128)) == ("sdpa", 64)

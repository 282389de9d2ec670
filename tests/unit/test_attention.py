"""varlen_attention against the plain formula with an explicit mask, and what its memory grows with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import relative_error

from modernbert import torch_attention
from modernbert.attention import varlen_attention
from modernbert.attention_kernels import resolve_backend
from modernbert.encoders.multi_vector import max_similarity, score_together
from modernbert.torch_attention import visible_attention


def plain(q, k, v, lengths, window):
    out, start = [], 0
    for n in lengths:
        q1, k1, v1 = (x[start : start + n].double().transpose(0, 1) for x in (q, k, v))
        scores = q1 @ k1.transpose(1, 2) / q.shape[-1] ** 0.5
        if window:
            offset = torch.arange(n) - torch.arange(n)[:, None]
            scores = scores.masked_fill((offset < -window[0]) | (offset > window[1]), float("-inf"))
        out.append((scores.softmax(-1) @ v1).transpose(0, 1))
        start += n
    return torch.cat(out)


LENGTHS = (1, 2, 9, 9, 65, 66, 130, 209, 251, 300, 1000)


@pytest.mark.parametrize("window", [None, (64, 64), (16, 16), (8, 3)])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_equals_the_plain_formula(window, backend, head_dim):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(LENGTHS), 2, head_dim) * 2
    starts = torch.tensor((0, *LENGTHS)).cumsum(0).int()
    want = plain(q, k, v, LENGTHS, window)
    with torch.no_grad():
        got = varlen_attention(q, k, v, starts, LENGTHS, window, backend=backend)
        half = varlen_attention(
            *(x.bfloat16() for x in (q, k, v)), starts, LENGTHS, window, backend=backend
        )
    torch.testing.assert_close(
        got.double(), want, atol=1e-5, rtol=1e-5
    )  # fp32 rounding of sums of 1000 terms
    assert (
        relative_error(half.double(), want) < 2e-2
    )  # bf16: 8 bits of mantissa, in inputs, scores and weights


def test_gradients_of_tiles_are_finite_and_right():
    torch.manual_seed(0)
    q, k, v = (torch.randn(300, 1, 32, requires_grad=True) for _ in range(3))
    starts = torch.tensor([0, 300], dtype=torch.int32)
    weights = torch.randn(300, 1, 32)
    got = torch.autograd.grad(
        (varlen_attention(q, k, v, starts, (300,), (64, 64)) * weights).sum(), (q, k, v)
    )
    want = torch.autograd.grad((plain(q, k, v, [300], (64, 64)).float() * weights).sum(), (q, k, v))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_temporary_grows_with_the_square_of_a_length(dtype):
    """The largest tensor that any operation makes for one document of 8192 tokens stays far below n * n."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal largest
            out = op(*args, **(kwargs or {}))
            for result in out if isinstance(out, tuple | list) else (out,):
                if isinstance(result, torch.Tensor):
                    largest = max(largest, result.untyped_storage().nbytes())
            return out

    n, heads, dim = 8192, 2, 32
    q, k, v = torch.randn(3, n, heads, dim, dtype=dtype)
    starts = torch.tensor([0, n], dtype=torch.int32)
    torch_attention.tile_mask.cache_clear()
    with torch.no_grad(), Largest():
        varlen_attention(q, k, v, starts, (n,), (64, 64))
        varlen_attention(q, k, v, starts, (n,), None)
    assert (
        largest < n * n
    )  # bytes: an n x n mask alone, without heads, would take 2 to 4 times as many


def test_training_after_inference_with_the_same_masks():
    torch_attention.tile_mask.cache_clear()
    torch_attention.band_mask.cache_clear()
    starts = torch.tensor([0, 100, 400], dtype=torch.int32)
    q = torch.randn(400, 1, 32, requires_grad=True)
    with torch.inference_mode():
        varlen_attention(q, q, q, starts, (300,), (64, 64))
    varlen_attention(q, q, q, starts, (300,), (64, 64)).sum().backward()
    assert q.grad.isfinite().all()


def test_backend_by_name_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="'flash_attn' needs a CUDA device"):
        resolve_backend("flash_attn", torch.device("cpu"), torch.float32, 64)
    with pytest.raises(ValueError, match=r"known are auto, flash_attn_3, .*, eager"):
        resolve_backend("flashy", torch.device("cpu"), torch.float32, 64)
    assert resolve_backend("auto", torch.device("cpu"), torch.bfloat16, 64) == "sdpa"


@pytest.mark.parametrize("window", [None, (8, 8)])
def test_tokens_that_are_not_visible_are_queries_without_keys(window):
    """As the plain formula with the other keys masked; a sequence has the same bits alone."""
    torch.manual_seed(0)
    lengths, visible = (12, 12, 5, 12), (12, 7, 5, 4)
    q, k, v = torch.randn(3, sum(lengths), 2, 32) * 2
    got = visible_attention(q, k, v, seqlens=lengths, visible=torch.tensor(visible), window=window)
    parts = [x.split(lengths) for x in (q, k, v)]
    for i, (length, seen) in enumerate(zip(lengths, visible, strict=True)):
        q1, k1, v1 = (part[i].double().transpose(0, 1) for part in parts)
        offset = torch.arange(length) - torch.arange(length)[:, None]
        hidden = (torch.arange(length) >= seen) | (offset.abs() > (window or (length, 0))[0])
        scores = (q1 @ k1.transpose(1, 2) / 32**0.5).masked_fill(hidden, float("-inf"))
        want = (scores.softmax(-1) @ v1).transpose(0, 1)
        mine = got.split(lengths)[i]
        assert relative_error(mine.double(), want) < 1e-6
        one = visible_attention(
            *(part[i] for part in parts),
            seqlens=(length,),
            visible=torch.tensor([seen]),
            window=window,
        )
        assert torch.equal(one, mine)


@pytest.mark.parametrize("mean", [False, True])
def test_pairs_scored_together_have_the_scores_of_each(mean):
    """As on a GPU: vectors are padded; texts without vectors, and lengths that differ a lot."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 40, (30, 2))
    counts[5], counts[6], counts[20] = (0, 9), (9, 0), (3, 700)
    starts = np.cumsum(counts.ravel()) - counts.ravel()
    vectors = F.normalize(torch.randn(int(counts.sum()), 16), dim=-1)
    want = max_similarity(vectors, starts.reshape(-1, 2), counts, mean)
    got = score_together(vectors, starts.reshape(-1, 2), counts, mean)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert got[5] == got[6] == 0
    assert score_together(vectors[:0], starts[:2].reshape(1, 2), np.zeros((1, 2), int), mean) == 0

"""Which products of the layers go on with what follows them on a GPU (`modernbert.products`), and
which leave it to a kernel of its own (`modernbert.kernels`); and whether LayerNorm is ours.

That is timed as a model is loaded, once a process for each size of product: a fusion that loses on
a GPU is not used there, nor one that fails, gives other results, or whose bits depend on the number
of rows. The choice holds for all batches: these bits of a document do not depend on the others.

Shapes: T packed tokens, D hidden, F MLP width, N heads, H head dim.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert import gpu
from modernbert.layers import ModernBertEncoderLayer, Norm
from modernbert.linear import GatedLinear, Linear
from modernbert.model import ModernBertModel
from modernbert.rope import rope_table
from modernbert.tiles import Fusions, Tile, tiles_for

logger = logging.getLogger(__name__)
_HALF = (torch.bfloat16, torch.float16)  # float32 would be rounded to TF32
_HEAD_DIMS = (16, 32, 64, 128)
_ROWS = (512, 16384)
"""The batches that are timed: of a request, and of a corpus."""
_CLEARLY = 0.96
"""A fusion, or another tile than the first, is taken where it takes at most this share of the time:
processes choose alike.
"""
_ROUNDS = 5
_MOST_ERROR = 0.02
"""Relative, against the usual way: two roundings of bfloat16 differ by 0.005."""
Product = Callable[..., Tensor]
Seconds = Callable[[Callable[[], object]], float]
Way = TypeVar("Way")


@torch.inference_mode()
def fastest(model: ModernBertModel) -> Fusions:
    """Time the products of a model on its GPU, and return how they are fastest.

    Hold `gpu.LAUNCHING` meanwhile.
    """
    config = model.config
    weight = model.embeddings.tok_embeddings.weight
    if weight.dtype not in _HALF or gpu.kernels_for(weight) is None:
        return Fusions()
    size = (weight.device, weight.dtype, config.hidden_size)
    geglu = rope = None
    norm = False
    try:
        if all(_can_gate(layer) for layer in _layers(model)):
            geglu = fastest_gated(*size, config.intermediate_size)
        if all(_can_rotate(layer, config.head_dim) for layer in _layers(model)):
            rope = fastest_rotated(*size, config.head_dim)
        norm = fastest_norm(*size, config.norm_eps)
    except RuntimeError as error:
        if not gpu.is_out_of_memory(error):
            raise
        logger.warning("no memory to time layers on %s: no product is fused", weight.device)
        geglu = rope = None
    torch.cuda.empty_cache()
    chosen = Fusions(geglu, rope, norm)
    logger.info("layers on %s: %s", weight.device, chosen)
    return chosen


def use(model: ModernBertModel, fusions: Fusions) -> None:
    """Compute the layers of a model so from now on, in inference on its GPU; what cannot stays as
    it is.
    """
    gated = rotated = None
    if fusions.geglu is not None or fusions.rope is not None:
        from modernbert import products  # needs Triton, which may not be here

        if fusions.geglu is not None:
            gated = partial(products.gated_product, tile=fusions.geglu)
        if fusions.rope is not None:
            rotated = partial(products.rotated_product, tile=fusions.rope)
    for layer in _layers(model):
        if _can_gate(layer):
            layer.mlp.Wi.product = gated
        if _can_rotate(layer, model.config.head_dim):
            layer.attn.product = rotated
    for module in model.modules():
        if isinstance(module, Norm):
            module.by_kernel = fusions.norm
    model.fusions = fusions


def _layers(model: ModernBertModel) -> list[ModernBertEncoderLayer]:
    return [layer for layer in model.layers if isinstance(layer, ModernBertEncoderLayer)]


def _can_gate(layer: ModernBertEncoderLayer) -> bool:
    gated = layer.mlp.Wi  # another class in float8
    return isinstance(gated, GatedLinear) and gated.bias is None and gated.act is F.gelu


def _can_rotate(layer: ModernBertEncoderLayer, head_dim: int) -> bool:
    projection = layer.attn.Wqkv
    # A tile holds whole heads, whose halves are a size that Triton has.
    is_plain = isinstance(projection, Linear) and projection.bias is None
    return is_plain and head_dim in _HEAD_DIMS


@cache
def fastest_gated(device: torch.device, dtype: torch.dtype, hidden: int, width: int) -> Tile | None:
    """Return the tile by which GeGLU in its product is fastest; None: it is by itself."""
    from modernbert import kernels, products

    weight_FD = _random(2 * width, hidden, dtype, device) * hidden**-0.5

    def apart(x_TD: Tensor) -> Tensor:
        return kernels.geglu(F.linear(x_TD, weight_FD))

    def fused(x_TD: Tensor, tile: Tile) -> Tensor:
        return products.gated_product(x_TD, weight_FD, tile)

    x_TD = _random(_ROWS[-1], hidden, dtype, device)
    return fastest_way("GeGLU in its product, tiles of", apart, _by_tile(fused, device), x_TD)


@cache
def fastest_rotated(
    device: torch.device, dtype: torch.dtype, hidden: int, head_dim: int
) -> Tile | None:
    """Return the tile by which RoPE in its product is fastest; None: it is by itself."""
    from modernbert import kernels, products

    weight_ED = _random(3 * hidden, hidden, dtype, device) * hidden**-0.5
    tables = rope_table(10_000.0, head_dim, 512, device)
    positions_T = torch.arange(_ROWS[-1], dtype=torch.int32, device=device) % 512
    qkv_shape = (3, hidden // head_dim, head_dim)

    def apart(x_TD: Tensor) -> Tensor:
        y_TE = F.linear(x_TD, weight_ED)
        kernels.rotate_(y_TE.unflatten(-1, qkv_shape), *tables, positions_T[: len(x_TD)])
        return y_TE

    def fused(x_TD: Tensor, tile: Tile) -> Tensor:
        positions = positions_T[: len(x_TD)]
        return products.rotated_product(x_TD, weight_ED, *tables, positions, tile)

    x_TD = _random(_ROWS[-1], hidden, dtype, device)
    return fastest_way("RoPE in its product, tiles of", apart, _by_tile(fused, device), x_TD)


def _by_tile(fused: Product, device: torch.device) -> dict[Tile, Product]:
    tiles = tiles_for(gpu.compute_capability(device))
    return {tile: partial(fused, tile=tile) for tile in tiles}


@cache
def fastest_norm(device: torch.device, dtype: torch.dtype, hidden: int, eps: float) -> bool:
    """Return whether our LayerNorm is faster than torch's."""
    from modernbert import kernels

    weight_D = _random(1, hidden, dtype, device)[0]

    def by_torch(x_TD: Tensor) -> Tensor:
        return F.layer_norm(x_TD, (hidden,), weight_D, None, eps)

    def by_kernel(x_TD: Tensor) -> Tensor:
        return kernels.layer_norm(x_TD, weight_D, None, eps)

    x_TD = _random(_ROWS[-1], hidden, dtype, device)
    return fastest_way("LayerNorm by", by_torch, {"Triton": by_kernel}, x_TD) is not None


def fastest_way(
    name: str,
    usual: Product,
    others: Mapping[Way, Product],
    x_TD: Tensor,
    seconds_of: Seconds | None = None,
) -> Way | None:
    """Return which of `others` clearly beats `usual`, the first of them unless another beats it
    clearly, too; None where there is none.

    Args:
        name: what they compute, for the log.
        usual: a function of rows.
        others: the same in other ways.
        x_TD: the rows of the largest batch that is timed.
        seconds_of: how a call is timed; None: by the GPU's clock.
    """
    seconds_of = seconds_of or gpu_seconds
    batches = [x_TD[:rows] for rows in _ROWS if rows <= len(x_TD)]
    ways: dict[Way | None, Product] = {None: usual}
    for other, function in others.items():
        if reason := _why_not(usual, function, x_TD):
            logger.warning("%s %s, is not used on %s: it %s", name, other, x_TD.device, reason)
        else:
            ways[other] = function
    best = {way: [float("inf")] * len(batches) for way in ways}
    for _ in range(_ROUNDS):
        for way, function in ways.items():
            for i, batch in enumerate(batches):
                best[way][i] = min(best[way][i], seconds_of(partial(function, batch)))
    chosen: Way | None = None
    for other in others:
        if other in ways and _share(best[other], best[chosen]) < _CLEARLY:
            chosen = other
    return chosen


def _share(seconds: list[float], others: list[float]) -> float:
    """Return the time of one way as a share of another's: the geometric mean over the batches."""
    shares = [one / other for one, other in zip(seconds, others, strict=True)]
    return statistics.geometric_mean(shares)


def _why_not(usual: Product, other: Product, x_TD: Tensor) -> str:
    """Return what is wrong with another way than the usual one, or an empty text."""
    rows = 129  # a tile, and a row of the next one
    few, many = x_TD[:rows], x_TD[: 8 * rows]
    try:
        got, want, in_company = other(few), usual(few), other(many)[:rows]
        same_bits = torch.equal(got, in_company)
        error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    # The compiler, registers or shared memory that are too few, memory, and more.
    except Exception as failure:
        return f"fails ({(str(failure).splitlines() or [type(failure).__name__])[0]})"
    if not error < _MOST_ERROR:
        return f"differs from the usual way by {error:.1e}"
    return "" if same_bits else "gives other bits with other numbers of rows"


def gpu_seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes on the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=dtype, device=device)

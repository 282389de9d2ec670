"""The Triton kernels: errors against fp64 and rates; products by each tile."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.gpu_parts.common import (
    BUDGETS,
    DEVICE,
    DRY,
    HALF,
    SIZES,
    random,
    relative_error,
    seconds_of,
)
from benchmarks.gpu_parts.lines import Figures
from modernbert import gpu, kernels, products
from modernbert.rope import rope_table
from modernbert.tiles import Tile, tiles_for

_SMALL = Tile(64, 128, 32, warps=4, stages=2, programs=1, tma=False)


def kernel_speeds(figures: Figures) -> None:
    """The error of each kernel against fp64, and the rate at which it moves memory; torch's LayerNorm beside them."""
    tokens = BUDGETS[-1]
    for size_name, config in SIZES:
        d, f, heads, dim = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.head_dim,
        )
        lengths = [max(1, tokens // 128)] * 128
        starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
        tables = rope_table(10_000.0, dim, 8192, DEVICE)
        positions = (torch.arange(tokens) % 512).int().to(DEVICE)
        qkv, y, x = (random(tokens, width, dtype=HALF) for width in (3 * d, 2 * f, d))
        qkv = qkv.view(tokens, 3, heads, dim)
        first = qkv[:64, :2].double().chunk(2, -1)
        cos, sin = (table[positions[:64]].double()[:, None, None] for table in tables)
        rotated = torch.cat((first[0] * cos - first[1] * sin, first[1] * cos + first[0] * sin), -1)
        kernels.rotate_(qkv, *tables, positions)
        a, b = y[:64].double().chunk(2, -1)
        weight, element = torch.ones(d, device=DEVICE, dtype=HALF), HALF.itemsize
        pooled = torch.stack([x_LD.double().mean(0) for x_LD in x.split(lengths)])
        figures[size_name] = {
            "rotate": {
                "error": relative_error(qkv[:64, :2], rotated),
                "tb_s": 4 * tokens * d * element / seconds_of(lambda: kernels.rotate_(qkv, *tables, positions)) / 1e12,
            },
            "geglu": {
                "error": relative_error(kernels.geglu(y)[:64], F.gelu(a) * b),
                "tb_s": 3 * tokens * f * element / seconds_of(lambda: kernels.geglu(y)) / 1e12,
            },
            "pool": {
                "error": relative_error(kernels.pool_sequences(x, starts, "mean"), pooled),
                "tb_s": tokens * d * element / seconds_of(lambda: kernels.pool_sequences(x, starts, "mean")) / 1e12,
            },
            "layer_norm": {
                "tb_s": 2 * tokens * d * element / seconds_of(lambda: F.layer_norm(x, (d,), weight)) / 1e12
            },
            "norm_float8": {
                "tb_s": (element + 1) * tokens * d / seconds_of(lambda: kernels.norm_float8(x, weight, None, 1e-5))
                / 1e12
            },
            "geglu_float8": {
                "tb_s": (2 * element + 1) * tokens * f / seconds_of(lambda: kernels.geglu_float8(y)) / 1e12
            },
        }  # fmt: skip


def product_tiles(figures: Figures) -> None:
    """GeGLU and RoPE within their products, by each tile: error against fp64, TFLOP/s, and microseconds of both ways."""
    tokens = BUDGETS[-1]
    tiles = (_SMALL,) if DRY else tiles_for(gpu.compute_capability(DEVICE))
    for size, config in SIZES:
        hidden, width, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        x = random(tokens, hidden, dtype=HALF)
        few = x[:64].double()
        gated = random(2 * width, hidden, dtype=HALF, seed=1) * hidden**-0.5
        a, b = F.linear(few, gated.double()).chunk(2, -1)
        exact = F.gelu(a) * b
        projection = random(3 * hidden, hidden, dtype=HALF, seed=2) * hidden**-0.5
        tables = rope_table(10_000.0, head_dim, 8192, DEVICE)
        positions = (torch.arange(tokens) % 512).int().to(DEVICE)
        qkv_shape = (3, config.num_attention_heads, head_dim)

        def rotated_apart(
            x=x, projection=projection, tables=tables, positions=positions, shape=qkv_shape
        ):
            y = F.linear(x, projection)
            kernels.rotate_(y.unflatten(-1, shape), *tables, positions)
            return y

        apart_s = seconds_of(lambda x=x, w=gated: kernels.geglu(F.linear(x, w)))
        figures[f"{size} Wi, GeGLU by itself"] = {"us": apart_s * 1e6}
        apart_s = seconds_of(rotated_apart)
        figures[f"{size} Wqkv, RoPE by itself"] = {"us": apart_s * 1e6}
        for tile in tiles:
            try:
                got = products.gated_product(x, gated, tile)
                took = seconds_of(lambda x=x, w=gated, t=tile: products.gated_product(x, w, t))
                figures[f"{size} Wi, GeGLU, {tile}"] = {
                    "error": relative_error(got[:64], exact), "us": took * 1e6,
                    "tflops": 4 * tokens * hidden * width / took / 1e12,
                }  # fmt: skip
                rotated = (x, projection, *tables, positions, tile)
                got = products.rotated_product(*rotated)
                took = seconds_of(lambda r=rotated: products.rotated_product(*r))
                figures[f"{size} Wqkv, RoPE, {tile}"] = {
                    "error": relative_error(got[:64], rotated_apart()[:64]), "us": took * 1e6,
                    "tflops": 6 * tokens * hidden**2 / took / 1e12,
                }  # fmt: skip
            except Exception as error:  # another tile may run
                figures[f"{size} {tile}"] = f"{type(error).__name__}: {error}"[:300]

"""The tiles in which Triton computes products on GPUs (`modernbert.products`)."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple


class Tile(NamedTuple):
    """How a product is cut, and what a program that computes a tile takes of the GPU."""

    rows: int
    """Tokens of a tile."""
    columns: int
    """Rows of the weight that a tile multiplies."""
    depth: int
    """Columns of tokens and of the weight that are multiplied at a time."""
    warps: int
    stages: int
    """How many of these steps are in shared memory at a time."""
    programs: int
    """How many of them a multiprocessor holds at a time."""
    tma: bool
    """Whether the GPU copies whole tiles by itself, which it can from compute capability 9.0 on."""

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}"


class Fusions(NamedTuple):
    """How the layers of a model run on a GPU where there is a choice."""

    geglu: Tile | None = None
    """How the MLP's first product is cut where it goes on with GeGLU; None: it does not."""
    rope: Tile | None = None
    """How the product of queries, keys and values is cut where it goes on with RoPE."""
    norm: bool = False
    """Whether LayerNorm is a kernel of this package, not torch's."""

    def __str__(self) -> str:
        parts = [
            f"{name} in its product, tiles of {tile}" if tile else f"{name} by itself"
            for name, tile in (("GeGLU", self.geglu), ("RoPE", self.rope))
        ]
        return "; ".join((*parts, "LayerNorm by Triton" if self.norm else "LayerNorm by torch"))


_AMPERE = (
    Tile(128, 128, 32, warps=4, stages=4, programs=2, tma=False),
    Tile(128, 256, 32, warps=8, stages=3, programs=1, tma=False),
)
_HOPPER = (
    Tile(128, 256, 64, warps=8, stages=3, programs=1, tma=True),
    Tile(128, 128, 64, warps=8, stages=2, programs=2, tma=True),
)
_TILES = {9: _HOPPER, 10: _HOPPER}


def tiles_for(capability: tuple[int, int]) -> tuple[Tile, ...]:
    """Return the tiles that are tried on GPUs of a compute capability: those that fit into the
    registers and the shared memory of data-centre GPUs.

    Example:
        >>> [str(tile) for tile in tiles_for((9, 0))]
        ['128x256x64', '128x128x64']
    """
    return _TILES.get(capability[0], _AMPERE)


def fusions_named(name: str, capability: tuple[int, int]) -> Fusions | None:
    """Return the fusions whose text is `name`; None where a GPU of that capability has no such."""
    tiles = (None, *tiles_for(capability))
    known = (Fusions(*choice) for choice in product(tiles, tiles, (False, True)))
    return next((fusions for fusions in known if str(fusions) == name), None)

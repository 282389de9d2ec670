"""Compiles the kernels for an A100 (sm_80), an H100 (sm_90) and, as far as they are products, a B200 (sm_100) without a GPU,
and prints what the machine code of each is made of, as JSON.

A process of its own: with TRITON_INTERPRET set, there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modernbert import kernels, products
from modernbert.tiles import Tile, tiles_for

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
BF16, FP8, FP32, INT32 = "*bf16", "*fp8e4nv", "*fp32", "*i32"
ROTATE = {"qkv": BF16, "cos": FP32, "sin": FP32, "positions": INT32, "tokens": "i32"}
GEGLU = {"y": BF16, "out": BF16, "tokens": "i32"}
POOL = {"x": BF16, "starts": INT32, "stops": INT32, "out": FP32, "skip": "i32"}
NORM8 = {
    "x": BF16,
    "weight": BF16,
    "bias": BF16,
    "out": FP8,
    "scales": FP32,
    "tokens": "i32",
    "eps": "fp32",
}
NORM = {name: kind for name, kind in NORM8.items() if name != "scales"} | {"out": BF16}
GEGLU8 = {"y": BF16, "out": FP8, "scales": FP32}
B8 = {"BLOCK_T": 8, "BLOCK_N": 8, "BLOCK_H": 32}
CASES = {
    "rotate base": (kernels.rotate_kernel, ROTATE, {"HEADS": 12, "HALF": 32} | B8),
    "rotate large": (kernels.rotate_kernel, ROTATE, {"HEADS": 16, "HALF": 32} | B8),
    "geglu base": (kernels.geglu_kernel, GEGLU, {"WIDTH": 1152, "BLOCK_T": 16, "BLOCK_F": 128}),
    "geglu large": (kernels.geglu_kernel, GEGLU, {"WIDTH": 2624, "BLOCK_T": 16, "BLOCK_F": 128}),
    "pool mean": (kernels.pool_kernel, POOL, {"POOLING": 0, "WIDTH": 768, "BLOCK_T": 32, "BLOCK_D": 128}),
    "pool max": (kernels.pool_kernel, POOL, {"POOLING": 3, "WIDTH": 768, "BLOCK_T": 32, "BLOCK_D": 128}),
    "pool max of scores": (kernels.pool_kernel, POOL | {"x": FP32}, {"POOLING": 3, "WIDTH": 50368, "BLOCK_T": 32, "BLOCK_D": 128}),
    "norm base": (kernels.norm_kernel, NORM, {"WIDTH": 768, "HAS_BIAS": False, "BLOCK_T": 4, "BLOCK_D": 1024}),
    "norm large": (kernels.norm_kernel, NORM, {"WIDTH": 1024, "HAS_BIAS": False, "BLOCK_T": 4, "BLOCK_D": 1024}),
    "norm8": (kernels.norm_float8_kernel, NORM8, {"WIDTH": 768, "HAS_BIAS": False, "BLOCK_T": 4, "BLOCK_D": 1024}),
    "geglu8 base": (kernels.geglu_float8_kernel, GEGLU8, {"WIDTH": 1152, "BLOCK_F": 1024, "BLOCK_REST": 128}),
    "geglu8 large": (kernels.geglu_float8_kernel, GEGLU8, {"WIDTH": 2624, "BLOCK_F": 2048, "BLOCK_REST": 1024}),
}  # fmt: skip
HIDDEN, WIDTH = 1024, 2624  # of large, whose width no tile divides


def product_cases(capability: tuple[int, int]) -> dict[str, tuple]:
    """Both products, in the tiles that a GPU tries."""
    cases: dict[str, tuple] = {}
    for tile in tiles_for(capability):
        half = tile.columns // 2
        common = {"DEPTH": HIDDEN, "TMA": tile.tma, "BLOCK_T": tile.rows, "BLOCK_D": tile.depth}
        cases[f"gated {tile}"] = (
            products.gated_product_kernel,
            operands(tile, half, half),
            common | {"WIDTH": WIDTH, "BLOCK_F": half},
            tile,
        )
        cases[f"rotated {tile}"] = (
            products.rotated_product_kernel,
            operands(tile, tile.columns, tile.columns)
            | {"cos": FP32, "sin": FP32, "positions": INT32},
            common | {"WIDTH": 3 * HIDDEN, "HALF": 32, "BLOCK_E": tile.columns},
            tile,
        )
    return cases


def operands(tile: Tile, weight_rows: int, out_columns: int) -> dict[str, str]:
    """The types of what a product reads and writes."""

    def matrix(rows: int, columns: int) -> str:
        return f"tensordesc<bf16[{rows},{columns}]>" if tile.tma else BF16

    return {
        "x": matrix(tile.rows, tile.depth),
        "weight": matrix(weight_rows, tile.depth),
        "out": matrix(tile.rows, out_columns),
        "tokens": "i32",
    }


INSTRUCTION = re.compile(r"^ +/\*[0-9a-f]{4,}\*/ +(?!NOP|BRA)[A-Z@]", re.MULTILINE)


def machine_code(
    sm: int, kernel, signature: dict[str, str], constants: dict, tile: Tile | None = None
) -> dict[str, int]:
    """Compile a kernel as it is launched, with aligned pointers, and count in its machine code."""
    names = kernel.arg_names
    aligned = {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in kernel.params
        if signature.get(parameter.name, "").startswith("*")
        and not parameter.do_not_specialize_on_alignment
    }
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    options = dict(kernels.LAUNCH)
    if tile is not None:
        options |= {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    counts = {
        name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)
    }
    loads, stores = re.findall(r"LDG\.(\S+)", code), re.findall(r"STG\.(\S+)", code)
    if tile is not None:
        counts |= {"warps": tile.warps, "programs": tile.programs, "tma": tile.tma}
    return counts | {
        "shared": compiled.metadata.shared,
        "products": len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)", code)),
        "tile_loads": code.count("UTMALDG"), "tile_stores": code.count("UTMASTG"),
        "instructions": len(INSTRUCTION.findall(code)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "loads": len(loads), "wide_loads": sum(".128" in f".{each}" for each in loads),
        "stores": len(stores), "wide_stores": sum(".128" in f".{each}" for each in stores),
    }  # fmt: skip


if __name__ == "__main__":
    compiled = {}
    for sm in (80, 90):
        # e4m3 comes with compute capability 8.9.
        cases = {name: case for name, case in CASES.items() if sm >= 89 or "8" not in name}
        compiled[sm] = {name: machine_code(sm, *case) for name, case in cases.items()}
    compiled["products"] = {}
    for sm in (80, 90, 100):
        cases = product_cases((sm // 10, sm % 10))
        compiled["products"][sm] = {name: machine_code(sm, *case) for name, case in cases.items()}
    # The arguments whose values, or alignment, are compiled in.
    compiled["specialised"] = {
        kernel.fn.__name__: [
            each.name
            for each in kernel.params
            if not each.is_constexpr
            and not each.do_not_specialize
            and not each.do_not_specialize_on_alignment
        ]
        for kernel, *_ in (*CASES.values(), *product_cases((8, 0)).values())
    }
    print(json.dumps(compiled))

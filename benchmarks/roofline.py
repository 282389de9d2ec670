"""What the encoder can reach on a GPU: the operations of a pass, counted, and how long a card takes for each.

    python benchmarks/roofline.py        # the tables of benchmarks/README.md; needs nothing but Python

Bytes, FLOP, launches and tiles are counted (tests/unit/test_roofline.py holds the operations against those that a model
starts on fake tensors), instructions are those of the machine code. How much of a card's peaks each kind of operation
gets is taken from others' measurements, as low, mid and high: no GPU has run this code yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

TOKENS = 65536
LENGTHS = (68, 512, 8192)
BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    hidden: int
    width: int
    heads: int
    layers: int
    global_layers: int


@dataclass(frozen=True, kw_only=True)
class Card:
    name: str
    peak: float
    """Dense TFLOP/s in bfloat16, as sold."""
    products: float
    """TFLOP/s of large products, sustained at the card's power."""
    copies: float
    """TB/s."""
    multiprocessors: int
    ghz: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of a card's rates that operations get."""

    name: str
    products: float
    """Of large products, by those of the model's sizes."""
    fused: float
    """Of cuBLAS's rate, by Triton's products without what follows them."""
    kernels: float
    """Of copies, by Triton's kernels."""
    norms: float
    """Of copies, by torch's LayerNorm."""
    attention: float
    gap_us: float
    """Between two kernels."""


BASE = Model(name="base", hidden=768, width=1152, heads=12, layers=22, global_layers=8)
LARGE = Model(name="large", hidden=1024, width=2624, heads=16, layers=28, global_layers=10)
H100 = Card(name="H100", peak=989, products=720, copies=2.95, multiprocessors=132, ghz=1.65)
H200 = Card(name="H200", peak=989, products=770, copies=4.25, multiprocessors=132, ghz=1.7)
RATES = (
    Rates(name="low", products=0.78, fused=0.85, kernels=0.80, norms=0.50, attention=0.85, gap_us=1.8),
    Rates(name="mid", products=0.87, fused=0.93, kernels=0.88, norms=0.60, attention=1.0, gap_us=1.3),
    Rates(name="high", products=0.94, fused=1.0, kernels=0.93, norms=0.80, attention=1.08, gap_us=1.0),
)  # fmt: skip
MID = RATES[1]
# TFLOP/s of the tiles that attention computes, head dim 64: short or local, up to 700 tokens, above.
FLASH_2 = (260, 290, 320)
FLASH_3 = (300, 370, 455)
# Warp instructions a number of the unfused GeGLU and RoPE, and of an epilogue a number that its product computes.
GEGLU_INSTRUCTIONS, ROPE_INSTRUCTIONS = 0.75, 0.234
GATED_EPILOGUE, ROTATED_EPILOGUE = 0.26, 0.25
ISSUED = 4 * 0.78
"""Warp instructions that a multiprocessor issues a cycle."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the encoder is computed; the defaults are what runs where no fusion wins."""

    geglu: bool = False
    """GeGLU within Wi's product."""
    rope: bool = False
    """RoPE within Wqkv's product."""
    norm: bool = False
    """A LayerNorm of Triton's."""
    folded_norm: bool = False
    """Norms as scale and shift of the products after them: statistics alone are read."""
    flash_3: bool = False
    local_keys: int = 128
    """Keys of a tile of local attention."""
    local_queries: int = 128
    float8_attention: bool = False
    """Global attention at twice the rate."""
    full_tiles: bool = False
    """No tile of attention is partly empty."""
    graphs: bool = False
    stream_k: bool = False
    """The last wave of a product is shared by all multiprocessors."""


FUSED = Plan(geglu=True, rope=True, norm=True)


class Operation(NamedTuple):
    """A kind of kernel in a pass over TOKENS tokens."""

    name: str
    kind: str
    """product, fused, kernel, norm or attention."""
    times: int
    flop: float
    """Of one, in products; of attention, of the tiles that are computed."""
    bytes: float
    tiles: int = 0
    instructions: float = 0.0
    residual: bool = False
    rate: int = 0
    """Of attention: TFLOP/s."""


def operations(model: Model, length: int, plan: Plan) -> Iterator[Operation]:
    """Count what a pass over documents of `length` tokens does."""
    t, d, f = TOKENS, model.hidden, model.width
    hidden_bytes = t * d * BYTES

    def product(name: str, columns: int, depth: int, **changes: object) -> Operation:
        moved = (t * depth + columns * depth + t * columns) * BYTES
        tiles = math.ceil(t / 128) * math.ceil(columns / 256)
        plain = Operation(name, "product", model.layers, 2.0 * t * columns * depth, moved, tiles)
        return plain._replace(**changes)

    qkv, gated = product("Wqkv", 3 * d, d), product("Wi", 2 * f, d)
    if plan.rope:
        yield qkv._replace(
            kind="fused", name="Wqkv, RoPE", instructions=ROTATED_EPILOGUE * 3 * t * d
        )
    else:
        yield qkv
        yield Operation(
            "RoPE", "kernel", model.layers, 0, 4 * hidden_bytes, 0, ROPE_INSTRUCTIONS * 2 * t * d
        )
    yield from attention(model, length, plan)
    yield product("attention's Wo", d, d, residual=True)
    if plan.geglu:
        fused_bytes = gated.bytes - t * f * BYTES
        yield gated._replace(
            kind="fused",
            name="Wi, GeGLU",
            bytes=fused_bytes,
            instructions=GATED_EPILOGUE * 2 * t * f,
        )
    else:
        yield gated
        yield Operation(
            "GeGLU", "kernel", model.layers, 0, 3 * t * f * BYTES, 0, GEGLU_INSTRUCTIONS * t * f
        )
    yield product("MLP's Wo", d, f, residual=True)
    # The first layer's attention has none; embeddings and the last hidden states have.
    norms = 2 * model.layers + 1
    if plan.folded_norm:
        yield Operation("norm statistics", "kernel", norms, 0, hidden_bytes)
    else:
        name = "LayerNorm of Triton's" if plan.norm else "LayerNorm"
        yield Operation(name, "kernel" if plan.norm else "norm", norms, 0, 2 * hidden_bytes)
    yield Operation("embeddings", "kernel", 1, 0, 2 * hidden_bytes)


def attention(model: Model, length: int, plan: Plan) -> Iterator[Operation]:
    """Count attention: the tiles of queries and keys that are computed, empty parts included."""
    rates = FLASH_3 if plan.flash_3 else FLASH_2
    queries, keys = (192, 192) if plan.flash_3 else (128, 128)
    head_dim = model.hidden // model.heads
    documents = TOKENS / length
    moved = 4 * TOKENS * model.hidden * BYTES
    for name, layers in (
        ("global attention", model.global_layers),
        ("local attention", model.layers - model.global_layers),
    ):
        is_local = name.startswith("local")
        if is_local:
            queries, keys = plan.local_queries, plan.local_keys
        pairs = tile_pairs(length, queries, keys, 64 if is_local else None)
        if plan.full_tiles:
            pairs *= length / (math.ceil(length / queries) * queries)
        rate = rates[0] if is_local or length < 300 else rates[1] if length <= 700 else rates[2]
        if plan.float8_attention and not is_local:
            rate *= 2
        flop = 4.0 * pairs * documents * model.heads * head_dim
        # torch fills 16 bytes of state before each call, which waits for nothing.
        yield Operation(name, "attention", layers, flop, moved, rate=rate)


def tile_pairs(length: int, queries: int, keys: int, window: int | None) -> int:
    """Return the pairs of queries and keys in the tiles that a document's attention computes."""
    pairs = 0
    for first in range(0, length, queries):
        begin, end = 0, length
        if window is not None:
            begin, end = max(0, first - window), min(length, first + queries + window)
        pairs += queries * keys * (math.ceil(end / keys) - begin // keys)
    return pairs


def seconds(one: Operation, card: Card, rates: Rates, plan: Plan) -> float:
    """Return how long a card takes for all operations of a kind."""
    copies = card.copies * 1e12
    gap = (0.6 if plan.graphs else rates.gap_us) * 1e-6
    issue = one.instructions / (card.multiprocessors * card.ghz * 1e9 * ISSUED)
    if one.kind in ("product", "fused"):
        rate = card.products * 1e12 * rates.products * (rates.fused if one.kind == "fused" else 1.0)
        compute = one.flop / rate * (1.0 if plan.stream_k else last_wave(one, card))
        memory = one.bytes / (copies * 0.92)
        # Loads and stores of the result overlap imperfectly with short products.
        took = max(compute, memory) + min(compute, memory) * (0.25 if one.residual else 0.125)
        # A tile's epilogue runs while its multiprocessor multiplies nothing, loads of the next tile aside.
        took += issue
    elif one.kind == "attention":
        compute = one.flop / (one.rate * 1e12 * rates.attention)
        took = max(compute, one.bytes / (copies * 0.9))
    else:
        share = rates.norms if one.kind == "norm" else rates.kernels
        took = max(one.bytes / (copies * share), issue)
    return one.times * (took + gap)


def last_wave(one: Operation, card: Card) -> float:
    """Return how much longer a product takes since its last wave of tiles leaves multiprocessors idle."""
    waves = one.tiles / card.multiprocessors
    return math.ceil(waves) / waves


def pass_seconds(
    model: Model, length: int, card: Card, rates: Rates = MID, plan: Plan = FUSED
) -> float:
    return sum(seconds(each, card, rates, plan) for each in operations(model, length, plan))


def useful_flop(model: Model, length: int) -> float:
    """Return the FLOP of products and of the pairs of tokens that attention is for."""
    plain = sum(
        each.flop * each.times
        for each in operations(model, length, Plan())
        if each.kind == "product"
    )
    in_window = sum(min(i + 64, length - 1) - max(i - 64, 0) + 1 for i in range(length))
    pairs = model.global_layers * length**2 + (model.layers - model.global_layers) * in_window
    return plain + 4.0 * pairs * TOKENS / length * model.hidden


# ---- tables ----


def budget(model: Model, cards: Sequence[Card] = (H100, H200)) -> Iterator[str]:
    """A layer, the mean over all layers, at LENGTHS: what it moves, computes and takes, at mid."""
    yield (
        "| | MB | GFLOP | launches | last wave | "
        + " | ".join(f"{card.name}, us" for card in cards)
        + " |"
    )
    yield "|---" * (5 + len(cards)) + "|"
    seen: set[str] = set()
    for plan in (Plan(), FUSED):
        for rows in zip(*(operations(model, length, plan) for length in LENGTHS), strict=True):
            one = rows[0]
            if one.name in seen:
                continue
            seen.add(one.name)
            share = one.times / model.layers  # of the layers that have it, and how often
            wave = f"{last_wave(one, cards[0]) - 1:.1%}" if one.tiles else ""
            yield (
                f"| {one.name} | {one.bytes * share / 1e6:.0f} | {_each(row.flop * share / 1e9 for row in rows)} | "
                f"{share:.2g} | {wave} | "
                + " | ".join(
                    _each(seconds(row, card, MID, plan) / model.layers * 1e6 for row in rows) for card in cards
                )
                + " |"
            )  # fmt: skip
    for name, plan in (
        ("all, none of the three", Plan()),
        ("all, with the three", FUSED),
    ):
        totals = [
            _each(
                pass_seconds(model, length, card, MID, plan) / model.layers * 1e6
                for length in LENGTHS
            )
            for card in cards
        ]
        launches = sum(each.times for each in operations(model, LENGTHS[0], plan)) / model.layers
        yield f"| {name} | | | {launches:.1f} | | " + " | ".join(totals) + " |"


def _each(values: Iterable[float]) -> str:
    """One figure where all are the same, else each."""
    texts = [f"{value:,.0f}" if value >= 0.5 else "" for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


IDEAS = {
    "GeGLU within Wi's product": (Plan(), Plan(geglu=True)),
    "RoPE within Wqkv's product": (Plan(), Plan(rope=True)),
    "a LayerNorm of Triton's": (Plan(), Plan(norm=True)),
    "all three": (Plan(), FUSED),
    "norms folded into the products after them": (FUSED, replace(FUSED, folded_norm=True)),
    "local attention by tiles of 64 keys": (FUSED, replace(FUSED, local_keys=64)),
    "local attention by tiles of 64 queries and 64 keys": (FUSED, replace(FUSED, local_keys=64, local_queries=64)),
    "full tiles of attention": (FUSED, replace(FUSED, full_tiles=True)),
    "FlashAttention 3": (FUSED, replace(FUSED, flash_3=True)),
    "global attention in float8 (FlashAttention 3)": (replace(FUSED, flash_3=True), replace(FUSED, flash_3=True, float8_attention=True)),
    "stream-K": (FUSED, replace(FUSED, stream_k=True)),
    "CUDA graphs of whole buckets": (FUSED, replace(FUSED, graphs=True)),
}  # fmt: skip


def ideas(model: Model, cards: Sequence[Card] = (H100, H200)) -> Iterator[str]:
    """What each idea takes off the time of a pass."""
    columns = [(card, length) for card in cards for length in LENGTHS]
    yield "| saves | " + " | ".join(f"{card.name}, {length}" for card, length in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, (before, after) in IDEAS.items():
        row = f"| {name} |"
        for card, length in columns:
            shares = [
                1 - pass_seconds(model, length, card, rates, after) / pass_seconds(model, length, card, rates, before)
                for rates in RATES
            ]  # fmt: skip
            row += f" {shares[0]:.1%} / {shares[1]:.1%} / {shares[2]:.1%} |"
        yield row


def predictions(cards: Sequence[Card] = (H100, H200)) -> Iterator[str]:
    """Million tokens a second, and the share of the dense peak at mid."""
    plans = {
        "none": Plan(),
        "the three": FUSED,
        "the three, FlashAttention 3": replace(FUSED, flash_3=True),
    }
    yield (
        "| | tokens a document | "
        + " | ".join(f"{card.name}, {name}" for card in cards for name in plans)
        + " |"
    )
    yield "|---" * (2 + len(cards) * len(plans)) + "|"
    for model in (BASE, LARGE):
        for length in (68, 128, 512, 2048, 8192):
            row = f"| {model.name if length == 68 else ''} | {length:,} |"
            for card in cards:
                for plan in plans.values():
                    low, mid, high = (
                        TOKENS / pass_seconds(model, length, card, rates, plan) / 1e6
                        for rates in RATES
                    )
                    share = useful_flop(model, length) * mid * 1e6 / TOKENS / card.peak / 1e12
                    row += f" {low:.2f} / **{mid:.2f}** / {high:.2f} ({share:.0%}) |"
            yield row


def limits(model: Model, cards: Sequence[Card] = (H100, H200)) -> Iterator[str]:
    """The share of the dense peak that is left when the rest takes no time, and with all ideas."""
    plans = {
        "none": Plan(),
        "the three": FUSED,
        "and all ideas that keep the number type": replace(
            FUSED, folded_norm=True, local_keys=64, local_queries=64, full_tiles=True, stream_k=True, graphs=True
        ),
        "products alone, nothing between them": None,
    }  # fmt: skip
    columns = [(card, length) for card in cards for length in LENGTHS]
    yield "| of the dense peak | " + " | ".join(f"{card.name}, {n}" for card, n in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, plan in plans.items():
        row = f"| {name} |"
        for card, length in columns:
            if plan is None:
                kinds = [
                    each for each in operations(model, length, Plan()) if each.kind == "product"
                ]
                took = sum(seconds(each, card, MID, Plan()) for each in kinds)
                flop = sum(each.flop * each.times for each in kinds)
            else:
                flash_3 = replace(plan, flash_3=True)
                took = min(pass_seconds(model, length, card, MID, each) for each in (plan, flash_3))
                flop = useful_flop(model, length)
            row += f" {flop / took / card.peak / 1e12:.0%} |"
        yield row


if __name__ == "__main__":
    tables = (budget(BASE), ideas(BASE), limits(BASE), predictions())
    print(*("\n".join(table) for table in tables), sep="\n\n")

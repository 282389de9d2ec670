"""Every class against transformers in fp32 on hot checkpoints: outputs, losses and gradients; packs; padding; training.

Tolerances, as shares of the norm: 2e-5 for outputs and losses, as for the encoder; 1e-4 for gradients, which sum over
all tokens in another order. Where a gradient is zero by the task (a shift of all scores), 1e-6 is allowed of rounding.
"""

from __future__ import annotations

import copy

import pytest
import torch
from checkpoints import HEADS, TINY, example, relative_error, write_pair

import modernbert
from modernbert.linear import prepack
from modernbert.packing import PackedBatch, pad

BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
LENGTHS = (1, 2, 64, 66, 130, 130, 300)
POOLED = ("ModernBertForSequenceClassification", "ModernBertForMultipleChoice")
LEAST = torch.finfo(torch.float32).min


@pytest.fixture(scope="module", params=HEADS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(the class's name, transformers' model, ours)"""
    return request.param, *write_pair(tmp_path_factory.mktemp("head"), request.param)


def answers(output) -> list[torch.Tensor]:
    names = ("last_hidden_state", "logits", "start_logits", "end_logits")
    return [value for name in names if (value := getattr(output, name, None)) is not None]


def loss_of(output) -> torch.Tensor:
    """The loss; of the bare encoder, one that every number of its output counts in."""
    if hasattr(output, "loss"):
        return output.loss
    values = output.last_hidden_state
    return (
        values * torch.linspace(-1, 1, values.numel()).view_as(values)
    ).mean() + values.square().mean()


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (n,), generator=generator) for n in LENGTHS]


def pack(some: list[torch.Tensor]) -> PackedBatch:
    return PackedBatch.from_lengths(torch.cat(some), tuple(map(len, some)))


@pytest.mark.parametrize("biases", [{}, BIASES], ids=["no biases", "biases"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("architecture", HEADS)
def test_outputs_losses_and_gradients_equal_transformers(tmp_path, architecture, pooling, biases):
    theirs, ours = write_pair(
        tmp_path, architecture, classifier_pooling=pooling, decoder_bias=bool(biases), **biases
    )
    inputs = example(architecture, length=230)  # long enough for attention in tiles of the window
    want, got = theirs(**inputs), ours(**inputs)
    for mine, other in zip(answers(got), answers(want), strict=True):
        assert mine.shape == other.shape
        assert relative_error(mine, other) < 2e-5
    torch.testing.assert_close(loss_of(got), loss_of(want), rtol=2e-5, atol=1e-6)
    loss_of(want).backward()
    loss_of(got).backward()
    wanted = dict(theirs.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == set(wanted)
    for name, weight in ours.named_parameters():
        difference = (weight.grad - wanted[name].grad).norm()
        assert difference <= 1e-4 * wanted[name].grad.norm() + 1e-6, name


@torch.no_grad()
def test_padded_logits_equal_transformers(pair):
    architecture, theirs, ours = pair
    inputs = {name: example(architecture, rows=3)[name] for name in ("input_ids", "attention_mask")}
    lengths = torch.tensor([90, 7, 66]).view(-1, *[1] * (inputs["input_ids"].dim() - 1))
    real = torch.arange(90).expand_as(inputs["input_ids"]) < lengths
    inputs = {"input_ids": inputs["input_ids"] * real, "attention_mask": real.long()}
    for mine, other in zip(answers(ours(**inputs)), answers(theirs(**inputs)), strict=True):
        some = real if mine.shape[: real.dim()] == real.shape else ...
        assert relative_error(mine[some], other[some]) < 2e-5


@torch.no_grad()
def test_packed_together_equals_packed_alone_bit_for_bit(pair):
    _, _, ours = pair
    alone = torch.cat([ours.forward_packed(pack([ids])) for ids in documents()])
    assert torch.equal(ours.forward_packed(pack(documents())), alone)
    assert len(alone) == (len(LENGTHS) if type(ours).__name__ in POOLED else sum(LENGTHS))


@torch.no_grad()
def test_chosen_positions_of_a_masked_language_model(tmp_path):
    _, ours = write_pair(tmp_path, "ModernBertForMaskedLM")
    chosen = torch.tensor([0, 2, 60, 260])
    assert torch.equal(
        ours.forward_packed(pack(documents()), chosen),
        ours.forward_packed(pack(documents()))[chosen],
    )


@torch.no_grad()
def test_no_chosen_positions_of_a_masked_language_model(tmp_path):
    _, ours = write_pair(tmp_path, "ModernBertForMaskedLM")
    assert ours.forward_packed(pack(documents()), torch.tensor([], dtype=torch.long)).shape == (
        0,
        300,
    )


def places(kind: str, rows: int, width: int, length: int) -> torch.Tensor:
    """Which of `width` columns are real, `length` in each of `rows`."""
    start = {"right": 0, "left": width - length}.get(kind)
    if start is not None:
        return (
            (torch.arange(width) >= start)
            .logical_and(torch.arange(width) < start + length)
            .repeat(rows, 1)
        )
    noise = torch.rand(rows, width, generator=torch.Generator().manual_seed(5))
    return noise.argsort(dim=1).argsort(dim=1) < length


@pytest.mark.parametrize("kind", ["right", "left", "scattered"])
def test_padding_changes_nothing_wherever_it_lies(pair, kind):
    """Ids and labels at padding are wild: neither may be read."""
    architecture, _, ours = pair
    plain = example(architecture)
    shape = plain["input_ids"].shape
    real = places(kind, plain["input_ids"].flatten(0, -2).shape[0], 140, 90)
    indices = real.flatten().nonzero()[:, 0]

    def spread(values: torch.Tensor, wild: int) -> torch.Tensor:
        return pad(values.flatten(), indices, len(real), 140, wild).view(*shape[:-1], 140)

    mask = real.view(*shape[:-1], 140).long()
    padded = plain | {"input_ids": spread(plain["input_ids"], 299), "attention_mask": mask}
    if architecture in ("ModernBertForMaskedLM", "ModernBertForTokenClassification"):
        padded["labels"] = spread(plain["labels"], 1)
    for name in {"start_positions", "end_positions"} & set(plain):
        padded[name] = torch.stack(
            [row.nonzero()[at, 0] for row, at in zip(real, plain[name], strict=True)]
        )
    with torch.no_grad():
        want, got = ours(**plain), ours(**padded)
    for mine, other in zip(answers(got), answers(want), strict=True):
        if mine.shape[:2] == real.shape:
            least = LEAST if "Question" in architecture else 0.0
            assert (mine[~real] == least).all()
            mine, other = mine[real], other.flatten(0, 1)
        assert torch.equal(mine, other)
    if hasattr(want, "loss"):
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_prepacked_equals_plain(pair):
    _, _, ours = pair
    packed = copy.deepcopy(ours)
    prepack(packed)
    assert (
        relative_error(
            packed.forward_packed(pack(documents())), ours.forward_packed(pack(documents()))
        )
        < 2e-5
    )


@pytest.mark.parametrize("architecture", [name for name in HEADS if name != "ModernBertModel"])
def test_a_few_steps_of_training_lower_the_loss(architecture):
    dropouts = dict.fromkeys(
        ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"), 0.1
    )
    torch.manual_seed(0)
    model = getattr(modernbert, architecture)(
        modernbert.ModernBertConfig(**TINY | HEADS[architecture] | dropouts)
    )
    inputs = example(architecture, rows=8, length=70)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.no_grad():
        before = model.eval()(**inputs).loss
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert model.eval()(**inputs).loss < 0.7 * before  # eight rows can be learnt by heart

"""Each argument of forward: what it does, that it equals transformers where transformers has it, what it refuses.

Tolerance: 2e-5 of the norm against transformers, as for the encoder; our own layouts of one input agree bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoints import HEADS, example, relative_error, write_pair

from modernbert.packing import unpad

ENCODER = "ModernBertModel"
HEADED = [name for name in HEADS if name != ENCODER]
LENGTHS = (90, 7, 66, 40)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    """{class name: (transformers' model, ours)}, with a window of 32 so that 90 tokens show it."""
    folder = tmp_path_factory.mktemp("pairs")
    return {name: write_pair(folder / name, name, local_attention=32) for name in HEADS}


@pytest.fixture(params=HEADS)
def pair(request: pytest.FixtureRequest, pairs):
    return request.param, *pairs[request.param]


def answer(output) -> torch.Tensor:
    """The answers as one tensor, start and end side by side."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


def padded_example(architecture: str) -> dict[str, torch.Tensor]:
    """Four sequences of LENGTHS, padded on the right with id 0: of multiple choice, two questions with two choices."""
    multiple = "MultipleChoice" in architecture
    inputs = example(architecture, rows=2 if multiple else 4)
    mask = (torch.arange(90) < torch.tensor(LENGTHS)[:, None]).long().view_as(inputs["input_ids"])
    inputs |= {"input_ids": inputs["input_ids"] * mask, "attention_mask": mask}
    if "labels" in inputs and inputs["labels"].shape == mask.shape:
        inputs["labels"] = inputs["labels"].where(mask > 0, -100)
    return inputs


def layout_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keyword arguments `input_ids` and `cu_seqlens` of the same input unpadded, and `indices`."""
    batch, indices = unpad(*(inputs[name].view(4, 90) for name in ("input_ids", "attention_mask")))
    return {"input_ids": batch.input_ids, "cu_seqlens": batch.cu_seqlens, "indices": indices}


@torch.no_grad()
def test_input_ids_and_attention_mask(pair):
    architecture, theirs, ours = pair
    inputs = {name: padded_example(architecture)[name] for name in ("input_ids", "attention_mask")}
    got, want = answer(ours(**inputs)), answer(theirs(**inputs))
    real = inputs["attention_mask"].bool()
    some = real if want.shape[:2] == real.shape else ...
    assert relative_error(got[some], want[some]) < 2e-5
    assert torch.equal(answer(ours(inputs["input_ids"], inputs["attention_mask"].bool())), got)
    whole = {"input_ids": inputs["input_ids"]}
    ones = torch.ones_like(whole["input_ids"])
    assert torch.equal(answer(ours(**whole)), answer(ours(**whole, attention_mask=ones)))
    assert not torch.equal(answer(ours(**whole)), got)


def window_masks(mask: torch.Tensor, half: int) -> dict[str, torch.Tensor]:
    """`sliding_window_mask` in every form in which a caller may have it; additive as transformers 4.57 makes it."""
    column = torch.arange(mask.shape[1])
    near = ((column - column[:, None]).abs() <= half)[None, None]
    seen = near & mask.bool()[:, None, None]
    return {
        "2-D": mask,
        "4-D bool": seen,
        "4-D bool of one row": near,
        "4-D additive": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
    }


@torch.no_grad()
def test_sliding_window_mask_is_accepted_where_it_is_the_window(pairs):
    _, ours = pairs[ENCODER]
    inputs = padded_example(ENCODER)
    plain = answer(ours(**inputs))
    for name, mask in window_masks(inputs["attention_mask"], 16).items():
        assert torch.equal(answer(ours(**inputs, sliding_window_mask=mask)), plain), name


@torch.no_grad()
def test_sliding_window_mask_is_refused_where_it_is_another(pairs):
    _, ours = pairs[ENCODER]
    inputs = padded_example(ENCODER)
    _, *narrower = window_masks(inputs["attention_mask"], 15).values()
    hole = inputs["attention_mask"] * (torch.arange(90) != 3)
    for mask in (*narrower, hole, torch.ones(4, 80), torch.ones(4, 90, 90)):
        with pytest.raises(ValueError, match="not the mask of a window of 16"):
            ours(**inputs, sliding_window_mask=mask)


@torch.no_grad()
def test_sliding_window_mask_goes_by_order_where_padding_lies_between(pairs):
    _, ours = pairs[ENCODER]
    ids = example(ENCODER, rows=1)["input_ids"]
    mask = (torch.arange(90) % 3 > 0).long()[None]
    order = mask.cumsum(dim=1)
    near = (order[:, None, None, :] - order[:, None, :, None]).abs() <= 16
    assert torch.equal(answer(ours(ids, mask, near)), answer(ours(ids, mask)))
    with pytest.raises(ValueError, match="not the mask of a window of 16"):
        ours(ids, mask, window_masks(mask, 16)["4-D bool"])


@torch.no_grad()
def test_sliding_window_mask_beside_packed_input(pairs):
    _, ours = pairs[ENCODER]
    packed = layout_of(padded_example(ENCODER))
    del packed["indices"]
    for mask in (torch.ones(4, 90), torch.ones(4, 1, 90, 90, dtype=torch.bool)):
        with pytest.raises(ValueError, match="leave the mask out"):
            ours(**packed, sliding_window_mask=mask)


@torch.no_grad()
def test_position_ids(pair):
    architecture, theirs, ours = pair
    inputs = {
        name: value
        for name, value in padded_example(architecture).items()
        if not name.endswith("positions")
    }
    real = inputs["attention_mask"].bool()
    apart = (torch.arange(90) * 3 + 5).expand(real.shape)
    got, want = (answer(model(**inputs, position_ids=apart)) for model in (ours, theirs))
    some = real if want.shape[:2] == real.shape else ...
    assert relative_error(got[some], want[some]) < 2e-5
    assert (
        relative_error(got[some], answer(ours(**inputs))[some]) > 1e-2
    )  # steps of 3 are other angles
    assert torch.equal(answer(ours(**inputs, position_ids=apart.flatten(0, -2)[:1])), got)
    counted = torch.arange(90).expand(real.shape)
    assert torch.equal(answer(ours(**inputs, position_ids=counted)), answer(ours(**inputs)))


@torch.no_grad()
def test_position_ids_beyond_max_position_embeddings(pairs):
    theirs, ours = pairs[ENCODER]
    ids = example(ENCODER)["input_ids"]
    positions = torch.arange(90)[None] * 150
    got, want = (answer(model(ids, position_ids=positions)) for model in (ours, theirs))
    assert relative_error(got, want) < 2e-5


@torch.no_grad()
def test_inputs_embeds(pair):
    architecture, theirs, ours = pair
    inputs = {name: padded_example(architecture)[name] for name in ("input_ids", "attention_mask")}
    table = (ours.model if hasattr(ours, "model") else ours).embeddings.tok_embeddings
    vectors = table(inputs["input_ids"])
    mask = inputs["attention_mask"]
    assert torch.equal(
        answer(ours(inputs_embeds=vectors, attention_mask=mask)), answer(ours(**inputs))
    )
    packed = layout_of(inputs)
    flat = table(packed["input_ids"])
    packed |= {"input_ids": None, "indices": None, "inputs_embeds": flat}
    assert torch.equal(answer(ours(**packed)).flatten(), ours_packed(ours, inputs).flatten())
    other = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    real = mask.bool()
    got, want = (
        answer(model(inputs_embeds=other, attention_mask=mask)) for model in (ours, theirs)
    )
    some = real if want.shape[:2] == real.shape else ...
    assert relative_error(got[some], want[some]) < 2e-5


def ours_packed(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    batch, _ = unpad(*(inputs[name].view(4, 90) for name in ("input_ids", "attention_mask")))
    return model.forward_packed(batch)


@torch.no_grad()
def test_indices_cu_seqlens_max_seqlen_batch_size_and_seq_len(pair):
    """Unpadded input with the places to put results: what comes out is what padded input gives, the loss too."""
    architecture, _, ours = pair
    inputs = padded_example(architecture)
    want = ours(**inputs)
    rows = len(inputs["input_ids"])
    labels = {
        name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")
    }
    got = ours(
        **layout_of(inputs),
        **labels,
        max_seqlen=90,
        batch_size=rows,
        seq_len=90,
        output_hidden_states=True,
    )
    assert torch.equal(answer(got), answer(want))
    assert got.hidden_states[0].shape == (4, 90, 64)
    if labels:
        assert torch.equal(got.loss, want.loss)


@torch.no_grad()
def test_cu_seqlens_without_indices_keeps_results_packed(pair):
    architecture, _, ours = pair
    inputs = padded_example(architecture)
    packed = layout_of(inputs)
    indices = packed.pop("indices")
    if "MultipleChoice" in architecture:
        packed["batch_size"] = 2
    got = ours(**packed, output_hidden_states=True)
    assert torch.equal(answer(got).flatten(), ours_packed(ours, inputs).flatten())
    assert got.hidden_states[0].shape == (sum(LENGTHS), 64)
    assert torch.equal(
        answer(ours(**packed | {"input_ids": packed["input_ids"][None]})), answer(got)
    )
    labels = {
        name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")
    }
    if labels:
        flat = {
            n: v.flatten()[indices] if v.shape == inputs["input_ids"].shape else v
            for n, v in labels.items()
        }
        torch.testing.assert_close(
            ours(**packed, **flat).loss, ours(**inputs).loss, rtol=1e-6, atol=1e-6
        )


@torch.no_grad()
def test_position_ids_of_packed_input(pairs):
    _, ours = pairs[ENCODER]
    inputs = padded_example(ENCODER)
    positions = (torch.arange(90) * 2).expand(4, 90)
    packed = layout_of(inputs)
    flat = positions.flatten()[packed["indices"]]
    got = ours(**packed, position_ids=flat, batch_size=4, seq_len=90)
    assert torch.equal(answer(got), answer(ours(**inputs, position_ids=positions)))


@pytest.mark.parametrize("architecture", HEADED)
def test_labels_give_the_loss_and_change_no_answer(pairs, architecture):
    theirs, ours = pairs[architecture]
    inputs = example(architecture)
    unlabelled = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain, labelled = ours(**unlabelled), ours(**inputs)
        assert plain.loss is None
        assert torch.equal(answer(plain), answer(labelled))
        torch.testing.assert_close(labelled.loss, theirs(**inputs).loss, rtol=2e-5, atol=1e-6)


@torch.no_grad()
def test_start_positions_and_end_positions(pairs):
    """Both or no loss; places clipped to the sequence, beyond the end left out: as in transformers without padding."""
    theirs, ours = pairs["ModernBertForQuestionAnswering"]
    ids = example("ModernBertForQuestionAnswering", rows=3)["input_ids"]
    start, end = torch.tensor([0, 5, 500]), torch.tensor([-3, 89, 7])
    assert ours(ids, start_positions=start).loss is None
    got, want = (
        model(ids, start_positions=start, end_positions=end).loss for model in (ours, theirs)
    )
    torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)
    column = ours(ids, start_positions=start[:, None], end_positions=end[:, None]).loss
    assert torch.equal(column, got)


@torch.no_grad()
def test_output_attentions(pair):
    architecture, theirs, ours = pair
    inputs = {name: padded_example(architecture)[name] for name in ("input_ids", "attention_mask")}
    theirs.set_attn_implementation("eager")
    want = theirs(**inputs, output_attentions=True)
    theirs.set_attn_implementation("sdpa")
    got = ours(**inputs, output_attentions=True)
    real = inputs["attention_mask"].view(4, 90).bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand(4, 2, 90, 90)
    assert len(got.attentions) == len(want.attentions) == 4
    for mine, other in zip(got.attentions, want.attentions, strict=True):
        assert mine.shape == other.shape == (4, 2, 90, 90)
        torch.testing.assert_close(
            mine[pairs], other[pairs], rtol=0, atol=2e-5
        )  # weights lie between 0 and 1
        assert not mine[~pairs].any()
    plain = ours(**inputs)
    some = inputs["attention_mask"].bool() if answer(plain).shape[:2] == (4, 90) else ...
    assert (
        relative_error(answer(got)[some], answer(plain)[some]) < 2e-5
    )  # the plain formula rounds otherwise
    assert plain.attentions is None


@torch.no_grad()
def test_output_hidden_states(pair):
    architecture, theirs, ours = pair
    inputs = {name: padded_example(architecture)[name] for name in ("input_ids", "attention_mask")}
    got, want = (
        model(**inputs, output_hidden_states=True).hidden_states for model in (ours, theirs)
    )
    real = inputs["attention_mask"].view(4, 90).bool()
    assert len(got) == len(want) == 5
    for mine, other in zip(got, want, strict=True):
        assert relative_error(mine[real], other[real]) < 2e-5
        assert not mine[~real].any()
    assert ours(**inputs).hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_asked_for_by_the_configuration(pairs, name):
    _, ours = pairs["ModernBertForTokenClassification"]
    model = type(ours)(replace(ours.config, **{name: True})).eval()
    ids = example("ModernBertForTokenClassification")["input_ids"]
    field = name.removeprefix("output_")
    assert len(getattr(model(ids), field)) == 4 + (field == "hidden_states")
    assert getattr(model(ids, **{name: False}), field) is None


@torch.no_grad()
def test_return_dict(pair):
    """False: the loss where there is one, the answers, hidden states, attentions, in the order of transformers."""
    architecture, theirs, ours = pair
    inputs = example(architecture)
    theirs.set_attn_implementation("eager")
    every = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    got, want = ours(**inputs, **every), theirs(**inputs, **every)
    theirs.set_attn_implementation("sdpa")
    assert type(got) is tuple
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        if isinstance(mine, tuple):
            assert [x.shape for x in mine] == [x.shape for x in other]
        else:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    output = ours(**inputs)
    assert torch.equal(output[0], output.to_tuple()[0])
    assert len(ours(**inputs, return_dict=False)) == len(output.to_tuple())


@torch.no_grad()
def test_return_dict_of_the_configuration(pairs):
    _, ours = pairs["ModernBertForTokenClassification"]
    model = type(ours)(replace(ours.config, return_dict=False)).eval()
    ids = example("ModernBertForTokenClassification")["input_ids"]
    assert isinstance(model(ids), tuple)
    assert torch.equal(model(ids, return_dict=True).logits, model(ids)[0])


@torch.no_grad()
def test_output_by_name_and_place(pairs):
    _, ours = pairs["ModernBertForSequenceClassification"]
    output = ours(**example("ModernBertForSequenceClassification"))
    assert output["logits"] is output.logits is output[1]
    assert output["loss"] is output.loss is output[0]
    assert [*output[:2]] == [output.loss, output.logits]


@torch.no_grad()
def test_token_type_ids_are_not_read_and_unknown_arguments_are_errors(pair):
    architecture, _, ours = pair
    inputs = example(architecture)
    types = torch.ones_like(inputs["input_ids"])
    assert torch.equal(answer(ours(**inputs, token_type_ids=types)), answer(ours(**inputs)))
    with pytest.raises(TypeError, match="no argument head_mask"):
        ours(**inputs, head_mask=types)


IDS = torch.arange(5, 25).view(2, 10)
STARTS = torch.tensor([0, 10, 20], dtype=torch.int32)
PACKED = {"input_ids": IDS.flatten(), "cu_seqlens": STARTS}
CONTRADICTIONS = {
    "no input": ({}, "either input_ids or inputs_embeds"),
    "both inputs": (
        {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 10, 64)},
        "either input_ids or inputs_embeds",
    ),
    "one dimension without cu_seqlens": ({"input_ids": IDS[0]}, "packed needs cu_seqlens"),
    "mask of another shape": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 9)},
        "attention_mask is 2 x 9",
    ),
    "a row of padding": (
        {"input_ids": IDS, "attention_mask": torch.eye(2, 10).roll(1, 0) * 0},
        "no real token",
    ),
    "indices alone": ({"input_ids": IDS, "indices": torch.arange(20)}, "needs cu_seqlens too"),
    "batch_size of another": ({"input_ids": IDS, "batch_size": 3, "seq_len": 10}, r"say \(3, 10\)"),
    "max_seqlen too small": ({"input_ids": IDS, "max_seqlen": 9}, "max_seqlen is 9"),
    "max_seqlen too small, packed": (PACKED | {"max_seqlen": 9}, "max_seqlen is 9"),
    "cu_seqlens short": (
        PACKED | {"cu_seqlens": STARTS[:2]},
        "cu_seqlens must rise from 0 to the 20 tokens",
    ),
    "cu_seqlens falling": (PACKED | {"cu_seqlens": STARTS[[0, 2, 1, 2]]}, "cu_seqlens must rise"),
    "cu_seqlens from 1": (PACKED | {"cu_seqlens": torch.tensor([1, 20])}, "cu_seqlens must rise"),
    "indices without seq_len": (
        PACKED | {"indices": torch.arange(20), "batch_size": 2},
        "all three or none",
    ),
    "seq_len without indices": (PACKED | {"batch_size": 2, "seq_len": 10}, "all three or none"),
    "indices of other tokens": (
        PACKED | {"indices": torch.arange(9), "batch_size": 2, "seq_len": 10},
        "indices must rise",
    ),
    "batch_size of other rows": (
        PACKED | {"indices": torch.arange(20), "batch_size": 4, "seq_len": 5},
        "indices must rise",
    ),
    "mask beside cu_seqlens": (PACKED | {"attention_mask": torch.ones(2, 9)}, "leave the mask out"),
    "positions of another shape": (
        {"input_ids": IDS, "position_ids": torch.zeros(2, 9).long()},
        "position_ids",
    ),
    "positions of other tokens": (PACKED | {"position_ids": torch.zeros(9).long()}, "position_ids"),
    "negative positions": (
        {"input_ids": IDS, "position_ids": -torch.arange(10)[None]},
        "position_ids",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_arguments_that_contradict_each_other_are_errors(pairs, case):
    _, ours = pairs[ENCODER]
    arguments, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


@pytest.mark.parametrize(
    "architecture", ["ModernBertForMaskedLM", "ModernBertForTokenClassification"]
)
def test_labels_of_another_shape_are_an_error(pairs, architecture):
    _, ours = pairs[architecture]
    with pytest.raises(ValueError, match="labels are 2 x 9"):
        ours(IDS, labels=torch.ones(2, 9).long())


def test_multiple_choice_wants_the_dimension_of_choices(pairs):
    _, ours = pairs["ModernBertForMultipleChoice"]
    with pytest.raises(ValueError, match=r"\(batch, choices, sequence\)"):
        ours(IDS)

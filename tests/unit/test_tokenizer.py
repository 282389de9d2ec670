"""Ids equal to transformers' fast tokenizer on the same file, pairs, truncation and odd Unicode included."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import transformers

from modernbert.files import CheckpointError
from modernbert.text.encoder import WindowEncoder
from modernbert.text.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat", "", " ", "a" * 5000, "the cat " * 3000, "line\r\nbreaks\t\x00\x07",
    "emoji 👩‍👩‍👧‍👦 here", "combining e\u0301 n\u0303 and composed é ñ", "中文没有空格" * 400,
    "[SEP] in the [MASK] text [CLS]", "\u202eright to left אבג",
    "the\u00a0cat\u2003sat", "x" * 11 + " " * 500 + "y",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    dice = random.Random(0)
    alphabet = "abc thecatsat.,!?  \n\u0301é中👍🏽"
    return [
        "".join(dice.choices(alphabet, k=dice.choice((3, 30, 300, 3000)))) for _ in range(count)
    ]


def split(encoded):
    return np.split(encoded.input_ids, encoded.cu_seqlens[1:-1])


@pytest.fixture(scope="module", params=["right", "left"])
def both(checkpoint, request):
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint, truncation_side=request.param)
    return Tokenizer.from_folder(checkpoint).truncating(request.param), theirs


@pytest.mark.parametrize("max_length", [None, 3, 8, 64, 512])
def test_ids_equal_transformers(both, max_length):
    ours, theirs = both
    texts = TEXTS + random_texts(100)
    got = ours.encode(texts, max_length)
    want = theirs(texts, truncation=max_length is not None, max_length=max_length)["input_ids"]
    whole = theirs(texts)["input_ids"]
    for text, ids, other, full, cut in zip(
        texts, split(got), want, whole, got.truncated, strict=True
    ):
        assert ids.tolist() == other, text[:40]
        assert cut == (len(full) > len(other)), text[:40]
    spans = theirs(
        texts, truncation=max_length is not None, max_length=max_length, return_offsets_mapping=True
    )
    detailed = ours.encode(texts, max_length, details=True)
    assert detailed.input_ids.tolist() == got.input_ids.tolist()
    assert list(map(tuple, detailed.offsets.tolist())) == [
        span for each in spans["offset_mapping"] for span in each
    ]
    called = ours(
        texts, truncation=max_length is not None, max_length=max_length, add_special_tokens=False
    )
    bare = theirs(
        texts, truncation=max_length is not None, max_length=max_length, add_special_tokens=False
    )
    assert called.input_ids == bare["input_ids"]


def test_long_texts_are_not_encoded_whole(both):
    """Encoding takes longer the longer the text is; what is cut off costs nothing."""
    ours, _ = both
    if ours.truncation_side == "right":
        ids = ours._pieces.encode("the cat sat, " * 100_000, 64, 12 * 64)
        assert 64 < len(ids) <= 12 * 64
    lengths = []

    class Spy:
        def encode_batch(self, texts, **options):
            lengths.extend(map(len, texts))
            return ours._fast.encode_batch(texts, **options)

        encode_batch_fast = encode_batch

    spied = WindowEncoder(Spy(), None, None, ours.truncation_side)
    (encoding,) = spied._encode_texts(["the cat sat, " * 100_000], 64, False)
    assert max(lengths) <= 12 * 64
    assert len(encoding.ids) > 64


@pytest.mark.parametrize("max_length", [None, 8, 64])
def test_pairs_equal_transformers(both, max_length):
    ours, theirs = both
    short = [
        text[:300] for text in TEXTS
    ]  # the library's own time for long pairs grows with their product
    pairs = list(zip(short, reversed(short), strict=True))
    got = split(ours.encode(pairs, max_length))
    want = theirs(pairs, truncation=max_length is not None, max_length=max_length)["input_ids"]
    assert [ids.tolist() for ids in got] == want


def test_no_texts_and_no_room(both):
    assert both[0].encode([], 8).cu_seqlens.tolist() == [0]
    with pytest.raises(ValueError, match="2 of its tokens are special"):
        both[0].encode(["a"], 2)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        Tokenizer.from_folder(tmp_path)


PADDINGS = [True, "longest", "max_length", False, "do_not_pad"]
TRUNCATIONS = [None, True, "longest_first", False, "do_not_truncate"]
SHAPES = ["a text", "a pair", "texts", "a list of one text", "texts and second texts", "pairs"]


def inputs_of(shape, one, two):
    """The first arguments of a call, from three texts and three second texts."""
    pairs = list(zip(one, two, strict=True))
    arguments = [(one[0],), (one[0], two[0]), (one,), (one[:1],), (one, two), (pairs,)]
    return dict(zip(SHAPES, arguments, strict=True))[shape]


def called(tokenizer, inputs, options):
    """The result of a call, or the message of its ValueError."""
    try:
        return tokenizer(*inputs, **options), ""
    except ValueError as error:
        return None, str(error)


@pytest.fixture(scope="module", params=[("right", "left"), ("left", "right")], ids=str)
def short(checkpoint, request):
    """Both tokenizers, with a maximum of 12 tokens."""
    truncation_side, padding_side = request.param
    theirs = transformers.AutoTokenizer.from_pretrained(
        checkpoint, truncation_side=truncation_side, padding_side=padding_side, model_max_length=12
    )
    settings = {
        "truncation_side": truncation_side,
        "padding_side": padding_side,
        "model_max_length": 12,
    }
    fast = Tokenizer.from_folder(checkpoint)._fast
    return Tokenizer(fast, settings), theirs


@pytest.mark.filterwarnings("ignore:.max_length. is ignored")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_equals_transformers_in_every_combination(short, shape):
    ours, theirs = short
    dice = random.Random(shape)
    texts = [
        "",
        "c",
        "the cat",
        "the cat sat on the mat",
        "the cat sat " * 30,
        "é 中文 👍🏽 \u2028 [SEP]",
    ]
    lengths = [None, 1, 3, 4, 8, 30]
    compared = 0
    for padding, truncation, max_length, special, tensors in itertools.product(
        PADDINGS, TRUNCATIONS, lengths, [True, False], [None, "pt"]
    ):
        one, two = (dice.choices(texts, k=3) for _ in range(2))
        inputs = inputs_of(shape, one, two)
        options = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "add_special_tokens": special,
            "return_tensors": tensors,
        }
        want, their_mistake = called(theirs, inputs, options)
        got, our_mistake = called(ours, inputs, options)
        if (
            "leaves no room" in our_mistake
        ):  # there transformers gives special tokens alone, or does not truncate
            assert special
            assert max_length <= 3
            continue
        assert bool(our_mistake) == bool(their_mistake) or "rows have from 0 to" in our_mistake
        if our_mistake:  # of rows without tokens beside others transformers makes a list
            assert "which cannot be one tensor: give padding=True" in our_mistake
            continue
        compared += 1
        for name in ("input_ids", "attention_mask"):
            if tensors:
                assert got[name].dtype == want[name].dtype
            values = [each[name].tolist() if tensors else each[name] for each in (got, want)]
            assert values[0] == values[1], (inputs, options, name)
    assert compared > 300


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (
            ["a"],
            {"padding": "longer"},
            "padding is 'longer'; it must be one of True, 'longest', 'max_length', False",
        ),
        (["a"], {"padding": 1}, "padding is 1; it must be one of"),
        (
            ["a"],
            {"truncation": "only_first"},
            "truncation is 'only_first'; it must be one of True, 'longest_first'",
        ),
        (["a"], {"max_length": 0}, "max_length is 0; it must be a number of tokens, at least 1"),
        (["a"], {"max_length": "8"}, "max_length is '8'; it must be a number"),
        (["a"], {"return_tensors": "np"}, "return_tensors is 'np'; known is 'pt'"),
        (
            ["a"],
            {"return_offsets_mapping": True},
            "return_offsets_mapping is not available: arguments are text, ",
        ),
        (["a"], {"stride": 3}, "stride is not available"),
        (["a", ["b"]], {}, "text and text_pair must both be a text, or both be lists"),
        ([["a"], "b"], {}, "text and text_pair must both be a text, or both be lists"),
        ([["a", "b"], ["c"]], {}, "text holds 2 texts and text_pair 1; give as many"),
        ([["a", 3]], {}, "text 1 is '3'; it must be a text or a pair"),
        ([["a", ("b", "c", "d")]], {}, "text 1 is .* it must be a text or a pair"),
        ([None], {}, "text is None; it must be a text or a list"),
        ([["a", ("b", "c")]], {}, "documents are texts and pairs of texts"),
    ],
)
def test_what_a_call_does_not_take_is_named(both, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        both[0](*inputs, **options)


def test_no_texts_are_no_rows(both):
    assert both[0]([]) == {"input_ids": [], "attention_mask": []}
    assert both[0]([], padding=True, return_tensors="pt").input_ids.shape == (0, 0)


def test_the_padding_side_comes_from_the_settings_then_from_tokenizer_json(checkpoint):
    fast = Tokenizer.from_folder(checkpoint)._fast
    fast.enable_padding(direction="left")
    tokenizer = Tokenizer(fast)
    assert tokenizer.padding_side == "left"
    assert tokenizer.truncating("left").padding_side == tokenizer.lowercased.padding_side == "left"
    assert tokenizer(["a", "the cat"], padding=True).attention_mask[0][0] == 0
    fast.enable_padding(direction="left")
    assert Tokenizer(fast, {"padding_side": "right"}).padding_side == "right"
    with pytest.raises(CheckpointError, match="padding_side is 'up'; it must be 'left' or 'right'"):
        Tokenizer(fast, {"padding_side": "up"})

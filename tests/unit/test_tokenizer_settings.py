"""What lies beside tokenizer.json counts as it does in transformers, or is refused by its name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from checkpoints import TINY, write_tokenizer

from modernbert.files import CheckpointError, fingerprint
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.tokenizer_settings import CLEAN_UP_BPE

TEXTS = [
    "the cat",
    " the cat",
    "",
    "THE Cat<x> sat",
    "a <x>b [MASK] </s> <s> [SEP] zz",
    "word<extra>y É é",
    "  the  ",
]
PLAIN = {
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": False,
}
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FOLLOWED = {
    "an added token": {CONFIG: {"added_tokens_decoder": {"300": {"content": "<x>"} | PLAIN}}},
    "one that takes spaces": {
        CONFIG: {"added_tokens_decoder": {"284": {"content": "<x>"} | PLAIN | {"lstrip": True, "rstrip": True}}}
    },
    "other flags": {CONFIG: {"added_tokens_decoder": {"4": {"content": "[MASK]"} | PLAIN | {"rstrip": True}}}},
    "additional special tokens": {CONFIG: {"additional_special_tokens": ["<x>", "<s>"]}},
    "extra special tokens": {CONFIG: {"extra_special_tokens": ["<x>"], "additional_special_tokens": ["<s>"]}},
    "extra special tokens by name": {CONFIG: {"extra_special_tokens": {"image_token": "<x>"}}},
    "a special token of the model": {CONFIG: {"image_token": "<x>"}},
    "another mask": {CONFIG: {"mask_token": "<x>"}},
    "begin and end": {CONFIG: {"bos_token": "<s>", "eos_token": "</s>"}},
    "special tokens that the template lacks": {CONFIG: {"cls_token": "<s>", "sep_token": "</s>"}},
    "special_tokens_map.json": {SPECIAL: {"mask_token": "<x>", "additional_special_tokens": ["<extra>"]}},
    "special_tokens_map.json with flags": {
        SPECIAL: {"mask_token": {"content": "<x>", "lstrip": True, "rstrip": False, "normalized": False}}
    },
    "special_tokens_map.json beside added_tokens_decoder": {
        CONFIG: {"added_tokens_decoder": {}}, SPECIAL: {"mask_token": "<x>"},
    },
    "added_tokens.json": {ADDED: {"<x>": 284, "<s>": 285}},
    "special tokens split": {CONFIG: {"split_special_tokens": True}},
    "another class": {CONFIG: {"tokenizer_class": "RobertaTokenizerFast", "add_bos_token": True, "trim_offsets": 0}},
    "the same as tokenizer.json": {CONFIG: {"add_prefix_space": False, "do_lower_case": False}},
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    write_tokenizer(tmp_path)
    transformers.ModernBertConfig(**TINY).save_pretrained(tmp_path)

    def change(files):
        for name, content in files.items():
            stored = (
                json.loads((tmp_path / name).read_text()) if (tmp_path / name).is_file() else {}
            )
            (tmp_path / name).write_text(json.dumps(stored | content))
        return tmp_path

    return change


def both(folder):
    return Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, documents):
    windows = tokenizer.encode(documents)
    return [part.tolist() for part in np.split(windows.input_ids, windows.cu_seqlens[1:-1])]


@pytest.mark.parametrize("files", FOLLOWED.values(), ids=FOLLOWED)
def test_ids_equal_transformers(write, files):
    ours, theirs = both(write(files))
    assert ids(ours, TEXTS) == theirs(TEXTS)["input_ids"]
    assert (
        ids(ours, list(zip(TEXTS, TEXTS[::-1], strict=True)))
        == theirs(TEXTS, TEXTS[::-1])["input_ids"]
    )
    assert ours.vocab_size == len(theirs)
    assert ours.mask_token_id == theirs.mask_token_id
    for row in theirs(TEXTS)["input_ids"]:
        assert ours.decode(row, skip_special_tokens=True) == theirs.decode(
            row, skip_special_tokens=True
        )
    theirs.backend_tokenizer.normalizer = ours.lowercased._fast.normalizer
    assert ids(ours.lowercased, TEXTS) == theirs(TEXTS)["input_ids"]


REFUSED = [
    (
        {"add_prefix_space": True},
        "has add_prefix_space True, but tokenizer.json False: versions of transformers differ",
    ),
    ({"do_lower_case": True}, "has do_lower_case True, but tokenizer.json False"),
    ({"truncation_side": "middle"}, "has truncation_side 'middle'; it must be 'left' or 'right'"),
    ({"added_tokens_decoder": {"300": {"text": "<x>"}}}, "describes a token by {'text': '<x>'}"),
    ({"model_max_length": "512"}, "has model_max_length '512'; it must be a number"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_settings_that_nobody_can_follow(write, settings, message):
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(write({CONFIG: settings}))


@pytest.mark.parametrize("setting", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_bert_normalizer_that_tokenizer_config_contradicts(write, setting, stated):
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": not stated,
                  "strip_accents": not stated, "lowercase": not stated}  # fmt: skip
    write({"tokenizer.json": {"normalizer": normalizer}})
    with pytest.raises(
        CheckpointError, match=f"has {setting} {stated}, but tokenizer.json {not stated}"
    ):
        Tokenizer.from_folder(write({CONFIG: {setting: stated}}))
    ours, theirs = both(write({CONFIG: {setting: not stated}}))
    assert ids(ours, TEXTS) == theirs(TEXTS)["input_ids"]


@pytest.mark.parametrize(
    ("longest", "want"),
    [(-1, None), (0, None), (None, None), (10**30, None), (1e30, None), (512, 512), (64.0, 64)],
)
def test_model_max_length(write, longest, want):
    assert (
        Tokenizer.from_folder(write({CONFIG: {"model_max_length": longest}})).model_max_length
        == want
    )


SPACED = "the cat . ? ! , ' is n't I 'm it 's we 've you 're the end"


@pytest.mark.parametrize("settings", [{}, {CLEAN_UP_BPE: True}], ids=["", "even of BPE"])
@pytest.mark.parametrize("model", ["BPE", "WordPiece"])
def test_decoding_cleans_up_spaces(write, settings, model):
    if model == "WordPiece":
        tokenizer = {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                               "max_input_chars_per_word": 9, "vocab": {w: i for i, w in enumerate(SPACED.split())}},
                     "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "WordPiece", "prefix": "##",
                     "cleanup": False}, "added_tokens": [], "post_processor": None}  # fmt: skip
        tokenizer["model"]["vocab"]["[UNK]"] = 99
        write({"tokenizer.json": tokenizer})
    ours, theirs = both(write({CONFIG: {"clean_up_tokenization_spaces": True} | settings}))
    row = theirs(SPACED, add_special_tokens=False)["input_ids"]
    assert ours.decode(row) == theirs.decode(row)
    assert (" ." in ours.decode(row)) == (model == "BPE" and not settings)


TRUNCATION = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    "stored", [{}, {"truncation": TRUNCATION}], ids=["", "tokenizer.json left"]
)
@pytest.mark.parametrize(
    "stated", [{}, {"truncation_side": "left"}, {"truncation_side": "right"}], ids=str
)
def test_the_truncation_side(write, stored, stated):
    ours, theirs = both(write({"tokenizer.json": stored, CONFIG: stated}))
    assert ours.truncation_side == ours.lowercased.truncation_side == theirs.truncation_side
    want = theirs(TEXTS, truncation=True, max_length=4)["input_ids"]
    assert ours(TEXTS, truncation=True, max_length=4).input_ids == want


def test_the_fingerprint_changes_with_each_file(write):
    from safetensors.numpy import save_file

    folder = write({})
    save_file({"x": np.zeros(1)}, folder / "model.safetensors")
    seen = {fingerprint(folder)}
    for name in (CONFIG, SPECIAL, ADDED):
        seen.add(fingerprint(write({name: {"<x>": 284}})))
    assert len(seen) == 4

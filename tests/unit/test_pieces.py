"""Ids from the cache of pieces, and offsets and word ids beside them, are those of the tokenizers library.

`FUZZED_TEXTS=1000000 pytest tests/unit/test_pieces.py -k fuzzed` checks as many texts.
"""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from checkpoints import TOKENIZERS, write_tokenizer
from tokenizers import AddedToken

from modernbert.text import pieces
from modernbert.text.pieces import PieceCache
from modernbert.text.tokenizer import Tokenizer

FUZZED_TEXTS = int(os.environ.get("FUZZED_TEXTS", "4000"))
NO_LIMIT = 1 << 60
WORDS = (
    "the cat's it's we're they'll I'd I'm can't 'tis sat 12 3.14 =<>; K` e.g. (so) A1b2 don't' ''s\n\n\t\tif x:\n"
    * 3
)
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
MARKS = "\u0301\u0338\u0344\u0327\u1b11\u3099\u200d\ufe0f\u20e3"
MADE_ASCII = "\u037e\u1fef\u212a"
"""Characters that NFC turns into ; ` and K."""
ADDED = [
    "[MASK]",
    "[SEP]",
    "[MAS",
    "MASK]",
    "[MAS\u212a]",
    "|||IP_ADDRESS|||",
    "||",
    "<mask>",
    "<s>",
    "<pad>",
]
ALPHABETS = [
    "abc thecatsat.,!? ", "'s't're've'm'll'dABCsT’", "0123²½Ⅷ٣一二三 1a", "\x00\x01\x07\x1b\x7f\x80\x9f a1'", "e\u0301n\u1100\u1161ﬁ K\u212a;",
    "אבג\u202eعربيहिन्दी '", "中文没有空格，。 ", "ภาษาไทย ", "русский язык ", "日本語のテキスト", "한국어 텍스트", "👍🏽👩\u200d🔬 x",
    "=<>;:(){}[]|`~@#$%^&*-_+/\\\"'", "éàüñçß aeiou",
]  # fmt: skip


def word(dice: random.Random) -> str:
    return "".join(dice.choices(dice.choice(ALPHABETS), k=dice.randint(1, 12)))


def any_characters(dice: random.Random) -> str:
    """Characters of any blocks of Unicode."""
    codes = []
    for _ in range(dice.randint(1, 8)):
        code = dice.randrange(0x110000 if dice.random() < 0.3 else 0x3400)
        codes.append(code if not 0xD800 <= code < 0xE000 else 0xE000)
    return "".join(map(chr, codes))


def same_spaces(dice: random.Random) -> str:
    return dice.choice(SPACES if dice.random() < 0.3 else " \n\t") * dice.randint(1, 60)


def mixed_spaces(dice: random.Random) -> str:
    return "".join(
        dice.choices(SPACES if dice.random() < 0.3 else "  \n\t\r", k=dice.randint(2, 9))
    )


def one_or_two_spaces(dice: random.Random) -> str:
    return dice.choice([" ", "  "])


def code_line(dice: random.Random) -> str:
    indentation = dice.choice(["\t", " ", "    "]) * dice.randint(0, 6)
    end = dice.choice(["\n", "\r\n", "  \n", "\n\n"])
    return f"{indentation}self._cat(x, 'it''s', n={dice.randrange(1000)})  # {word(dice)}{end}"


def with_added_token(dice: random.Random) -> str:
    return word(dice) + dice.choice(ADDED) + word(dice)


def with_marks(dice: random.Random) -> str:
    return (
        dice.choice(["", " ", "\n", "a", "'s", "]"]) + dice.choice(MARKS + MADE_ASCII) + word(dice)
    )


PARTS = [word, any_characters, same_spaces, mixed_spaces, code_line, with_added_token, with_marks]
USUAL_PARTS = [word, one_or_two_spaces, one_or_two_spaces, code_line]


def odd_text(dice: random.Random) -> str:
    """A text of odd parts; half of them have few, so that the cache answers them."""
    kinds = PARTS if dice.random() < 0.5 else USUAL_PARTS
    return "".join(dice.choice(kinds)(dice) for _ in range(dice.choice((1, 2, 3, 6, 12))))


def write_modernbert(folder, **change):
    """Write a tokenizer with the added tokens of ModernBERT's: some special, runs of spaces, an address."""
    write_tokenizer(folder, 600, WORDS)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    for spelling in ["|||IP_ADDRESS|||", *(" " * n for n in range(24, 1, -1))]:
        token = {"id": 600 + len(content["added_tokens"]), "content": spelling}
        content["added_tokens"].append(token | flags)
    file.write_text(json.dumps(content | change))


STYLES = TOKENIZERS | {
    "ModernBERT": write_modernbert,
    "no normaliser": lambda folder: write_modernbert(folder, normalizer=None),
    "lower-cased": write_modernbert,
    "split special tokens": write_modernbert,
}
CACHED = {"byte-level BPE", "ModernBERT", "no normaliser", "split special tokens"}


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(style, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    STYLES[style](folder)
    if style == "split special tokens":
        settings = folder / "tokenizer_config.json"
        settings.write_text(
            json.dumps(json.loads(settings.read_text()) | {"split_special_tokens": True})
        )
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer = tokenizer.lowercased if style == "lower-cased" else tokenizer
    assert (tokenizer._pieces is not None) == (style in CACHED)
    return tokenizer


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_modernbert(folder)
    return Tokenizer.from_folder(folder)


def by_text(windows, values) -> list:
    bounds = pairwise(windows.cu_seqlens.tolist())
    return [values[start:stop].tolist() for start, stop in bounds]


def check(tokenizer: Tokenizer, texts: list[str], max_length: int, cause: str) -> None:
    """Assert that whole texts, texts with details and texts that are cut off are the library's."""
    encodings = tokenizer._fast.encode_batch(texts, add_special_tokens=False)
    whole = tokenizer.encode(texts, add_special_tokens=False)
    detailed = tokenizer.encode(texts, add_special_tokens=False, details=True)
    cut = tokenizer.encode(texts, max_length, add_special_tokens=False)
    rows = zip(
        texts,
        encodings,
        by_text(whole, whole.input_ids),
        by_text(detailed, detailed.input_ids),
        by_text(detailed, detailed.offsets),
        by_text(detailed, detailed.word_ids),
        by_text(cut, cut.input_ids),
        cut.truncated.tolist(),
        strict=True,
    )
    for text, want, ids, detailed_ids, offsets, words, cut_ids, is_cut in rows:
        where = f"{cause}, max_length {max_length}: {text!a}"
        assert ids == detailed_ids == want.ids, where
        assert list(map(tuple, offsets)) == want.offsets, where
        assert words == want.word_ids, where
        assert cut_ids == want.ids[:max_length], where
        assert is_cut == (len(want.ids) > max_length), where


@pytest.mark.parametrize("seed", [0, None], ids=["fixed", "random"])
def test_fuzzed_texts_are_encoded_as_by_the_library(style, tokenizer, seed):
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    dice = random.Random(seed)
    left = FUZZED_TEXTS // (2 * len(STYLES))
    answered = 0
    asked = 0
    detailed = 0
    while left > 0:
        texts = [odd_text(dice) for _ in range(min(left, 500))]
        check(tokenizer, texts, dice.choice((1, 2, 3, 5, 8, 20)), f"{style}, seed {seed}")
        left -= len(texts)
        if tokenizer._pieces is not None:
            asked += len(texts)
            answers = [tokenizer._pieces.encode(text, NO_LIMIT, NO_LIMIT) for text in texts]
            answered += sum(ids is not None for ids in answers)
        if tokenizer._details is not None:
            detailed += sum(
                tokenizer._details.encode_detailed(text, NO_LIMIT, NO_LIMIT) is not None
                for text in texts
            )
    # Else little is tested.
    assert answered >= asked / 3
    assert detailed == answered  # the same texts


def test_pairs_and_windows_are_encoded_as_without_the_cache(modernbert):
    dice = random.Random(7)
    texts = [odd_text(dice) for _ in range(100)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    plain = Tokenizer(modernbert._fast)
    plain._pieces = plain._details = None
    for options in ({"max_length": 24, "stride": 4}, {"max_length": 24}, {}):
        for documents in (texts, pairs):
            got, want = modernbert.encode(documents, **options), plain.encode(documents, **options)
            assert got.input_ids.tolist() == want.input_ids.tolist()
            assert got.cu_seqlens.tolist() == want.cu_seqlens.tolist()
    got, want = modernbert.truncating("left").encode(texts, 9), plain.truncating("left")
    want._pieces = None
    assert got.input_ids.tolist() == want.encode(texts, 9).input_ids.tolist()


USUAL = {
    "prose": "The cat sat on the mat, and it's there still.",
    "two spaces": "The cat sat.  It's there.   Still.",
    "code": "def cat(self):\n    if self.sat:\n\t\treturn [x for x in mats]  # why\n\n",
    "an indentation of 40": "x" + " " * 40 + "y",
    "line ends": "one\r\n\r\ntwo\n\n\n",
    "French": "L'été, le chat s'est assis là.\u00a0Et après\u00a0?",
    "Russian": "Кот сидел на ковре, и он там до сих пор.",
    "one Chinese word": "The cat (猫) sat on the mat.",
}
LEFT = {
    "Chinese": "猫坐在垫子上，它还在那里。没有人知道为什么。",
    "Thai": "แมวนั่งอยู่บนเสื่อและมันยังอยู่ที่นั่น ไม่มีใครรู้ว่าทำไมมันจึงอยู่",
    "a special token": "The cat [MASK] on the mat.",
    "an odd space": "The cat\u2003sat on the mat.",
}


@pytest.mark.parametrize(("texts", "is_answered"), [(USUAL, True), (LEFT, False)])
def test_it_answers_texts_of_words_and_leaves_others_to_the_library(modernbert, texts, is_answered):
    for name, text in texts.items():
        ids = modernbert._pieces.encode(text, NO_LIMIT, NO_LIMIT)
        assert (ids is not None) == is_answered, name


KINDS_OF_WORDS = {
    "letters": "abcdefghijklmnopqrstuvwxyz",
    "emoji": [chr(code) for code in range(0x1F600, 0x1F640)],
}


@pytest.mark.parametrize("alphabet", KINDS_OF_WORDS.values(), ids=KINDS_OF_WORDS)
def test_its_memory_is_bounded(modernbert, monkeypatch, alphabet):
    monkeypatch.setattr(pieces, "MAX_BYTES", 1_000_000)
    dice = random.Random(0)
    words = ["".join(dice.choices(alphabet, k=dice.randint(3, 14))) for _ in range(4_000)]
    cache = PieceCache.for_tokenizer(modernbert._fast)
    most = 0
    tracemalloc.start()
    for word in words:
        cache.encode(f"{word} {word}", NO_LIMIT, NO_LIMIT)
        most = max(most, len(cache))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) < most, "it was never full"
    assert 300_000 < peak_bytes < 1_000_000


def test_long_pieces_are_not_kept(modernbert):
    cache = PieceCache.for_tokenizer(modernbert._fast)
    cache.encode("x" * 65 + " " + "y" * 63, NO_LIMIT, NO_LIMIT)
    assert list(cache) == [" " + "y" * 63]


def test_threads_share_it(modernbert, monkeypatch):
    monkeypatch.setattr(pieces, "MAX_BYTES", 5_000)  # it is emptied all the time
    cache = PieceCache.for_tokenizer(modernbert._fast)
    text = " ".join(f"cat{n} it's" for n in range(200))
    want = modernbert._fast.encode(text, add_special_tokens=False).ids
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(lambda _: cache.encode(text, NO_LIMIT, NO_LIMIT), range(50)):
            assert ids == want


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
LOWERCASE = {"type": "Lowercase"}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": LOWERCASE},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, LOWERCASE]}},
        {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
        {"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
    ids=str,
)
def test_tokenizers_that_cut_otherwise_have_none(tmp_path, change):
    write_modernbert(tmp_path, **change)
    assert Tokenizer.from_folder(tmp_path)._pieces is None


def test_offsets_that_a_post_processor_trims_are_the_librarys(tmp_path):
    trims = {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", 3],
        "cls": ["[CLS]", 2],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    write_modernbert(tmp_path, post_processor=trims)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer._pieces is not None
    assert tokenizer._details is None
    check(tokenizer, list(USUAL.values()), 5, "trimmed")


def test_offsets_are_the_librarys_where_a_byte_has_no_token(tmp_path):
    write_modernbert(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    spelled_otherwise = vocabulary.pop("§")
    vocabulary["§§"] = spelled_otherwise
    file.write_text(json.dumps(content))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer._details is None
    check(tokenizer, ["the cat §1", "a § b"], 5, "no token")


def test_a_tokenizer_with_dropout_has_none(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.1
    file.write_text(json.dumps(content))
    assert Tokenizer.from_folder(tmp_path)._pieces is None


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("é"),
        AddedToken("two words"),
        AddedToken("\t\t"),
        AddedToken(" " * 26),
        AddedToken(" " * 25, lstrip=True),
        AddedToken(" " * 25, single_word=True),
        AddedToken(" " * 25, special=True),
    ],
    ids=str,
)
def test_tokenizers_with_other_added_tokens_have_none(tmp_path, token):
    write_modernbert(tmp_path)
    fast = Tokenizer.from_folder(tmp_path)._fast
    assert PieceCache.for_tokenizer(fast) is not None
    fast.add_tokens([token])
    assert PieceCache.for_tokenizer(fast) is None

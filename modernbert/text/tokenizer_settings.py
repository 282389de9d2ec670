"""What tokenizer_config.json, special_tokens_map.json and added_tokens.json add to tokenizer.json.

It is what transformers 5 makes of them for ModernBERT. A setting that version 4 applied and version
5 passes over is refused where it contradicts tokenizer.json: nobody can tell which of the two a
model was trained with.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from modernbert.files import read_json
from modernbert.stored import CheckpointError, CheckpointPath, Json

_CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# settings of tokenizer_config.json, and the same in a BertNormalizer of tokenizer.json
_BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

CLEAN_UP_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
"""The setting without which `clean_up_tokenization_spaces` means nothing for BPE vocabularies."""
_CLEAN_UPS = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


def read_tokenizer_settings(folder: CheckpointPath, fast: FastTokenizer) -> Json:
    """Read the settings beside tokenizer.json, and add to `fast` the tokens that they name and it
    lacks.

    Args:
        folder: the checkpoint.
        fast: its tokenizer.json.

    Returns:
        The content of tokenizer_config.json, with that of special_tokens_map.json where it counts.

    Raises:
        CheckpointError: for a file that is not valid JSON, a value that is not allowed, and a
            setting that contradicts tokenizer.json.
    """
    settings: Json = read_json(folder / _CONFIG)
    stored = settings.get("added_tokens_decoder") or {}
    added = {int(number): _added_token(token) for number, token in stored.items()}
    # In older checkpoints, special tokens and added ones have files of their own.
    if "added_tokens_decoder" not in settings:
        settings |= read_json(folder / _SPECIAL)
        added |= _older_added_tokens(folder, settings)
        added |= fast.get_added_tokens_decoder()
    _validate(folder / _CONFIG, settings, fast)
    _add_tokens(fast, settings, added)
    return settings


def clean_up_spaces(text: str) -> str:
    """Return a decoded text without the spaces that word pieces leave before punctuation and
    English suffixes.
    """
    for spaced, clean in _CLEAN_UPS.items():
        text = text.replace(spaced, clean)
    return text


def _older_added_tokens(folder: CheckpointPath, settings: Json) -> dict[int, AddedToken]:
    """Read added_tokens.json; a token is special where the settings name it."""
    special_tokens = {str(token) for token in [*_named_tokens(settings), *_extra(settings)]}
    added = {}
    for content, number in read_json(folder / _ADDED).items():
        is_special = content in special_tokens
        added[number] = AddedToken(content, normalized=not is_special, special=is_special)
    return added


def _add_tokens(fast: FastTokenizer, settings: Json, added: dict[int, AddedToken]) -> None:
    """Add the tokens that the settings name: those with other flags than in tokenizer.json, then
    special ones.
    """
    in_tokenizer = fast.get_added_tokens_decoder().values()
    # The text of a token is its content, its representation has its flags, too.
    unchanged = {repr(token) for token in in_tokenizer}
    tokens = [token for _, token in sorted(added.items()) if repr(token) not in unchanged]
    known = {str(token) for token in in_tokenizer} | {str(token) for token in tokens}

    # Special tokens that are known nowhere else; added ones of the same content have the flags.
    named = [*_named_tokens(settings), *_other_named_tokens(settings)]
    by_content = {str(token): token for token in added.values()}
    with_flags = [by_content.get(str(token), token) for token in named]
    for token in [*with_flags, *_extra(settings)]:
        if str(token) in known:
            continue
        known.add(str(token))
        tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)

    special = {str(token) for token in named}
    for token in tokens:
        token.special = token.special or str(token) in special
    fast.add_tokens(tokens)


def _named_tokens(settings: Json) -> list[str | AddedToken]:
    """Return the special tokens that every tokenizer of transformers has a name for."""
    return [_token(settings[name]) for name in _NAMED if settings.get(name)]


def _other_named_tokens(settings: Json) -> list[str]:
    """Return the special tokens with a name that this checkpoint alone has."""
    tokens = []
    for name, token in settings.items():
        if name.endswith("_token") and name not in _NAMED and isinstance(token, str):
            tokens.append(token)
    return tokens


def _extra(settings: Json) -> list[str | AddedToken]:
    """Return the special tokens without a name of their own, whichever of two keys lists them."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    tokens = extra.values() if isinstance(extra, dict) else extra
    return [_token(token) for token in tokens]


def _token(token: Any) -> str | AddedToken:
    """Return a token as it is stored: a text, or a dictionary with its flags."""
    return _added_token(token) if isinstance(token, dict) else token


def _added_token(token: Json) -> AddedToken:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise CheckpointError(
            f"{_CONFIG} or {_SPECIAL} describes a token by {token!r}, which has no content"
        )
    flags = {name: value for name, value in token.items() if name != "__type"}
    return AddedToken(**flags)


def _validate(file: CheckpointPath, settings: Json, fast: FastTokenizer) -> None:
    """Raise CheckpointError for a value that is not allowed, and for a setting that contradicts
    tokenizer.json.
    """
    side = settings.get("truncation_side")
    if side not in (None, "left", "right"):
        raise CheckpointError(f"{file} has truncation_side {side!r}; it must be 'left' or 'right'")
    longest = settings.get("model_max_length")
    if longest is not None and not isinstance(longest, int | float):
        raise CheckpointError(f"{file} has model_max_length {longest!r}; it must be a number")
    for name, value in _fixed_by_tokenizer(settings, fast).items():
        if settings.get(name) not in (None, value):
            raise CheckpointError(
                f"{file} has {name} {settings[name]}, but tokenizer.json {value}: versions of"
                " transformers differ in which of them they follow. Make both the same, as the"
                " model was trained"
            )


def _fixed_by_tokenizer(settings: Json, fast: FastTokenizer) -> dict[str, object]:
    """Return the settings that tokenizer.json has too, with their values there."""
    fixed: dict[str, object] = {}
    if isinstance(fast.pre_tokenizer, pre_tokenizers.ByteLevel):
        fixed["add_prefix_space"] = fast.pre_tokenizer.add_prefix_space
    if isinstance(fast.normalizer, normalizers.BertNormalizer):
        for name, own_name in _BERT_NORMALIZER.items():
            fixed[name] = getattr(fast.normalizer, own_name)
    elif settings.get("do_lower_case"):
        lowers = fast.normalizer and fast.normalizer.normalize_str("A") == "a"
        if not lowers:
            fixed["do_lower_case"] = False
    return fixed

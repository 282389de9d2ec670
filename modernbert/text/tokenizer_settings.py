"""What tokenizer_config.json, special_tokens_map.json and added_tokens.json add to tokenizer.json.

It is what transformers 5 makes of them for ModernBERT. A setting that version 4 applied and version
5 passes over is refused where it contradicts tokenizer.json: nobody can tell which of the two a
model was trained with.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from modernbert.files import CheckpointError, read_json
from modernbert.stored import CheckpointPath

_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
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
"""Without this setting, transformers does not apply `clean_up_tokenization_spaces` to BPE
vocabularies.
"""
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


def read_settings(folder: CheckpointPath, fast: FastTokenizer) -> dict[str, Any]:
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
    settings = read_json(folder / _CONFIG)
    stored = settings.get("added_tokens_decoder") or {}
    added = {int(number): _added_token(token) for number, token in stored.items()}
    if "added_tokens_decoder" not in settings:  # older files: each kind of token has its own
        settings |= read_json(folder / _SPECIAL)
        names = {str(_token(settings[name])) for name in _NAMED if settings.get(name)} | set(
            map(str, _extra(settings))
        )
        for content, number in read_json(folder / _ADDED).items():
            special = content in names
            added[number] = AddedToken(content, normalized=not special, special=special)
        added |= fast.get_added_tokens_decoder()
    _validate(folder / _CONFIG, settings, fast)
    _add_tokens(fast, settings, added)
    return settings


def clean_up_spaces(text: str) -> str:
    """Return a decoded text without the spaces before punctuation and English suffixes that word
    pieces leave.
    """
    for found, clean in _CLEAN_UPS.items():
        text = text.replace(found, clean)
    return text


def _add_tokens(
    fast: FastTokenizer, settings: dict[str, Any], added: dict[int, AddedToken]
) -> None:
    """Add the tokens that the settings name: those with other flags than in tokenizer.json, then
    special ones.
    """
    stored = {repr(token) for token in fast.get_added_tokens_decoder().values()}
    known = {str(token) for token in fast.get_added_tokens_decoder().values()}
    tokens = [token for _, token in sorted(added.items()) if repr(token) not in stored]
    known |= set(map(str, tokens))
    by_content = {str(token): token for token in added.values()}
    named = [_token(settings[name]) for name in _NAMED if settings.get(name)]
    named += [
        settings[name]
        for name in settings
        if name.endswith("_token") and name not in _NAMED and isinstance(settings[name], str)
    ]
    for token in [*(by_content.get(str(token), token) for token in named), *_extra(settings)]:
        if str(token) not in known:
            known.add(str(token))
            tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
    for token in tokens:
        token.special = token.special or str(token) in set(map(str, named))
    fast.add_tokens(tokens)


def _extra(settings: dict[str, Any]) -> list[str | AddedToken]:
    """Return the special tokens without a name of their own, whichever of two keys lists them."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [_token(token) for token in (extra.values() if isinstance(extra, dict) else extra)]


def _token(token: Any) -> str | AddedToken:
    """Return a token as it is stored: a text, or a dictionary with its flags."""
    return _added_token(token) if isinstance(token, dict) else token


def _added_token(token: dict[str, Any]) -> AddedToken:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise CheckpointError(
            f"{_CONFIG} or {_SPECIAL} describes a token by {token!r}, which has no content"
        )
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})


def _validate(file: CheckpointPath, settings: dict[str, Any], fast: FastTokenizer) -> None:
    """Raise CheckpointError for a value that is not allowed, and for a setting that contradicts
    tokenizer.json.
    """
    side = settings.get("truncation_side")
    if side not in (None, "left", "right"):
        raise CheckpointError(f"{file} has truncation_side {side!r}; it must be 'left' or 'right'")
    longest = settings.get("model_max_length")
    if longest is not None and not isinstance(longest, int | float):
        raise CheckpointError(f"{file} has model_max_length {longest!r}; it must be a number")
    contradictions = []
    if isinstance(fast.pre_tokenizer, pre_tokenizers.ByteLevel):
        contradictions.append(("add_prefix_space", fast.pre_tokenizer.add_prefix_space))
    if isinstance(fast.normalizer, normalizers.BertNormalizer):
        contradictions += [
            (name, getattr(fast.normalizer, own)) for name, own in _BERT_NORMALIZER.items()
        ]
    elif settings.get("do_lower_case") and not (
        fast.normalizer and fast.normalizer.normalize_str("A") == "a"
    ):
        contradictions.append(("do_lower_case", False))
    for name, value in contradictions:
        if settings.get(name) not in (None, value):
            raise CheckpointError(
                f"{file} has {name} {settings[name]}, but tokenizer.json {value}: versions of "
                "transformers differ in"
                " which of them they follow. Make both the same, as the model was trained"
            )

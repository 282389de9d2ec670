"""The models and documents of `benchmarks/cpu_peers.py`, and the files that engines load models from."""

from __future__ import annotations

import json
import platform
import random
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEMO = Path(__file__).parents[1] / "jobs/demo"
CLASSIFIER = DEMO / "intent-classifier"
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class Documents(NamedTuple):
    """The same documents as texts, for engines that tokenise, and as tokens."""

    texts: list[str]
    ids: list[list[int]]

    def write(self, folder: Path) -> None:
        """Write the documents where the process of an engine reads them."""
        (folder / "documents.json").write_text(json.dumps(self._asdict()))

    @classmethod
    def read(cls, folder: Path) -> Documents:
        return cls(**json.loads((folder / "documents.json").read_text()))


SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 384, "intermediate_size": 576, "num_attention_heads": 6},
    "base": {},
    "large": {"hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16},
}
"""What differs from ModernBERT-base: large is ModernBERT-large's width, small that of the smallest published ones."""


def write_model(folder: Path, size: str, layers: int) -> None:
    """Write an encoder of a width, with random weights, on the demo's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    # Wider than at the start of a training, so that each layer changes the vectors.
    config = transformers.ModernBertConfig(
        num_hidden_layers=layers, initializer_range=0.05, pad_token_id=0, **SIZES[size]
    )
    transformers.ModernBertModel(config).save_pretrained(folder)
    shutil.copy(CLASSIFIER / "tokenizer.json", folder)
    settings = json.loads((CLASSIFIER / "tokenizer_config.json").read_text())
    # As ModernBERT's own: its model takes no token_type_ids.
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def random_documents(lengths: list[int], seed: int) -> Documents:
    """Draw texts of the demo tokenizer's words that have so many tokens each, [CLS] and [SEP] included."""
    vocabulary = load_tokenizer().get_vocab()
    words = sorted(word[1:] for word in vocabulary if re.fullmatch("Ġ[a-z]+", word))
    draw = random.Random(seed)
    return tokenised([" ".join(draw.choices(words, k=length - 2)) for length in lengths])


def sample_corpus() -> Documents:
    """Read the texts of the sample corpus that have up to 2000 characters."""
    from benchmarks.serve import load_texts

    return tokenised(load_texts("all"))


def messages() -> Documents:
    """Read texts that the sample corpus does not have, to calibrate a classifier of it."""
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(DEMO / "messages.parquet")["text"].cast("binary")
    return tokenised([value.decode("utf-8", "replace") for value in column.to_pylist() if value])


def tokenised(texts: list[str]) -> Documents:
    return Documents(texts, [each.ids for each in load_tokenizer().encode_batch(texts)])


def load_tokenizer() -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(CLASSIFIER / "tokenizer.json"))


def machine() -> dict[str, Any]:
    """Describe the processor: its name, and the flags that say which products it has."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = fields["flags"].split()
    return {
        "processor": fields["model name"],
        "machine": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def is_classifier(folder: Path) -> bool:
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    return bool(architecture == "ModernBertForSequenceClassification")


def pooled_model(folder: Path, *, finite_masks: bool) -> Any:
    """Load a model of transformers that takes padded tokens and their mask.

    `finite_masks`: whether masks are added, with finite numbers. An exported model needs them: OpenVINO's attention is
    not a number for padding that sees no token, and so is then every token of the next layer.
    """
    import torch
    import transformers

    has_head = is_classifier(folder)
    architecture = "ModernBertForSequenceClassification" if has_head else "ModernBertModel"
    loaded = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = loaded.model if has_head else loaded
            self.head = torch.nn.Identity()
            if has_head:
                self.head = torch.nn.Sequential(loaded.head, loaded.classifier)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            masks = attention_mask
            if finite_masks:
                positions = torch.arange(input_ids.shape[1])
                distance = (positions[:, None] - positions[None, :]).abs()
                is_far = distance > self.encoder.config.local_attention // 2
                is_padding = (attention_mask == 0)[:, None, None, :]
                is_far_or_padding = is_padding | is_far[None, None]
                masks = {
                    "full_attention": is_padding.float() * -30_000,
                    "sliding_attention": is_far_or_padding.float() * -30_000,
                }
            vectors = self.encoder(input_ids, attention_mask=masks).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(vectors.dtype)
            return self.head((vectors * weights).sum(1) / weights.sum(1))

    return Pooled().eval()


def convert(folder: Path, calibration: Documents) -> None:
    """Write the files of OpenVINO and ONNX Runtime into a model's folder; int8 is calibrated on documents."""
    import nncf
    import openvino
    import torch
    from onnxruntime.quantization import quantize_dynamic

    model = pooled_model(folder, finite_masks=True)
    names = ("input_ids", "attention_mask")
    # Not 0 or 1 rows, which torch.export would take as constants.
    example = dict(zip(names, torch.ones((2, 2, 16), dtype=torch.int64), strict=True))
    converted = openvino.convert_model(
        model, example_input=example, input={name: [-1, -1] for name in names}
    )
    openvino.save_model(converted, folder / "openvino.xml", compress_to_fp16=False)
    inputs = [{name: np.array([ids]) for name in names} for ids in calibration.ids]
    for each in inputs:
        each["attention_mask"] = np.ones_like(each["input_ids"])
    quantised = nncf.quantize(
        converted,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )
    openvino.save_model(quantised, folder / "openvino-int8.xml")
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        (),
        folder / "onnx.onnx",
        kwargs=example,
        dynamo=True,
        dynamic_shapes=dict.fromkeys(names, any_size),
    )
    quantize_dynamic(folder / "onnx.onnx", folder / "onnx-int8.onnx")

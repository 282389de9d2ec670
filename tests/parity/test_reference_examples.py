"""The examples of the reference documentation, word for word: only the import and the checkpoint's name are changed.

Each runs as in the reference, on a masked language model's checkpoint, whose encoder the heads take; and on a
checkpoint of its own class, where every tensor that it computes is transformers' own within 2e-5 of the norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import relative_error, write_checkpoint, write_tokenizer

ENCODER = """
from transformers import AutoTokenizer, ModernBertModel
import torch

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertModel.from_pretrained("answerdotai/ModernBERT-base")

inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
outputs = model(**inputs)

last_hidden_states = outputs.last_hidden_state
"""

MASKED_LM = """
from transformers import AutoTokenizer, ModernBertForMaskedLM
import torch

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertForMaskedLM.from_pretrained("answerdotai/ModernBERT-base")

inputs = tokenizer("The capital of France is [MASK].", return_tensors="pt")

with torch.no_grad():
    logits = model(**inputs).logits

# retrieve index of [MASK]
mask_token_index = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]

predicted_token_id = logits[0, mask_token_index].argmax(axis=-1)

labels = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
# mask labels of non-[MASK] tokens
labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)

outputs = model(**inputs, labels=labels)
"""

SINGLE_LABEL = """
import torch
from transformers import AutoTokenizer, ModernBertForSequenceClassification

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertForSequenceClassification.from_pretrained("answerdotai/ModernBERT-base")

inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

with torch.no_grad():
    logits = model(**inputs).logits

predicted_class_id = logits.argmax().item()

# To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
num_labels = len(model.config.id2label)
model = ModernBertForSequenceClassification.from_pretrained("answerdotai/ModernBERT-base", num_labels=num_labels)

labels = torch.tensor([1])
loss = model(**inputs, labels=labels).loss
"""

MULTI_LABEL = """
import torch
from transformers import AutoTokenizer, ModernBertForSequenceClassification

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertForSequenceClassification.from_pretrained("answerdotai/ModernBERT-base", problem_type="multi_label_classification")

inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

with torch.no_grad():
    logits = model(**inputs).logits

predicted_class_ids = torch.arange(0, logits.shape[-1])[torch.sigmoid(logits).squeeze(dim=0) > 0.5]

# To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
num_labels = len(model.config.id2label)
model = ModernBertForSequenceClassification.from_pretrained(
    "answerdotai/ModernBERT-base", num_labels=num_labels, problem_type="multi_label_classification"
)

labels = torch.sum(
    torch.nn.functional.one_hot(predicted_class_ids[None, :].clone(), num_classes=num_labels), dim=1
).to(torch.float)
loss = model(**inputs, labels=labels).loss
"""

TOKENS = """
from transformers import AutoTokenizer, ModernBertForTokenClassification
import torch

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertForTokenClassification.from_pretrained("answerdotai/ModernBERT-base")

inputs = tokenizer(
    "HuggingFace is a company based in Paris and New York", add_special_tokens=False, return_tensors="pt"
)

with torch.no_grad():
    logits = model(**inputs).logits

predicted_token_class_ids = logits.argmax(-1)

# Note that tokens are classified rather then input words which means that
# there might be more predicted token classes than words.
# Multiple token classes might account for the same word
predicted_tokens_classes = [model.config.id2label[t.item()] for t in predicted_token_class_ids[0]]

labels = predicted_token_class_ids
loss = model(**inputs, labels=labels).loss
"""

QUESTION_ANSWERING = """
from transformers import AutoTokenizer, ModernBertForQuestionAnswering
import torch

tokenizer = AutoTokenizer.from_pretrained("answerdotai/ModernBERT-base")
model = ModernBertForQuestionAnswering.from_pretrained("answerdotai/ModernBERT-base")

question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"

inputs = tokenizer(question, text, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)

answer_start_index = outputs.start_logits.argmax()
answer_end_index = outputs.end_logits.argmax()

predict_answer_tokens = inputs.input_ids[0, answer_start_index : answer_end_index + 1]

# target is "nice puppet"
target_start_index = torch.tensor([14])
target_end_index = torch.tensor([15])

outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
loss = outputs.loss
"""

CONFIGURATION = """
from transformers import ModernBertModel, ModernBertConfig

# Initializing a ModernBert style configuration
configuration = ModernBertConfig()

# Initializing a model from the modernbert-base style configuration
model = ModernBertModel(configuration)

# Accessing the model configuration
configuration = model.config
"""

EXAMPLES = {
    "ModernBertModel": ENCODER,
    "ModernBertForMaskedLM": MASKED_LM,
    "ModernBertForSequenceClassification, one label": SINGLE_LABEL,
    "ModernBertForSequenceClassification, many labels": MULTI_LABEL,
    "ModernBertForTokenClassification": TOKENS,
    "ModernBertForQuestionAnswering": QUESTION_ANSWERING,
}
OURS = {
    "from transformers import AutoTokenizer, ": "from modernbert import Tokenizer as AutoTokenizer, "
}
THEIR_TOKENIZER = {
    "from transformers import AutoTokenizer, ": "from transformers import AutoTokenizer\nfrom modernbert import "
}
TEXT = "The capital of France is Paris. Paris Paris Paris"  # " Paris" is one token, as in the real vocabulary


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with tokenizer of each class in the examples."""
    result = {}
    for architecture in {name.split(",")[0] for name in EXAMPLES}:
        result[architecture] = tmp_path_factory.mktemp(architecture)
        write_checkpoint(result[architecture], architecture=architecture)
        write_tokenizer(result[architecture], text=TEXT)
    return result


def run(example: str, imports: dict[str, str], folder: Path) -> dict[str, Any]:
    """The variables that the example ends with."""
    for old, new in imports.items():
        assert old in example
        example = example.replace(old, new)
    variables: dict[str, Any] = {}
    exec(example.replace("answerdotai/ModernBERT-base", str(folder)), variables)
    return variables


def tensors(variables: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among them, with those inside of inputs and outputs."""
    found = {name: value for name, value in variables.items() if isinstance(value, torch.Tensor)}
    found["input_ids"] = variables["inputs"]["input_ids"]
    outputs = variables.get("outputs")
    for name in ("last_hidden_state", "logits", "loss", "start_logits", "end_logits"):
        if getattr(outputs, name, None) is not None:
            found[f"outputs.{name}"] = getattr(outputs, name)
    return found


@pytest.mark.parametrize(
    "imports", [OURS, THEIR_TOKENIZER], ids=["our tokenizer", "transformers' tokenizer"]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(folders, name, imports):
    """On a masked language model, as the reference's checkpoint is one: new heads train, so the loss has a gradient."""
    found = tensors(run(EXAMPLES[name], imports, folders["ModernBertForMaskedLM"]))
    loss = found.get("loss", found.get("outputs.loss"))
    assert all(value.isfinite().all() for value in found.values())
    assert (loss is None) == (name == "ModernBertModel")
    assert loss is None or loss.requires_grad


@pytest.mark.parametrize(
    "imports", [OURS, THEIR_TOKENIZER], ids=["our tokenizer", "transformers' tokenizer"]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_computes_what_transformers_computes(folders, name, imports):
    folder = folders[name.split(",")[0]]
    got = run(EXAMPLES[name], imports, folder)
    want = run(EXAMPLES[name], {}, folder)
    mine, theirs = tensors(got), tensors(want)
    assert set(mine) == set(theirs)
    for variable, value in theirs.items():
        assert mine[variable].dtype == value.dtype, variable
        if value.is_floating_point() and value.norm():
            assert relative_error(mine[variable], value) < 2e-5, variable
        else:
            assert torch.equal(mine[variable], value), variable
    for variable in {"predicted_class_id", "num_labels", "predicted_tokens_classes"} & set(want):
        assert got[variable] == want[variable]


def test_configuration_example():
    """On the meta device: 149 million weights need not be made to see that they would be."""
    with torch.device("meta"):
        result = run(CONFIGURATION, {"from transformers": "from modernbert"}, Path())
    assert sum(weight.numel() for weight in result["model"].parameters()) == 149_014_272
    assert result["configuration"] is result["model"].config

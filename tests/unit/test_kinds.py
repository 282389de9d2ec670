"""A checkpoint of the wrong kind is refused with the task that it fits."""

from __future__ import annotations

import re

import pytest
from checkpoints import HEADS, write_checkpoint, write_tokenizer

from pipelines import pipeline
from pipelines.checkpoints import Checkpoint
from pipelines.tasks.base import task_class

TASKS = {
    "classify": "ModernBertForSequenceClassification",
    "rerank": "ModernBertForSequenceClassification",
    "zero_shot": "ModernBertForSequenceClassification",
    "sparse": "ModernBertForMaskedLM",
    "tag": "ModernBertForTokenClassification",
    "answer": "ModernBertForQuestionAnswering",
    "fill": "ModernBertForMaskedLM",
    "embed": None,
    "features": None,
}
FITS = {
    "ModernBertForSequenceClassification": "it fits classify (or zero_shot with a label of entailment, rerank with one"
    " label)",
    "ModernBertForTokenClassification": "it fits tag",
    "ModernBertForQuestionAnswering": "it fits answer",
    "ModernBertForMaskedLM": "it fits fill (or embed)",
    "ModernBertModel": "it fits embed",
    "ModernBertForMultipleChoice": "no task here runs a ModernBertForMultipleChoice",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    result = {name: tmp_path_factory.mktemp(name) for name in HEADS}
    for name, folder in result.items():
        write_checkpoint(folder, architecture=name, num_hidden_layers=1, **HEADS[name])
        write_tokenizer(folder)
    return result


@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("task", TASKS)
def test_each_task_on_each_kind_of_checkpoint(folders, task, architecture):
    checkpoint = Checkpoint.open(folders[architecture])
    if TASKS[task] in (None, architecture):
        return task_class(task).check(checkpoint)
    with pytest.raises(
        ValueError, match=re.escape(f"is a {architecture}: {FITS[architecture]}; {task} runs a")
    ):
        task_class(task).check(checkpoint)


def test_a_pipeline_says_so_too(folders):
    with pytest.raises(ValueError, match="has 3 labels: it fits classify"):
        pipeline("rerank", str(folders["ModernBertForSequenceClassification"]))
    with pytest.raises(ValueError, match="it fits answer"):
        pipeline("ner", str(folders["ModernBertForQuestionAnswering"]))
    with pytest.raises(ValueError, match=r"task 'translate' is unknown; known are .*fill-mask"):
        pipeline("translate", "nothing")

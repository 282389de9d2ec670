"""Windows hold at most a small multiple of their text's tokens, and no more than a call allows; so do spans."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import write_task, write_tokenizer

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import MOST_OVERLAP, WindowBudgetError, window_budget
from pipelines.checkpoints import Checkpoint
from pipelines.options import TASKS
from pipelines.tasks.base import task_class

HEADS = {"tag": "TokenClassification", "answer": "QuestionAnswering", "fill": "MaskedLM"}
SHORT, LONG = "cat sat", "cat sat on the mat " * 300


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {
        task: Checkpoint.open(
            write_task(
                tmp_path_factory.mktemp(task), f"ModernBertFor{head}", max_position_embeddings=8192
            )
        )
        for task, head in HEADS.items()
    }


def make(checkpoints, task, **options):
    return task_class(task).from_checkpoint(checkpoints[task], TASKS[task].parse(options))


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize(("length", "most"), [(512, 446), (8192, 7166), (16, 12)])
def test_a_stride_that_is_refused_where_a_job_is_planned_or_a_model_loaded(
    checkpoints, task, length, most
):
    windows = {"max_length": length, "long_documents": "windows"}
    assert make(checkpoints, task, stride=most, **windows).stride == most
    for stride in (most + 1, length - 5):
        if stride > most:
            with pytest.raises(
                ValueError, match=f"^stride {stride} .* may be at most {most}$|leaves nothing new"
            ):
                make(checkpoints, task, stride=stride, **windows)


@pytest.mark.parametrize("words", [25, 26])
def test_a_first_text_that_leaves_little_room_is_not_read_again_and_again(tokenizer, words):
    question = "the " * words
    windows = tokenizer.encode(
        [(question, SHORT), (question, LONG), (question, SHORT)], 32, stride=0
    )
    assert list(windows.rejected) == [1]
    assert "more than 8 times its tokens" in windows.rejected[1]
    assert windows.document.tolist() == [0, 2]
    assert windows.n_tokens[1] == 0
    alone, both = (
        tokenizer.encode([(question, text) for text in texts], 32, stride=0, details=True)
        for texts in ([SHORT], [LONG, SHORT])
    )
    for name in ("input_ids", "cu_seqlens", "start", "offsets", "word_ids", "sequence_ids"):
        assert np.array_equal(getattr(alone, name), getattr(both, name))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("length", "stride"), [(32, 0), (32, 16), (32, 26), (64, 54), (16, 12)])
def test_what_is_read_holds_no_more(tokenizer, length, stride, side):
    windows = tokenizer.truncating(side).encode([LONG], length, stride=stride)
    assert not windows.rejected
    assert len(windows.input_ids) <= MOST_OVERLAP * windows.n_tokens[0] + length


@pytest.mark.parametrize("options", [{}, {"max_length": 32}, {"max_length": 32, "stride": 16}])
def test_a_call_ends_before_its_windows_hold_more_than_is_allowed(tokenizer, options):
    needed = len(tokenizer.encode([LONG, SHORT], **options).input_ids)
    with window_budget(needed):
        assert len(tokenizer.encode([LONG, SHORT], **options).input_ids) == needed
    with (
        window_budget(needed - 1),
        pytest.raises(WindowBudgetError, match=f"more than {needed - 1:,} tokens"),
    ):
        tokenizer.encode([LONG, SHORT], **options)


def test_the_spans_that_are_compared_in_a_window(checkpoints):
    assert make(checkpoints, "answer", max_length=8192, max_answer_length=256)
    assert make(checkpoints, "answer", max_answer_length=10_000)
    with pytest.raises(
        ValueError, match=r"max_answer_length 10000 makes 67,108,864 spans .* at most 256 tokens"
    ):
        make(checkpoints, "answer", max_length=8192, max_answer_length=10_000)

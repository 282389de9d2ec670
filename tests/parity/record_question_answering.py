"""Record what transformers 4.57.6's question-answering pipeline answers, which version 5.3 removed.

    python tests/parity/record_question_answering.py

in an environment with transformers==4.57.6, torch and numpy writes a tiny random checkpoint and its answers to
tests/data/question-answering/, for test_question_answering.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints import write_checkpoint, write_tokenizer
from predictions import PIECES, random_texts

FOLDER = Path(__file__).parents[1] / "data" / "question-answering"
OPTIONS: list[dict] = [
    {},
    {"top_k": 3},
    {"handle_impossible_answer": True},
    {"handle_impossible_answer": True, "top_k": 5},
    {"max_answer_len": 1},
    {"max_answer_len": 60, "top_k": 4},
    {"align_to_words": False, "top_k": 3},
    {"align_to_words": False, "max_answer_len": 3},
    {"max_seq_len": 160, "doc_stride": 16},
    {"max_seq_len": 130, "doc_stride": 0, "top_k": 3},
    {
        "max_seq_len": 150,
        "doc_stride": 40,
        "top_k": 2,
        "align_to_words": False,
        "handle_impossible_answer": True,
    },
]


def main() -> None:
    """Write the checkpoint in half precision, and the answers of its float32 weights for pairs of random texts."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = write_checkpoint(
        FOLDER, architecture="ModernBertForQuestionAnswering", heat=1.5, **size
    )
    model.half().save_pretrained(FOLDER)
    write_tokenizer(FOLDER)
    subshards = [piece for piece in PIECES if not piece.startswith("[")] + [" ", " ", " "]
    questions = [*random_texts(1, 12, 3, 15, subshards), "the cat?"]
    contexts = [
        *random_texts(2, 8, 40, 150, subshards),
        *random_texts(3, 4, 600, 900, subshards),
        "the cat sat on the mat",
    ]
    pipe = transformers.pipeline(
        "question-answering", model=str(FOLDER), tokenizer=str(FOLDER), dtype=torch.float32
    )
    pairs = list(zip(questions, contexts, strict=True))
    answers = [
        {"options": options, "answers": [pipe(question=q, context=c, **options) for q, c in pairs]}
        for options in OPTIONS
    ]
    record = {"transformers": transformers.__version__, "pairs": pairs, "answers": answers}
    (FOLDER / "answers.json").write_text(
        json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

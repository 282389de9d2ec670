"""pipeline: a task in memory, texts in and plain Python values out, in the shapes of transformers'
pipelines.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pipelines.checkpoints import Checkpoint
from pipelines.inference.loading import device_in_memory
from pipelines.inference.predictor import Predictor
from pipelines.memory.arguments import Options, check_loading, device_of, dtype_of, split_arguments
from pipelines.memory.base import Pipeline
from pipelines.memory.shapes import SHAPES
from pipelines.options import task_named
from pipelines.tasks.base import task_class


def pipeline(
    task: str,
    model: str | None = None,
    *,
    revision: str | None = None,
    device: int | str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    budget_tokens: int | None = None,
    **options: Any,
) -> Pipeline:
    """Load a checkpoint for a task and return what answers texts.

    Args:
        task: the name of a task, here ("classify") or in transformers ("text-classification").
        model: a folder, a Hugging Face hub id or a URI of object storage.
        revision: branch, tag or commit of the hub's repository.
        device: a GPU's number, -1 for the CPU, or a torch device; by default a GPU where there is
            one.
        dtype: a torch dtype or its name, by default float32 on CPUs and bfloat16 on GPUs.
        budget_tokens: tokens in a packed batch.
        options: those of the task, under our names or transformers'; a call can override them. So
            are `truncation` (False: a text that would be cut is an error) and `return_all_scores`;
            `batch_size`, `num_workers` and `padding` have no effect, since batches are packed.
            Beside them may be the arguments with which transformers loads a model,
            `memory.arguments.LoadingArguments`.

    Returns:
        A callable whose arguments and results have the shape of transformers' pipeline for the
        task.

    Raises:
        ValueError: for an unknown task, device or option, for an argument of transformers' that
            would change answers and is not available, and for a checkpoint that does not fit.

    Example:
        >>> classify = pipeline("text-classification", "jobs/demo/intent-classifier")
        >>> classify(["wake me up at six"])
        [{'label': 'alarm', 'score': 0.95}]
    """
    options_class = task_named(task)
    name = options_class.task
    task_cls = task_class(name)
    # Arguments are checked before a checkpoint, which may have to be fetched.
    loading, task_options = split_arguments(options)
    if model is None or name == "several":
        model = options_class.parse(task_options).model_named(model)
    check_loading(str(model), loading)
    dtype_name = dtype_of(str(model), dtype, loading)
    device_name = device_in_memory(device_of(device, loading))
    load = partial(Predictor, device=device_name, dtype=dtype_name, budget_tokens=budget_tokens)
    # The other options are checked with the checkpoint, under transformers' names, too.
    of_route: Options = {
        name: task_options[name] for name in ("as_query", "models") if name in task_options
    }
    route = options_class.parse(of_route).route if of_route else options_class().route
    checkpoint = Checkpoint.open(model, revision, route)
    task_cls.check(checkpoint)
    shape = SHAPES.get(name, Pipeline)
    return shape(checkpoint, task_cls, task_options, load)

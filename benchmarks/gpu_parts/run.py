"""The parts of benchmarks/gpu.py, and how one is run in a process of its own."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_parts.lines import Figures


class Part(NamedTuple):
    module: str
    function: str
    seconds: int
    """That it may take."""


PARTS = {
    "headline": Part("headline", "headline", 150),
    "profile": Part("headline", "profiled", 60),
    "products": Part("kernels", "product_tiles", 60),
    "predictor": Part("running", "predictor", 90),
    "invariance": Part("answers", "invariance", 60),
    "accuracy": Part("answers", "accuracy", 60),
    "heads": Part("running", "heads", 60),
    "fa3": Part("attention", "flash_attention_3", 60),
    "attention": Part("attention", "attention", 90),
    "graphs": Part("running", "graphs", 60),
    "kernels": Part("kernels", "kernel_speeds", 60),
    "ceilings": Part("limits", "ceilings", 90),
    "encoder": Part("limits", "encoder", 90),
    "host": Part("limits", "host", 60),
    "memory": Part("limits", "memory", 60),
    "float8": Part("answers", "answers_in_float8", 60),
    "peers": Part("running", "peers", 90),
}
"""What is wanted most comes first: time may run out."""


def run(part: str, file: Path | None) -> None:
    """Run a part; end this process with 1 if it fails."""
    import torch

    from benchmarks.gpu_parts.common import DRY
    from modernbert import gpu, kernels

    if DRY:
        torch.set_num_threads(1)
        gpu.kernels_for = lambda _: kernels
    figures = Figures(part, file)
    module = import_module(f"benchmarks.gpu_parts.{PARTS[part].module}")
    try:
        with torch.inference_mode():
            getattr(module, PARTS[part].function)(figures)
    except ImportError as error:
        figures["skipped"] = str(error)
    except Exception as error:  # one part's failure leaves the others
        figures["failed"] = f"{type(error).__name__}: {error}"[:1000]
        figures["traceback"] = traceback.format_exc()[-3000:]
        sys.exit(1)

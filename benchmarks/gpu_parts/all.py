"""What all parts of benchmarks/gpu.py import, once for their processes."""

from benchmarks.gpu_parts import answers, attention, headline, kernels, limits, running

__all__ = ["answers", "attention", "headline", "kernels", "limits", "running"]

"""What a run has used of GPUs and CPUs, and what that costs."""

from __future__ import annotations

from pipelines.job_options import CorpusOptions
from pipelines.output.record import Attempt
from pipelines.report.progress import format_duration

_HOUR_S = 3600


def record_compute(
    attempt: Attempt, held_s: float | None, tokenise_s: float, device: str, options: CorpusOptions
) -> None:
    """Write into the record of a run what it has used.

    GPU-seconds are those for which actors held a GPU, from the start of their model on; CPU-seconds
    those of a core for each actor, and those in which committed shards were read and tokenised.

    Args:
        attempt: the record.
        held_s: the seconds that actors held their places, None where that is not known.
        tokenise_s: the seconds in which shards were read and tokenised.
        device: of the actors, "cpu" or "cuda".
        options: with the price.
    """
    if held_s is not None:
        attempt.gpu_s = round(held_s, 1) if device == "cuda" else 0.0
        attempt.cpu_s = round(held_s + tokenise_s, 1)
    attempt.price_per_hour = options.price_per_hour
    used_s = attempt.gpu_s if device == "cuda" else attempt.cpu_s
    if options.price_per_hour is not None and used_s is not None:
        attempt.cost = round(used_s / _HOUR_S * options.price_per_hour, 6)


def describe_compute(attempt: Attempt) -> str:
    """Say what a run has used; nothing where that is not known."""
    if attempt.gpu_s is None or attempt.cpu_s is None:
        return ""
    parts = [f"{format_duration(attempt.cpu_s)} of CPU cores"]
    if attempt.gpu_s:
        parts.insert(0, f"{format_duration(attempt.gpu_s)} of GPUs")
    text = " and ".join(parts)
    if attempt.cost is not None and attempt.price_per_hour is not None:
        unit = "GPU" if attempt.gpu_s else "core"
        text += f"; {attempt.cost:,.4g} at {attempt.price_per_hour:,g} an hour of a {unit}"
    return text

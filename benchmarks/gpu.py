"""Measure the GPU path, part by part, the figures that are wanted most first.

    python benchmarks/gpu.py [--out FOLDER] [--only PART ...] [--seconds N] [--dry]

Each part is a process with a time limit: what breaks one, or the device under it, costs the others nothing. Each figure is a line
of JSON as soon as it is known, on the terminal and in FOLDER/gpu.jsonl, so that a connection that is cut loses none: FOLDER is
--out, else the variable OUT, else benchmarks/results. Needs torch and Triton; parts that need more (transformers,
sentence-transformers; pydantic and pyarrow for the predictor; fa3-fwd) are skipped with the reason where it is missing. --dry runs
every part at toy size on a CPU, with the kernels interpreted, and writes no file unless --out names a folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_parts.lines import Figures
from benchmarks.gpu_parts.run import PARTS, run

SECONDS = 540
_LEAST_S = 15  # to begin a part with


def main() -> int:
    """Run the parts; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT"), help="the folder for gpu.jsonl"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="all parts take at most")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    options = parser.parse_args()
    out = Path(options.out) if options.out else None
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    else:
        import torch

        if not torch.cuda.is_available():
            print("skipped: no CUDA device (--dry runs every part on a CPU)")
            return 0
        out = out or ROOT / "benchmarks/results"
    file = None
    if out:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "gpu.jsonl"
    # Parts are forked from a process that has imported torch and has not touched a device.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.gpu_parts.all"])
    ends = time.monotonic() + options.seconds
    failed = False
    for part in options.only:
        figures = Figures(part, file)
        left = ends - time.monotonic()
        if left < _LEAST_S:
            figures["skipped"] = "no time left"
            continue
        begun = time.monotonic()
        process = processes.Process(target=run, args=(part, file))
        process.start()
        if reason := why_ended(process, min(left, PARTS[part].seconds)):
            figures["failed"] = reason
        failed |= process.exitcode != 0
        figures["seconds"] = round(time.monotonic() - begun, 1)
    return int(failed)


def why_ended(process: BaseProcess, seconds: float) -> str:
    """Wait for a process, and end it after so many seconds; return what ended it but itself."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return f"it took more than {seconds:.0f} s"
    if process.exitcode and process.exitcode < 0:
        return f"its process was ended by signal {-process.exitcode}"
    return ""


if __name__ == "__main__":
    sys.exit(main())

"""The lines that benchmarks/gpu.py writes."""

from __future__ import annotations

import json
from pathlib import Path


class Figures:
    """The figures of a part: each is a line of JSON, on the terminal and in a file, as soon as it is known."""

    def __init__(self, part: str, file: Path | None):
        self.part = part
        self.file = file

    def __setitem__(self, name: str, value: object) -> None:
        figure = {"part": self.part, "figure": name, "value": value}
        line = json.dumps(figure, default=float)
        print(line, flush=True)
        if self.file:
            with self.file.open("a") as lines:
                lines.write(line + "\n")

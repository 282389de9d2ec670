"""ORC files: they are staged, since Arrow does not say which rows a stripe holds."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.orc as pa_orc
from pyarrow import fs

from pipelines.input.shards import BLOCK_ROWS, Block, Format, Reading, Scan
from pipelines.storage import open_input


def inspect(
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None,  # noqa: ARG001
    texts: frozenset[str],  # noqa: ARG001
) -> tuple[Scan, pa.Schema] | None:
    """Check that it can be opened, and return None: it is staged."""
    with open_input(filesystem, path) as stream:
        pa_orc.ORCFile(stream)
    return None


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the rows in order."""
    with open_input(reading.filesystem, reading.path) as stream:
        file = pa_orc.ORCFile(stream)
        rows = 0
        for stripe in range(file.nstripes):
            batch = file.read_stripe(stripe)
            for first in range(0, batch.num_rows, BLOCK_ROWS):
                piece = pa.Table.from_batches([batch.slice(first, BLOCK_ROWS)])
                rows += len(piece)
                yield Block(piece, [], rows / file.nrows)
        if not rows:
            yield Block(file.schema.empty_table(), [])


ORC = Format("orc", (".orc",), blocks, inspect)

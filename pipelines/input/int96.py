"""INT96 of Parquet files: the times of Impala, Hive and Spark."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def int96_columns(metadata: pq.FileMetaData) -> list[str]:
    """Return the columns that hold INT96, of which Arrow makes nanoseconds."""
    schema = metadata.schema
    names: dict[str, None] = {}  # each once: a nested column has several leaves
    for i in range(metadata.num_columns):
        leaf = schema.column(i)
        if leaf.physical_type == "INT96":
            names[leaf.path.split(".")[0]] = None
    return list(names)


def int96_unit(
    metadata: pq.FileMetaData, batches_in: Callable[[str], Iterator[pa.RecordBatch]]
) -> str:
    """Return the unit that holds the INT96 times of some record batches unchanged.

    It is "us", or "ns" where a time is so fine. INT96 holds nanoseconds of any year; 64 bits of
    nanoseconds hold the years 1677 to 2262, and Arrow wraps all others around. Spark's times are
    microseconds.

    Args:
        metadata: the file's.
        batches_in: reads the columns of INT96 in a unit.
    """
    if b"org.apache.spark.version" in (metadata.metadata or {}):
        return "us"
    for coarse, fine in zip(batches_in("us"), batches_in("ns"), strict=True):
        for coarse_column, fine_column in zip(coarse.columns, fine.columns, strict=True):
            if _loses_nanoseconds(coarse_column, fine_column):
                return "ns"
    return "us"


def _loses_nanoseconds(coarse: pa.Array, fine: pa.Array) -> bool:
    """Tell whether times in nanoseconds, nested ones too, say more than those in microseconds."""
    if pa.types.is_struct(coarse.type):
        children = zip(coarse.flatten(), fine.flatten(), strict=True)
        return any(_loses_nanoseconds(a, b) for a, b in children)
    if pa.types.is_map(coarse.type):
        if _loses_nanoseconds(coarse.keys, fine.keys):
            return True
        return _loses_nanoseconds(coarse.items, fine.items)
    if pa.types.is_nested(coarse.type):
        return _loses_nanoseconds(coarse.flatten(), fine.flatten())
    if coarse.type == fine.type:
        return False
    # Arrow divides towards zero; microseconds of a time before 1970 are those below it.
    fine_ns = fine.cast(pa.int64())
    divided_us = pc.divide(fine_ns, 1000)
    divided_ns = pc.multiply(divided_us, 1000)
    is_above = pc.less(fine_ns, divided_ns)
    floor_us = pc.if_else(is_above, pc.subtract(divided_us, 1), divided_us)
    # Out of the range of nanoseconds, the two are different times: the coarse one is right.
    in_range = pc.equal(floor_us, coarse.cast(pa.int64()))
    has_remainder = pc.not_equal(divided_ns, fine_ns)
    return pc.any(pc.and_(in_range, has_remainder)).as_py() is True

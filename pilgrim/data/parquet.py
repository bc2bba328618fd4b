"""Rows of Parquet files, the columns that are needed and no other, a thousand rows at a time.

A Parquet file is a table stored by columns, in groups of rows, each column of a group compressed for itself.
So two of twenty columns cost a tenth of the reading, and a file of gigabytes needs the memory of one batch of
rows. pyarrow, which reads it, is an extra: nothing else here needs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.files import explained

ROWS_AT_ONCE = 1024


def read_parquet(
    path: Path, needed: Sequence[str] | None, welcome: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, row) with the columns `needed`, and those of `welcome` that are there.

    `needed` = None: all columns.

    Raises DataError if a needed column is missing or the file is damaged, and PilgrimError without pyarrow.
    """
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise PilgrimError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; pip install 'pilgrim[hub]'"
        ) from None
    number = 0
    try:
        with explained("read", path), parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if missing := [name for name in needed or () if name not in columns]:
                raise DataError(
                    f"{path} has no column {missing[0]!r}; its columns are {', '.join(columns)}: "
                    "name another file, or another kind"
                )
            some = [*(needed or ()), *(name for name in welcome if name in columns)]
            wanted = columns if needed is None else some
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: behind row {number} is text that is no valid UTF-8 ({error.reason}); make the file anew"
        ) from None
    except ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no whole Parquet file ({reason}); fetch or make it again") from None

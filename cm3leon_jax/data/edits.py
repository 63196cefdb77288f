"""InstructPix2Pix: edits of pictures in Parquet files, pictures as bytes in their rows.

    data/train-00000-of-00262-....parquet   original_prompt, original_image {bytes, path},
                                            edit_prompt, edited_prompt, edited_image {bytes, path}

Rows are read a row group at a time, and only when a record is made of them.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3leon_jax.data.annotations import checked
from cm3leon_jax.data.records import Found, Place, Record, check_text, start_at

COLUMNS = ("original_image", "edit_prompt", "edited_image")
OPTIONAL = "original_prompt"


def scan_edits(files: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The rows as (picture before, picture after) with the instruction.

    Rows with the same original prompt are one group: their pictures look alike.
    """
    for file, place in start_at(files, start):
        table, first = _Table(file), place.offset if place else 0
        for row in range(first, table.rows):
            make = partial(checked, _record, table, row)
            yield Found(f"{file.name}:{row + 1}", make, Place(str(file), row, row + 1))


class _Table:
    """A Parquet file, of which the row group read last stays in memory."""

    def __init__(self, file: Path) -> None:
        import pyarrow as arrow  # which Beam brings
        from pyarrow import parquet

        self.file, self.error = file, arrow.ArrowException
        try:
            self.parquet = parquet.ParquetFile(file)
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: no Parquet file ({_line(error)}); get it again") from None
        there = self.parquet.schema_arrow.names
        if missing := [name for name in COLUMNS if name not in there]:
            raise ValueError(f"{file}: no column {missing[0]!r}; it has {', '.join(there)}")
        self.columns = [name for name in (*COLUMNS, OPTIONAL) if name in there]
        groups = self.parquet.metadata
        self.sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
        self.rows = sum(self.sizes)
        self.held, self.group = -1, None

    def row(self, number: int) -> dict[str, Any]:
        """One row; raises ValueError where its group cannot be read."""
        group = 0
        while number >= self.sizes[group]:
            number, group = number - self.sizes[group], group + 1
        if group != self.held:
            try:
                self.group = self.parquet.read_row_group(group, columns=self.columns)
            except (self.error, OSError) as error:
                raise ValueError(f"row group {group} cannot be read: {_line(error)}") from None
            self.held = group
        assert self.group is not None
        return {name: self.group[name][number].as_py() for name in self.columns}


def _record(table: _Table, number: int) -> Record:
    row = table.row(number)
    instruction = row["edit_prompt"]
    check_text("edit_prompt", instruction)
    before, after = ((row[name] or {}).get("bytes") for name in (COLUMNS[0], COLUMNS[2]))
    if not (before and after):
        raise ValueError("a picture has no bytes: get the files with the pictures in them")
    prompt = row.get(OPTIONAL) or ""
    return Record(
        id=f"{table.file.stem}/{number}",
        segments=(before, after),
        instruction=" ".join(instruction.split()),
        group=f"edits/{prompt}" if prompt else "",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

"""Tables of records beside their pictures: JSONL, one entry a line, and CSV with a header row.

Both are read as streams that can start at any record, and messages name the line of the file.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cm3leon_jax.data.folders import FIELDS, Find, check_known, find_picture, to_record
from cm3leon_jax.data.records import Found, Place, Record, fail, start_at

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COLUMNS = tuple(name for name in FIELDS if name not in ("segments", "boxes", "answers"))


def scan_jsonl(tables: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The entries of JSONL tables (`folders` has their form), one table after the other."""
    for table, place in start_at(tables, start):
        find = partial(find_picture, table.parent.resolve())
        for line in list_lines(table, place):
            origin = f"{table.name}:{line.place.line}"
            yield Found(origin, partial(_read_line, line.content, find, origin), line.place)


def scan_csv(tables: Sequence[Path], start: Place | None = None) -> Iterator[Found]:
    """The rows of CSV tables as entries in their short form; an empty cell is a field left out.

    The first row names the columns, of COLUMNS. A quoted cell may hold newlines. Raises ValueError
    for a header that cannot be understood.
    """
    for table, place in start_at(tables, start):
        yield from _scan_rows(table, place or Place(str(table)))


class Line(NamedTuple):
    """A line of a file, and where it is."""

    content: bytes
    place: Place


def list_lines(file: Path, start: Place | None) -> Iterator[Line]:
    """The lines of a file that are not blank, from a place on."""
    _, offset, number = start or Place(str(file))
    with file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if content := line.removeprefix(BYTE_ORDER_MARK).strip():
                yield Line(content, Place(str(file), offset, number))
            offset, number = offset + len(line), number + 1


def _read_line(line: bytes, find: Find, origin: str) -> Record:
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("broken JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from None
    return to_record(entry, find, origin)


class _Lines:
    """The lines of an open file, decoded; it knows how far it has come.

    Bytes that are not UTF-8 become lone surrogates, so that one bad row does not end the table.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.offset, self.number = stream, 0, 1

    def seek(self, offset: int, number: int) -> None:
        """Goes to the line of that number, which starts at that byte."""
        self.offset, self.number = self.stream.seek(offset), number

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        self.offset, self.number = self.offset + len(line), self.number + 1
        return line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")


def _scan_rows(table: Path, start: Place) -> Iterator[Found]:
    find = partial(find_picture, table.parent.resolve())
    with table.open("rb") as stream:
        lines = _Lines(stream)
        header = _read_header(table, lines)
        if start.offset:
            lines.seek(start.offset, start.line)
        rows = csv.reader(lines, strict=True)
        while True:
            place = Place(start.path, lines.offset, lines.number)
            origin = f"{table.name}:{place.line}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Found(origin, partial(fail, f"broken CSV: {error}"), place)
                continue
            if row:  # not a blank line
                yield Found(origin, partial(_read_row, row, header, find, origin), place)


def _read_header(table: Path, lines: _Lines) -> list[str]:
    header = [name.strip() for name in next(csv.reader(lines, strict=True), [])]
    try:
        check_known("column", header, COLUMNS)
        if twice := [name for name in COLUMNS if header.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} stands there twice: leave one out")
    except ValueError as error:
        raise ValueError(f"{table.name}:1: {error}") from None
    return header


def _read_row(row: list[str], header: list[str], find: Find, origin: str) -> Record:
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    if len(row) != len(header):
        raise ValueError(f"{len(row)} cells: the header has {len(header)}")
    return to_record({name: cell for name, cell in zip(header, row) if cell}, find, origin)

"""Annotation files of public datasets: one large JSON file, read as a stream, and its pictures.

The entries of an array, or of an object, come one after the other, each with the byte where it
stands, so that a reader can start there. `Index` finds entries by the value of a field with a few
bytes of memory for each: what belongs to a picture is read when the picture is.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cm3leon_jax.data.folders import find_picture
from cm3leon_jax.data.records import Found, Place, Record

CHUNK = 2**20  # bytes read at once; a longer entry is read in doubled steps
FOLDERS = ("annotations", "questions")  # names (in lower case) of folders beside the pictures
SPACE = re.compile(r"[ \t\r\n]*")


class Entry(NamedTuple):
    """One value of a file: its key (None in an array), its bytes and where they are."""

    key: str | None
    content: bytes
    place: Place  # `line` is its number, from 1

    def read(self) -> Any:
        """The value; raises ValueError for bytes that are not UTF-8."""
        try:
            return json.loads(self.content.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error.reason} at byte {error.start} of it") from None


def list_entries(file: Path, name: str = "", start: Place | None = None) -> Iterator[Entry]:
    """The entries of the array or object `name` of a JSON file, or of its outermost one.

    From `start` on, which is the place of one of them. Raises ValueError for a file that is no
    JSON, ends too early, or has no such array.
    """
    with _Text(file) as text:
        if start is not None:
            text.go(start.offset)
            yield from _list_values(text, file, start.line)
            return
        if name and not _find(text, name):
            raise ValueError(f"{file}: no {name!r}: this is not the file it is taken for")
        text.expect("[{")
        yield from _list_values(text, file, 1)


def scan_entries(
    file: Path,
    name: str,
    start: Place | None,
    make: Callable[[Entry], Record],
    is_meant: Callable[[Entry], bool] = lambda entry: True,
) -> Iterator[Found]:
    """What a reader comes to in an array or object of a file, of those entries that are meant."""
    for entry in list_entries(file, name, start):
        try:
            if not is_meant(entry):
                continue
        except (TypeError, KeyError, AttributeError, ValueError):
            pass  # `make` says what is wrong with it
        origin = f"{file.name}:{entry.key or entry.place.line}"
        yield Found(origin, partial(checked, make, entry), entry.place)


def checked(make: Callable[..., Record], *given: Any) -> Record:
    """What `make` gives; a field that is missing or of another type is a ValueError too."""
    try:
        return make(*given)
    except KeyError as error:
        raise ValueError(f"no field {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not an entry of this dataset: {error}") from None


def read_value(file: Path, name: str) -> Any:
    """One value of the outermost object of a JSON file, and None where it has none."""
    with _Text(file) as text:
        if not _find(text, name):
            return None
        return json.loads(text.value().encode("latin-1").decode())


class Index:
    """Entries of an array by the value of one of their fields: `index[7]` are all that say 7.

    Keeps 24 bytes for each entry, and reads the entries from the file when they are asked for.
    """

    def __init__(self, file: Path, name: str, field: str) -> None:
        keys, offsets, sizes = array("q"), array("q"), array("q")
        for entry in list_entries(file, name):
            where = f"{file.name}:{entry.place.line}"
            try:
                value = entry.read()
            except ValueError as error:
                raise ValueError(f"{where}: {error}; get the file again") from None
            if not isinstance(value, dict) or field not in value:
                raise ValueError(f"{where}: no {field!r}: this is not the file it is taken for")
            keys.append(_hash(value[field]))
            offsets.append(entry.place.offset)
            sizes.append(len(entry.content))
        order = np.argsort(np.array(keys, np.int64), kind="stable")
        self.file, self.field = file, field
        self.keys, self.offsets, self.sizes = (
            np.array(values, np.int64)[order] for values in (keys, offsets, sizes)
        )

    def __contains__(self, value: Any) -> bool:
        first, last = np.searchsorted(self.keys, _hash(value), "left"), len(self.keys)
        return bool(first < last and self.keys[first] == _hash(value))

    def __getitem__(self, value: Any) -> list[dict[str, Any]]:
        """The entries in the order of the file; none is no error."""
        key = _hash(value)
        first, last = (
            np.searchsorted(self.keys, key, "left"),
            np.searchsorted(self.keys, key, "right"),
        )
        found = []
        with self.file.open("rb") as stream:
            for row in range(first, last):
                stream.seek(int(self.offsets[row]))
                entry = json.loads(stream.read(int(self.sizes[row])).decode())
                if entry[self.field] == value:  # two values may share a hash
                    found.append(entry)
        return found


def open_index(file: Path, name: str, field: str) -> Index:
    """The index of a file, made once in a process for as long as the file stays as it is.

    Raises ValueError where the file is missing.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing: it belongs beside what is read")
    return _open_index(file, name, field, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _open_index(file: Path, name: str, field: str, changed: int) -> Index:
    return Index(file, name, field)


def home(file: Path) -> Path:
    """The folder of a dataset: that of its annotation file, or the one around `annotations`."""
    folder = file.absolute().parent  # by the names that were given: either may be a link
    return (folder.parent if folder.name.lower() in FOLDERS else folder).resolve()


def find_image(root: Path, *names: str) -> Path:
    """The first picture of these names in the folder of a dataset or in a folder of that.

    Raises ValueError where there is none.
    """
    for name in names:
        for folder in ("", *_list_folders(root)):
            path = root / folder / name
            if path.is_file() and path.is_relative_to(root) and ".." not in path.parts:
                # Folders may be links, what is in them may not.
                return find_picture(path.parent.resolve(), path.name)
    return find_picture(root, names[0])


@lru_cache(maxsize=64)
def _list_folders(root: Path) -> tuple[str, ...]:
    """Folders of a folder, and for `images` those in it too."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [name for name in found if not name.startswith(".")]
    inner = (
        [f"images/{name}" for name in _list_folders(root / "images")] if "images" in found else []
    )
    return (*found, *inner)


def _hash(value: Any) -> int:
    """64 bits of an id: a number is its own, or of its text."""
    if isinstance(value, int):
        return value & 2**63 - 1
    return int.from_bytes(str(value).encode()[-64:], "big") % (2**61 - 1)


class _Text:
    """A JSON file as characters of one byte each, so that a character's place is a byte's.

    What is outside ASCII stands in strings only, whatever it means there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.decode = json.JSONDecoder().raw_decode

    def __enter__(self) -> "_Text":
        self.stream = self.file.open("rb")
        self.go(3 if self.stream.read(3) == b"\xef\xbb\xbf" else 0)  # a byte order mark
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def go(self, offset: int) -> None:
        """Goes on at that byte."""
        self.base = self.stream.seek(offset)
        self.text, self.at, self.is_done = "", 0, False

    def more(self) -> None:
        """Forgets what has been passed and reads on, twice as much if that was not enough."""
        left = self.text[self.at :]
        read = self.stream.read(max(CHUNK, len(left)))
        self.base, self.at, self.is_done = self.base + self.at, 0, not read
        self.text = left + read.decode("latin-1")

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.is_done:
                return self.text[self.at : self.at + 1]
            self.more()

    def expect(self, characters: str) -> str:
        """Passes the next character, one of these."""
        found = self.peek()
        if not found or found not in characters:
            self.fail(f"{' or '.join(characters)} is expected, not {found or 'the end'}")
        self.at += 1
        return found

    def value(self) -> str:
        """Passes the next value; returns it as it is written."""
        self.peek()
        while True:
            try:
                _, end = self.decode(self.text, self.at)
                if end < len(self.text) or self.is_done:  # 12 may be the first half of 1234
                    break
            except json.JSONDecodeError as error:
                if self.is_done:
                    self.fail(error.msg)
            except RecursionError:
                self.fail("nested too deeply")
            self.more()
        written, self.at = self.text[self.at : end], end
        return written

    def fail(self, reason: str) -> None:
        place = self.base + self.at
        raise ValueError(f"{self.file}: broken JSON at byte {place}: {reason}; get the file again")


def _find(text: _Text, name: str) -> bool:
    """Goes to the value `name` of the outermost object; False where there is none."""
    if text.expect("[{") == "[":
        return False
    while text.peek() != "}":
        key = json.loads(text.value())
        text.expect(":")
        if key == name:
            return True
        _skip(text)
        if text.expect(",}") == "}":
            break
    return False


def _skip(text: _Text) -> None:
    """Passes the next value: of an array or object, which may be large, one entry at a time."""
    if text.peek() not in ("[", "{"):
        text.value()
        return
    text.expect("[{")
    for _ in _list_values(text, text.file, 1):
        pass


def _list_values(text: _Text, file: Path, number: int) -> Iterator[Entry]:
    """The values up to and with the closing bracket, the first of which is the given one."""
    while text.peek() not in ("]", "}"):
        place = Place(str(file), text.base + text.at, number)
        content, key = text.value(), None
        if text.peek() == ":":
            text.expect(":")
            key, content = json.loads(content.encode("latin-1").decode()), text.value()
        yield Entry(key, content.encode("latin-1"), place)
        number += 1
        if text.expect(",]}") != ",":
            return
    text.expect("]}")

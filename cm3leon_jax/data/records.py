"""The record: what one source document is before any tokenizer has seen it, and which are left out.

Three promises of every source: reading streams; a bad record is skipped and listed as
`file:line: reason`; too many bad records stop the run with one message.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

Segment = str | Path | bytes | np.ndarray
"""Text (str), or an image: a file (Path), a file's contents (bytes) or pixels (uint8 [Y, X, 3])."""

Box = tuple[str, tuple[float, float, float, float]]
"""A label and (x0, y0, x1, y1) in pixels of the upright image: x to the right, y down."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value, so neither would ==
class Record:
    """One source document, before any tokenizer has seen it.

    `segments` are in reading order. An edit is (image before, image after) with the `instruction`;
    a question about an image carries `question` and `answer`, and in `answers` all that people gave
    where there are several; `boxes` belong to the image of `picture_of`.
    `origin` says where the record was read ("captions.jsonl:17") and serves messages only.
    """

    id: str
    segments: tuple[Segment, ...]
    boxes: tuple[Box, ...] = ()
    question: str | None = None
    answer: str | None = None
    answers: tuple[str, ...] = ()
    instruction: str | None = None
    license: str = ""
    source_url: str = ""
    origin: str = ""
    group: str = ""  # records of one group stay on one side of the held-out split; default: the id

    def __post_init__(self) -> None:
        check_text("id", self.id)
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if not isinstance(self.segments, tuple) or not self.segments:
            raise ValueError(f"segments={self.segments!r}: give a tuple with one segment or more")
        for i, segment in enumerate(self.segments):
            _check_segment(f"segments[{i}]", segment)
        for i, box in enumerate(self.boxes):
            _check_box(f"boxes[{i}]", box)
        for name in ("question", "answer", "instruction"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer come together: give both or neither")
        for i, answer in enumerate(self.answers):
            check_text(f"answers[{i}]", answer)
        if self.answers and self.answer is None:
            raise ValueError("answers without an answer: give the one to train on too")
        for name in ("license", "source_url", "origin"):
            if getattr(self, name) != "":
                check_text(name, getattr(self, name))


class Place(NamedTuple):
    """Where a reader can start: a file or folder, a byte or an entry of it, and its line there."""

    path: str
    offset: int = 0
    line: int = 1


class Found(NamedTuple):
    """What a reader has come to: a record still to be made.

    `make` raises ValueError or OSError, whose message is the reason, when the record is bad. It is
    called before the reader goes on, or not at all.
    """

    origin: str  # for messages: "captions.jsonl:17"
    make: Callable[[], Record]
    place: Place = Place("")


Scan = Callable[[Sequence[Path], Place | None], Iterator[Found]]
"""Reads files one after the other, from a place on."""


def start_at(files: Sequence[Path], start: Place | None) -> Iterator[tuple[Path, Place | None]]:
    """The files from the one where a reader starts, and where in it."""
    for file in files:
        if start is None or start.path == str(file):
            yield file, start
            start = None


def picture_of(segments: Sequence[Any]) -> Any:
    """The image that the texts and boxes of a record are about, None where it has none.

    Of the first images that no text parts, the last: a map stands in front of its picture.
    """
    runs = [
        [*run] for is_text, run in groupby(segments, lambda s: isinstance(s, str)) if not is_text
    ]
    return runs[0][-1] if runs else None


def fail(reason: str) -> NoReturn:
    """Raises ValueError(reason): what `make` does for something that can be no record."""
    raise ValueError(reason)


def is_held_out(id: str, fraction: float = 0.05) -> bool:
    """Whether a record is kept from training. Depends on the id alone: equal on every machine."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} is outside [0, 1]")
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") < fraction * 2**64


@dataclass
class Skipped:
    """The records that were left out: the bad ones as `where: reason`, counted against all seen,
    and apart from them those that were refused for their licence."""

    seen: int = 0
    reasons: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # records by licence; "": not stated

    def add(self, where: str, reason: str) -> None:
        """Lists one bad record. The reader has counted it in `seen` already."""
        self.reasons.append(f"{where}: {reason}")

    def check(self, max_bad_fraction: float = 0.01) -> None:
        """Raises ValueError, naming the first few, when more than this fraction was skipped."""
        bad = len(self.reasons)
        if bad <= max_bad_fraction * self.seen:
            return
        first = "; ".join(self.reasons[:3]) + ("; ..." if bad > 3 else "")
        raise ValueError(
            f"{bad} of {self.seen} records are bad ({bad / max(self.seen, 1):.1%}, limit "
            f"{max_bad_fraction:.1%}): {first}. Mend them or raise --max_bad_fraction"
        )

    def check_early(self, max_bad_fraction: float = 0.01) -> None:
        """Like `check`, but only when no plausible rest of the data could mend the fraction.

        From 100 records on, and five standard deviations (Poisson) above the limit.
        """
        expected = max_bad_fraction * self.seen
        if self.seen >= 100 and len(self.reasons) > expected + 5 * math.sqrt(expected):
            self.check(max_bad_fraction)

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {"seen": self.seen, "reasons": [*self.reasons], "refused": {**self.refused}}

    @classmethod
    def from_dicts(cls, contents: Iterable[Mapping[str, Any]]) -> "Skipped":
        """The sum of what `to_dict` gave, say of the parts of one source, in their order."""
        total = cls()
        for content in contents:
            total.seen += content["seen"]
            total.reasons += content["reasons"]
            total.refused.update(content["refused"])
        return total

    def write(self, path: Path) -> None:
        """Writes the list, one line a record; the file appears whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        lines = "".join(f"{reason}\n" for reason in self.reasons)
        partial.write_text(lines, encoding="utf-8", errors="backslashreplace")  # file names
        partial.replace(path)


def check_text(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a string with something to read in it."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r} is not text: give a string")
    if not value.strip():
        raise ValueError(f"{name} is empty: give some text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={value!r} holds half a surrogate pair: give valid text") from None


def _check_segment(name: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}: an image array is uint8 [Y, X, 3]"
            )
    elif isinstance(value, str):
        check_text(name, value)
    elif not isinstance(value, Path | bytes):
        raise ValueError(f"{name} is a {type(value).__name__}: give str, Path, bytes or an array")


def _check_box(name: str, value: Any) -> None:
    rule = "give (label, (x0, y0, x1, y1)) in pixels with 0 <= x0 < x1 and 0 <= y0 < y1"
    match value:
        case (str(label), (x0, y0, x1, y1)) if all(_is_finite(v) for v in (x0, y0, x1, y1)):
            if 0 <= x0 < x1 and 0 <= y0 < y1:
                check_text(f"the label of {name}", label)
                return
    raise ValueError(f"{name}={value!r}: {rule}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(-math.inf < value < math.inf)

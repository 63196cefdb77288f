"""The joint id space: specials, then text pieces, then image codes.

CM3Leon's sizes fill 65,536 exactly: 1,024 specials (512 of them sentinels) + 56,320 text pieces +
8,192 image codes. Id 0 is padding everywhere. Specials behind the last sentinel are reserved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cm3leon_jax.config import Model
from cm3leon_jax.fields import require

PAD, EOS, UNK, BREAK, EOSS = range(5)  # <eos> opens and closes a document, <eoss> closes a fill
MASK_START = 5
NAMES = ("<pad>", "<eos>", "<unk>", "<break>", "<eoss>")
SHOWN = 12  # ids of one run that `describe` writes out


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the parts of the id space. `is_*` take ints, NumPy arrays and JAX arrays."""

    specials: int = 1024
    sentinels: int = 512  # <mask:0>, <mask:1>, ...; they are among the specials
    text: int = 56_320
    images: int = 8192
    documents: str = "cm3leon"  # or "chameleon": how prompts are put together

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            size = getattr(self, field.name)
            require(size > 0, f"vocabulary.{field.name}", size, "must be > 0")
        rule = f"must be >= {MASK_START} + sentinels = {MASK_START + self.sentinels}"
        holds = self.specials >= MASK_START + self.sentinels
        require(holds, "vocabulary.specials", self.specials, rule)

    @classmethod
    def of(cls, model: Model) -> "Vocabulary":
        """The id space of a model."""
        sizes = model.specials, model.sentinels, model.text_pieces, model.image_codes
        return cls(*sizes, model.documents)

    @property
    def size(self) -> int:
        return self.specials + self.text + self.images

    @property
    def opening(self) -> int:
        """The id that opens a document: Chameleon's `<s>` stands behind the sentinels."""
        return MASK_START + self.sentinels if self.documents == "chameleon" else EOS

    @property
    def text_start(self) -> int:
        return self.specials

    @property
    def image_start(self) -> int:
        return self.specials + self.text

    def mask(self, index: int) -> int:
        """The id of <mask:index>."""
        rule = f"vocabulary.sentinels={self.sentinels} allows 0 to {self.sentinels - 1}"
        require(0 <= index < self.sentinels, "mask index", index, rule)
        return MASK_START + index

    def is_mask(self, ids: Any) -> Any:
        return (ids >= MASK_START) & (ids < MASK_START + self.sentinels)

    def is_text(self, ids: Any) -> Any:
        return (ids >= self.text_start) & (ids < self.image_start)

    def is_image(self, ids: Any) -> Any:
        return (ids >= self.image_start) & (ids < self.size)

    def text_ids(self, pieces: ArrayLike) -> NDArray[np.uint32]:
        """Ids of text pieces 0 .. text - 1."""
        return self._shift(pieces, "text piece", 0, self.text, self.text_start)

    def pieces(self, ids: ArrayLike) -> NDArray[np.uint32]:
        """Text pieces of ids, the inverse of `text_ids`."""
        return self._shift(ids, "text id", self.text_start, self.image_start, -self.text_start)

    def image_ids(self, codes: ArrayLike) -> NDArray[np.uint32]:
        """Ids of image codes 0 .. images - 1."""
        return self._shift(codes, "image code", 0, self.images, self.image_start)

    def codes(self, ids: ArrayLike) -> NDArray[np.uint32]:
        """Image codes of ids, the inverse of `image_ids`."""
        return self._shift(ids, "image id", self.image_start, self.size, -self.image_start)

    def name(self, id: int) -> str:
        """What one id stands for: '<eos>', '<mask:3>', 'text 17', 'image 5', 'reserved'."""
        if not 0 <= id < self.size:
            return f"outside the vocabulary of {self.size}"
        if id < MASK_START:
            return NAMES[id]
        if self.is_mask(id):
            return f"<mask:{id - MASK_START}>"
        if id < self.text_start:
            return "reserved"
        if id < self.image_start:
            return f"text {id - self.text_start}"
        return f"image {id - self.image_start}"

    def describe(
        self, ids: Sequence[int] | NDArray[Any], decode: Callable[[list[int]], str] | None = None
    ) -> str:
        """One readable line, long runs shortened: `<eos> text[4 9] <break> image[7 7 2] <eos>`.

        `decode` (a text tokenizer's) turns runs of pieces into quoted text.
        """
        words = []
        for kind, run in groupby(map(int, ids), lambda id: self.name(id).split()[0]):
            values = list(run)
            if kind == "text" and decode is not None:
                words.append(repr(decode(self.pieces(values).tolist())))
            elif kind in ("text", "image"):
                start = self.text_start if kind == "text" else self.image_start
                shown = " ".join(str(id - start) for id in values[:SHOWN])
                more = f" ... {len(values)} in all" if len(values) > SHOWN else ""
                words.append(f"{kind}[{shown}{more}]")
            else:
                words.extend(f"<{kind}:{id}>" if kind[0] != "<" else kind for id in values)
        return " ".join(words)

    def malformed(self, ids: NDArray[Any], position: int, rule: str) -> ValueError:
        """The error to raise for a sequence [T] that breaks `rule` at `position`."""
        if position >= len(ids):
            return ValueError(f"position {position}: the ids end here: {rule}")
        id = int(ids[position])
        return ValueError(f"position {position}: id {id} ({self.name(id)}): {rule}")

    def _shift(
        self, values: ArrayLike, name: str, low: int, high: int, by: int
    ) -> NDArray[np.uint32]:
        array = np.asarray(values, dtype=np.int64)
        outside = array[(array < low) | (array >= high)]
        if outside.size:
            raise ValueError(f"{name} {outside.flat[0]}: must lie between {low} and {high - 1}")
        return (array + by).astype(np.uint32)

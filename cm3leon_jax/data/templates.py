"""Templates: what a record looks like as a document, each a pure function of the record.

A template gives the document's parts in order, texts as strings and images as codes. It may draw
from the generator that it is given: the same record and generator state give the same parts.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.shards import CodedRecord

Parts = tuple[str | NDArray[np.integer], ...]
Template = Callable[[CodedRecord, np.random.Generator], Parts]


def plain(record: CodedRecord, rng: np.random.Generator) -> Parts:
    """The segments as they were read: for pairs the caption, then its image."""
    return record.segments


def image_first(record: CodedRecord, rng: np.random.Generator) -> Parts:
    """The images, then the texts: a model that is cut off behind the images learns to caption."""
    return (*record.images, *record.texts)


TEMPLATES: dict[str, Template] = {"plain": plain, "image_first": image_first}

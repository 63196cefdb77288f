"""Chameleon's ids in our order and back: [specials | text | image codes].

Theirs are mixed: `<s>` `<pad>` `</s>` `<unk>`, the image codes by names that spell their number in
letters, `<eoss>`, `<racm3:break>`, thousands of reserved ids, then text. Reserved ids become our
sentinels and reserved specials, so that no id is lost and none is new.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.fields import require
from cm3leon_jax.tokens.vocabulary import MASK_START, Vocabulary

NAMED = ("<pad>", "</s>", "<unk>", "<racm3:break>", "<eoss>")  # our ids 0 to 4
OPENING = "<s>"  # ours stands behind the sentinels: `Vocabulary.opening`
IMAGE = "<image>"  # transformers' place for an image, one of the reserved ids
CODE = re.compile("IMGIMG([A-J]+)Z")
RESERVED = re.compile(r"<reserved\d+>|<image>")
SENTINELS = 512  # at most


@dataclass(frozen=True)
class Ids:
    """theirs [V]: their id of each of ours; and the sizes of our parts."""

    theirs: NDArray[np.int32]
    specials: int
    sentinels: int
    text: int
    codes: int

    @property
    def text_ids(self) -> NDArray[np.int32]:
        """Their ids of our text pieces."""
        return self.theirs[self.specials : self.specials + self.text]


def order_ids(names: Mapping[str, int], special: frozenset[str], size: int, codes: int) -> Ids:
    """Our order of their ids.

    names: their ids by name; special: names that are no text; size: rows of their embedding;
    codes: of their image tokenizer. Raises ValueError naming the config field that does not fit.
    """
    by_id = {id: name for name, id in names.items()}
    require(len(by_id) == len(names), "vocabulary_map", len(names), "has two names for one id")
    top = max(by_id, default=0)
    require(0 <= top < size, "vocab_size", size, f"must exceed the highest id of the names, {top}")
    for name in (OPENING, *NAMED):
        require(name in names, "vocabulary_map", name, "is missing; use that of a Chameleon model")
    found = {read_code(name): id for name, id in names.items() if CODE.fullmatch(name)}
    rule = f"vocabulary_map names {len(found)} image codes; both must come from one model"
    require(sorted(found) == list(range(codes)), "vq_config.num_embeddings", codes, rule)
    images = [found[code] for code in range(codes)]
    fixed = [names[name] for name in (*NAMED, OPENING)]
    taken = {*images, *fixed}

    def is_text(id: int) -> bool:
        name = by_id.get(id)
        return not (name is None or name in special or RESERVED.fullmatch(name))

    rest = [id for id in range(size) if id not in taken]
    text = [id for id in rest if is_text(id)]
    free = [id for id in rest if not is_text(id)]
    rule = "needs reserved ids beside text and image codes, as sentinels"
    require(len(free) > 0, "vocab_size", size, rule)
    masks = free[:SENTINELS]
    order = [*fixed[:-1], *masks, fixed[-1], *free[SENTINELS:], *text, *images]
    sizes = len(free) + len(fixed), len(masks), len(text), codes
    return Ids(np.asarray(order, np.int32), *sizes)


def same_order(model: config.Model) -> Ids:
    """The order of a model of ours, which goes out as it is."""
    size = np.arange(model.vocabulary, dtype=np.int32)
    return Ids(size, model.specials, model.sentinels, model.text_pieces, model.image_codes)


def name_ids(model: config.Model) -> dict[str, int]:
    """Names for the ids of a model of ours, as transformers wants them in `vocabulary_map`."""
    v = Vocabulary.of(model)
    names = dict(zip(NAMED, range(MASK_START)))
    names |= {f"<reserved{id:05}>": id for id in range(MASK_START, v.text_start - 1)}
    names |= {IMAGE: v.text_start - 1}
    names |= {f"text {piece}": int(v.text_start) + piece for piece in range(v.text)}
    return names | {write_code(code): int(v.image_start) + code for code in range(v.images)}


def read_code(name: str) -> int:
    """The image code that a name spells: A is 0, J is 9, Z ends it."""
    return int("".join(str(ord(letter) - ord("A")) for letter in name[len("IMGIMG") : -1]))


def write_code(code: int) -> str:
    """The inverse of `read_code`."""
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


def special_names(tokenizer: Mapping[str, Any]) -> frozenset[str]:
    """Names in a tokenizer.json that are no text."""
    added = tokenizer.get("added_tokens", [])
    return frozenset(token["content"] for token in added if token.get("special", True))

"""Text pieces of a published model: a Hugging Face tokenizer.json in our numbering.

It is kept where a SentencePiece model would stand, as JSON: {"tokenizer": the file, "ids": its id
of each of our pieces}. Names of special tokens typed by a user are text here too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cm3leon_jax.tokens.text import TextTokenizer


class PublishedTokenizer(TextTokenizer):
    """Encodes strings to piece ids 0 .. pieces - 1 and back; `model` is the JSON text."""

    def __init__(self, model: bytes) -> None:
        from tokenizers import Tokenizer

        self.model = model
        try:
            content = json.loads(model)
            plain = content["tokenizer"] | {"added_tokens": [], "post_processor": None}
            self._tokenizer = Tokenizer.from_str(json.dumps(plain))
            self._ids: list[int] = content["ids"]
        except Exception as error:  # the library raises bare Exceptions
            rule = "convert its model again"
            raise ValueError(f"no tokenizer.json that can be read ({error}): {rule}") from error
        self._pieces = {id: piece for piece, id in enumerate(self._ids)}

    @classmethod
    def of(cls, tokenizer: Mapping[str, Any], ids: Sequence[int]) -> "PublishedTokenizer":
        """tokenizer: a tokenizer.json; ids: its id of each of our pieces."""
        return cls(json.dumps({"tokenizer": tokenizer, "ids": [*map(int, ids)]}).encode())

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer.json as it was."""
        return json.loads(self.model)["tokenizer"]

    @property
    def pieces(self) -> int:
        return len(self._ids)

    def encode(self, text: str) -> list[int]:
        """Piece ids of a string; raises ValueError for one that the tokenizer cannot write."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        for id in ids:
            if id not in self._pieces:
                raise ValueError(f"text {text!r}: its tokenizer gives id {id}, which is no text")
        return [self._pieces[id] for id in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The inverse of `encode`; bytes that are no UTF-8 become U+FFFD. Raises ValueError."""
        for id in ids:
            if not 0 <= id < self.pieces:
                raise ValueError(f"text piece {id}: must lie between 0 and {self.pieces - 1}")
        return self._tokenizer.decode([self._ids[id] for id in ids], skip_special_tokens=False)

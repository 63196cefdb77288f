"""The tokenizer of a published CLIP, from its tokenizer.json, through the package `tokenizers`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3leon_jax.fields import require

ENDS = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class ClipTokenizer:
    """Texts to piece ids; `models.clip.text_batch` adds start and end and cuts to 77 places."""

    tokenizer: Any
    pieces: int

    @classmethod
    def load(cls, path: Path) -> "ClipTokenizer":
        """Raises ValueError where start and end are not the two highest ids."""
        from tokenizers import Tokenizer

        require(path.exists(), "tokenizer", str(path), "use a folder with a tokenizer.json")
        tokenizer = Tokenizer.from_str(path.read_text())  # of a bucket too
        tokenizer.no_truncation()
        tokenizer.no_padding()
        pieces = tokenizer.get_vocab_size() - len(ENDS)
        ends = [tokenizer.token_to_id(name) for name in ENDS]
        rule = f"use a CLIP's own: {ENDS} are its highest ids, {[pieces, pieces + 1]}"
        require(ends == [pieces, pieces + 1], f"{path}: ids of start and end", ends, rule)
        return cls(tokenizer, pieces)

    def encode(self, text: str) -> list[int]:
        """Piece ids without start and end; the file says that texts become lower case."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

"""A bundle's memory: documents that are put in front of a prompt, found by its text or picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.checkpoint import fingerprint
from cm3leon_jax.data.shards import CodedRecord, Shards
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.models.clip import CLIP, embed_pictures, embed_texts
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.retrieval.index import load_faiss
from cm3leon_jax.retrieval.memory import Memory
from cm3leon_jax.tokens.clip_text import ClipTokenizer
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer

Retrieved = tuple[Document, ...]


@dataclass(frozen=True)
class DocumentMemory:
    """Finds documents by the rules of training (`retrieval.strategy`), best first."""

    records: Shards
    memory: Memory
    retriever: CLIP
    text: TextTokenizer
    rules: config.Retrieval
    speller: TextTokenizer | ClipTokenizer  # of the retriever's texts

    @classmethod
    def open(
        cls,
        folder: Path,
        retriever: CLIP,
        image_tokenizer: VQGAN,
        text: TextTokenizer,
        rules: config.Retrieval,
        speller: TextTokenizer | ClipTokenizer,
    ) -> "DocumentMemory":
        """Raises ValueError with both fingerprints if other networks made this memory."""
        records = Shards(folder, "train")
        for name, network in (("image_tokenizer", image_tokenizer), ("retriever", retriever)):
            there, here = records.made_by.get(name, "none"), fingerprint(network)
            if there != here:
                raise ValueError(
                    f"{folder}: was made with the {name} {there}, the bundle has {here};"
                    " prepare and retrieve again with the bundle's networks"
                )
        vectors, index = Mapped(folder, "train.vectors"), None  # None: exact search
        if (folder / "train.faiss.json").exists():
            index = load_faiss(folder, "train", {"retriever": there}, len(vectors))
        return cls(records, Memory(vectors, index), retriever, text, rules, speller)

    def find_by_texts(self, texts: Sequence[str], count: int) -> list[Retrieved]:
        """At most `count` documents for each text."""
        vectors = embed_texts(self.retriever, [self.speller.encode(text) for text in texts])
        rules = replace(self.rules, least=0, most=count, by_text=count, by_image=0)
        return self._read(self.memory.neighbours(vectors, None, rules=rules))

    def find_by_pictures(self, pictures: NDArray[np.uint8], count: int) -> list[Retrieved]:
        """At most `count` documents for each picture [B Y X 3]."""
        vectors = embed_pictures(self.retriever, pictures)
        rules = replace(self.rules, least=0, most=count, by_text=0, by_image=count)
        return self._read(self.memory.neighbours(None, vectors, rules=rules))

    def _read(self, neighbours: NDArray[np.void]) -> list[Retrieved]:
        return [
            tuple(self._document(self.records[i]) for i in rows if i >= 0)
            for rows in neighbours["row"].tolist()
        ]

    def _document(self, record: CodedRecord) -> Document:
        return Document(
            Text(self.text.encode(part)) if isinstance(part, str) else Image(part)
            for part in record.segments
        )

"""Text pieces: a SentencePiece model that writes and reads every string exactly.

Nothing is normalised. Characters that the model does not know are spelt in UTF-8 bytes, two
hexadecimal digits a byte, with 16 private-use characters as the digits: 16 pieces where
SentencePiece's own byte fallback takes 256, so that a vocabulary of 128 has room for words. The
control ids of the language (`<eos>`, `<mask:0>` ...) are no pieces: typed by a user they are text.
"""

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from cm3leon_jax.tokens.vocabulary import Vocabulary

DIGITS = "".join(chr(0xE000 + digit) for digit in range(16))
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's own sign for a space, so never literal
SPELT = re.compile(f"(?:[{DIGITS}])+")
UNTRAINABLE = re.compile(rf"[{DIGITS}{SPACE}\x00-\x1f]")  # always spelt
LONGEST = 1 << 16  # bytes of a training sentence; longer ones are skipped by SentencePiece


class TextTokenizer:
    """Encodes strings to piece ids 0 .. pieces - 1 and back; `model` is a SentencePiece proto."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = model
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model: train one or copy it again") from error
        known = {self._processor.id_to_piece(id) for id in range(1, self.pieces)}
        if not known.issuperset(DIGITS):
            rule = "use one that TextTokenizer.train made"
            raise ValueError(f"a SentencePiece model without pieces for bytes: {rule}")
        letters = {" " if piece == SPACE else piece for piece in known if len(piece) == 1}
        alphabet = re.escape("".join(sorted(letters.difference(DIGITS))))
        self._foreign = re.compile(f"[^{alphabet}]" if alphabet else "(?s:.)")

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        path: str | os.PathLike[str],
        pieces: int,
        kind: Literal["bpe", "unigram"] = "bpe",
        coverage: float = 0.9999,
    ) -> "TextTokenizer":
        """Trains at most `pieces` pieces (fewer on a small corpus: see `.pieces`) and saves them.

        `coverage` is the share of the corpus' characters that become pieces. The same sentences
        give the same file, byte for byte. Raises ValueError if the corpus is empty or `pieces`
        is smaller than 17 plus its characters.
        """
        from sentencepiece import SentencePieceTrainer

        written = io.BytesIO()
        spelt = (UNTRAINABLE.sub(_spell, sentence) for sentence in sentences)
        try:
            SentencePieceTrainer.train(
                sentence_iterator=spelt,
                model_writer=written,
                vocab_size=pieces,
                model_type=kind,
                character_coverage=coverage,
                user_defined_symbols=list(DIGITS),
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                max_sentence_length=LONGEST,
                hard_vocab_limit=False,
                num_threads=1,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            wanted = re.search(r"\d+ vs (\d+)", str(error))
            if wanted:
                rule = f"this corpus needs {wanted[1]} or more"
            elif "sentences_.empty()" in str(error):
                rule = "there is no sentence to train on"
            else:
                rule = f"SentencePiece cannot train: {error}"
            raise ValueError(f"pieces={pieces}: {rule}") from error
        tokenizer = cls(written.getvalue())
        tokenizer.save(path)
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TextTokenizer":
        """Reads a saved model; raises ValueError naming the file if that fails."""
        try:
            return open_text_model(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"text model {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"text model {path}: {error}") from error

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[bytes]]:
        return type(self), (self.model,)  # a copy for a worker process is made from the model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model whole or not at all."""
        target = Path(path).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.write_bytes(self.model)
        os.replace(draft, target)

    @property
    def pieces(self) -> int:
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Piece ids of any string without lone surrogates."""
        return self._processor.encode(self._foreign.sub(_spell, text))

    def decode(self, ids: Sequence[int]) -> str:
        """The inverse of `encode`; bytes that are no UTF-8 become U+FFFD. Raises ValueError."""
        for id in ids:
            if not 0 <= id < self.pieces:
                raise ValueError(f"text piece {id}: must lie between 0 and {self.pieces - 1}")
        return SPELT.sub(_read_spelt, self._processor.decode(list(map(int, ids))))

    def check_fits(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError if the vocabulary has fewer text ids than there are pieces."""
        if self.pieces > vocabulary.text:
            rule = f"text model has {self.pieces} pieces, the vocabulary {vocabulary.text}"
            raise ValueError(f"{rule}: train fewer pieces or raise vocabulary.text")


def open_text_model(model: bytes) -> TextTokenizer:
    """A tokenizer of ours, or that of a published model (`tokens.published`), which is JSON."""
    if not model.startswith(b"{"):
        return TextTokenizer(model)
    from cm3leon_jax.tokens.published import PublishedTokenizer

    return PublishedTokenizer(model)


def _spell(character: re.Match[str]) -> str:
    return "".join(DIGITS[int(digit, 16)] for digit in character[0].encode().hex())


def _read_spelt(digits: re.Match[str]) -> str:
    """Reads digits; an odd one at the end, which only a sampler can write, is half a byte."""
    values = "".join(f"{ord(digit) - ord(DIGITS[0]):x}" for digit in digits[0])
    whole, half = divmod(len(values), 2)
    return bytes.fromhex(values[: 2 * whole]).decode(errors="replace") + "\ufffd" * half

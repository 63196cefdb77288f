"""The public object: a loaded bundle that draws images, writes captions and fills holes.

Same arguments and seed, same result. Every row draws from a key of its own, made of the seed, its
prompt and its number, so a sample is the same alone and among others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax import config
from cm3leon_jax.checkpoint import PathLike, local, read_experiment
from cm3leon_jax.data.networks import open_image_tokenizer, open_retriever, open_transformer
from cm3leon_jax.data.pictures import open_picture
from cm3leon_jax.decoding.batches import draw_in_batches
from cm3leon_jax.decoding.engine import Prompts, draw_codes, draw_text
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.decoding.memory import DocumentMemory, Retrieved
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD, Vocabulary

HOLE = "<mask>"

Picture = Pillow.Image | np.ndarray | str | Path | bytes


def load(bundle: PathLike) -> "Generator":
    """Opens a bundle, a local folder or gs:// path, on the first device of this process.

    A memory is memory-mapped, so it is found in local bundles only.
    """
    c, folder = read_experiment(bundle), local(bundle)
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    text = TextTokenizer((folder / "text.model").read_bytes())
    text.check_fits(Vocabulary.of(c.model))
    transformer = open_transformer(c, folder / "transformer", mesh)
    image_tokenizer = open_image_tokenizer(c, folder / "image_tokenizer", mesh)
    memory = None
    if (folder / "memory").exists():
        retriever = open_retriever(c, folder / "clip", mesh)
        place = Path(folder / "memory")
        memory = DocumentMemory.open(place, retriever, image_tokenizer, text, c.retrieval)
    return Generator(c, text, transformer, image_tokenizer, memory)


@dataclass(frozen=True)
class Generator:
    """Draws, captions and fills; made by `load`. Arguments left out come from config `decode`."""

    experiment: config.Experiment
    text: TextTokenizer
    transformer: Transformer
    image_tokenizer: VQGAN
    memory: DocumentMemory | None = None

    def images(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        *,
        guidance: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int | None = None,
        seed: int = 0,
    ) -> list[Pillow.Image]:
        """Text to image: n pictures per prompt, those of the first prompt first.

        guidance 1 is plain conditional sampling; temperature 0 takes the likeliest code; top_p 1
        and top_k 0 keep every code; documents are found in the bundle's memory with the prompt and
        stand before it, guided or not.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        _require(bool(prompts) and all(p.strip() for p in prompts), "prompt", prompt, "some text")
        _require(n >= 1, "n", n, "at least 1")
        _require(0 <= seed < 2**63, "seed", seed, "0 or more, below 2**63")
        defaults = self.experiment.decode
        scale = defaults.guidance if guidance is None else guidance
        _require(scale >= 0, "guidance", scale, "0 or more")
        sampling = _sampling(
            defaults.temperature if temperature is None else temperature,
            defaults.top_p if top_p is None else top_p,
            defaults.top_k if top_k is None else top_k,
        )
        found = self._find(documents, len(prompts), lambda m, k: m.find_by_texts(prompts, k))
        begins = [self._begin(retrieved) for retrieved in found]
        conditional = [
            _ids(begin, self._text_ids(prompt), [BREAK]) for begin, prompt in zip(begins, prompts)
        ]
        count = self.experiment.model.image_tokens
        guided = Guidance() if scale == 1 else Guidance(text=jnp.float32(scale))

        def decode(prompts: Prompts, keys: jax.Array) -> jax.Array:
            return draw_codes(self.transformer, prompts, keys, sampling, guided, count)

        streams = [conditional]
        if scale != 1:
            mask = [self.vocabulary.mask(0), BREAK]
            streams.append([_ids(begin, mask) for begin in begins])
        codes = draw_in_batches(self.transformer, streams, decode, n, seed, count)
        return [Pillow.fromarray(pixels) for pixels in decode_codes(self.image_tokenizer, codes)]

    def caption(
        self,
        image: Picture | Sequence[Picture],
        *,
        temperature: float | None = None,
        documents: int | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """Image to text: a string for one picture, a list for a list.

        documents are found in the bundle's memory with the picture and stand before it.
        """
        is_one = not isinstance(image, list | tuple)
        pictures: Sequence[Picture] = [image] if is_one else image  # type: ignore[list-item,assignment]
        _require(len(pictures) > 0, "image", image, "at least one picture")
        pixels = self._open(pictures)
        found = self._find(documents, len(pixels), lambda m, k: m.find_by_pictures(pixels, k))
        codes = encode_pictures(self.image_tokenizer, pixels)
        wholes = [
            Document((Text((MASK,)), Image(image)), retrieved)
            for image, retrieved in zip(codes, found)
        ]
        fills = self._fill_next(wholes, [[] for _ in wholes], temperature, seed)
        captions = [self.text.decode(list(fill)) for fill in fills]
        return captions[0] if is_one else captions

    def infill(
        self, document: Document, *, temperature: float | None = None, seed: int = 0
    ) -> Document:
        """Fills every hole in the texts of a document, in order; the rest stays as it is."""
        holes = [
            isinstance(segment, Text)
            for segment in document.segments
            for value in _values(segment)
            if value == MASK
        ]
        _require(bool(holes), "document", document, f"a document with a hole, {HOLE} in a text")
        _require(all(holes), "document", document, "holes in texts only")
        known = all(MASK not in _values(s) for d in document.retrieved for s in d.segments)
        _require(known, "document.retrieved", document.retrieved, "documents without holes")
        most = self.experiment.objective.max_spans
        _require(len(holes) <= most, "holes", len(holes), f"at most {most}, as in training")
        fills: list[tuple[int, ...]] = []
        for _ in holes:
            fills.append(self._fill_next([document], [fills], temperature, seed)[0])
        left = iter(fills)
        segments = [
            Text(tuple(i for value in s.ids for i in (next(left) if value == MASK else (value,))))
            if isinstance(s, Text)
            else s
            for s in document.segments
        ]
        return Document(tuple(segments), document.retrieved)

    def document(self, *parts: str | Picture) -> Document:
        """A document from texts and pictures in order; `<mask>` in a text is a hole.

        Strings are texts always; give pictures as Pillow images, arrays, Paths or bytes.
        """
        _require(len(parts) > 0, "parts", parts, "at least one text or picture")
        return Document(
            tuple(
                self._text(part) if isinstance(part, str) else Image(self.encode_images([part])[0])
                for part in parts
            )
        )

    def parts(self, document: Document) -> list[str | Pillow.Image]:
        """The texts and pictures of a document; holes of texts are written `<mask>`."""
        return [
            self._string(segment.ids)
            if isinstance(segment, Text)
            else Pillow.fromarray(decode_codes(self.image_tokenizer, np.array([segment.codes]))[0])
            for segment in document.segments
        ]

    def encode_images(self, pictures: Sequence[Picture]) -> NDArray[np.int32]:
        """Codes [B, image_tokens] of pictures, resized and cropped to the tokenizer's square."""
        return encode_pictures(self.image_tokenizer, self._open(pictures))

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.experiment.model)

    def _open(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        size = self.experiment.image_tokenizer.size
        return np.stack([open_picture(_source(picture), size) for picture in pictures])

    def _find(
        self,
        documents: int | None,
        prompts: int,
        find: Callable[[DocumentMemory, int], list[Retrieved]],
    ) -> list[Retrieved]:
        """The retrieved documents of each prompt; none of them without a memory."""
        count = self.experiment.decode.documents if documents is None else documents
        most = self.experiment.retrieval.most if self.memory else 0
        if documents is not None:
            rule = f"0 to {most}, as in training" if self.memory else "0: there is no memory"
            _require(0 <= documents <= most, "documents", documents, rule)
        if self.memory is None or count == 0:
            return [()] * prompts
        return find(self.memory, count)

    def _begin(self, retrieved: Retrieved) -> NDArray[np.int32]:
        """<eos> and the retrieved documents, each segment with its <break>."""
        if not retrieved:
            return _ids([EOS])
        segments = [segment for document in retrieved for segment in document.segments]
        return _ids(Document(segments).to_ids(self.vocabulary)[:-1], [BREAK])

    def _fill_next(
        self,
        documents: Sequence[Document],
        fills: Sequence[Sequence[tuple[int, ...]]],
        temperature: float | None,
        seed: int,
    ) -> list[tuple[int, ...]]:
        """Pieces for the next hole of every document, given the fills of its earlier ones."""
        defaults = self.experiment.decode
        value = defaults.text_temperature if temperature is None else temperature
        sampling, limit = _sampling(value, 1.0, 0), defaults.text_tokens
        prompts = []
        for document, done in zip(documents, fills):
            ids: list[Any] = [document.to_ids(self.vocabulary)]
            for index, fill in enumerate(done):
                ids += [[self.vocabulary.mask(index)], self.vocabulary.text_ids(fill), [EOSS]]
            prompts.append(_ids(*ids, [self.vocabulary.mask(len(done))]))

        def decode(prompts: Prompts, keys: jax.Array) -> jax.Array:
            return draw_text(
                self.transformer, prompts, keys, sampling, Guidance(), limit, self.text.pieces
            )

        drawn = draw_in_batches(self.transformer, [prompts], decode, 1, seed, limit)
        return [tuple(self.vocabulary.pieces(row[row != PAD]).tolist()) for row in drawn]

    def _text_ids(self, text: str) -> NDArray[np.uint32]:
        return self.vocabulary.text_ids(self.text.encode(text))

    def _text(self, text: str) -> Text:
        _require(bool(text.strip()), "text", text, "some text")
        first, *rest = text.split(HOLE)
        ids = self.text.encode(first.rstrip() if rest else first)
        for index, part in enumerate(rest, start=1):
            # The space before a hole belongs to the fill: pieces begin with their space.
            ids += [MASK, *self.text.encode(part.rstrip() if index < len(rest) else part)]
        return Text(tuple(ids))

    def _string(self, ids: Sequence[int]) -> str:
        parts: list[list[int]] = [[]]
        for value in ids:
            parts.append([]) if value == MASK else parts[-1].append(value)
        return HOLE.join(self.text.decode(part) for part in parts)


def _values(segment: Text | Image) -> tuple[int, ...]:
    return segment.ids if isinstance(segment, Text) else segment.codes


def _sampling(temperature: float, top_p: float, top_k: int) -> Sampling:
    _require(temperature >= 0, "temperature", temperature, "0 or more")
    _require(0 < top_p <= 1, "top_p", top_p, "above 0, at most 1")
    _require(top_k >= 0, "top_k", top_k, "0 (all) or more")
    return Sampling(
        jnp.float32(temperature),
        None if top_p == 1 else jnp.float32(top_p),
        None if top_k == 0 else jnp.int32(top_k),
    )


def _source(picture: Picture) -> Path | bytes | np.ndarray:
    if isinstance(picture, Pillow.Image):
        return np.asarray(picture.convert("RGB"))
    return Path(picture) if isinstance(picture, str) else picture


def _ids(*parts: Any) -> NDArray[np.int32]:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: use {allowed}")

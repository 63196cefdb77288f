"""The public object: a loaded bundle that draws images, writes texts, edits and fills holes.

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
from cm3leon_jax.decoding import holes, pools
from cm3leon_jax.decoding.drawing import Drawer, guide_by
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.decoding.memory import DocumentMemory, Retrieved
from cm3leon_jax.decoding.parts import (
    HOLE,
    Picture,
    Pictures,
    one_or_list,
    pair,
    read_frame,
    read_pictures,
    read_text,
    read_text_with_holes,
    show_image,
    write_answer,
    write_text,
)
from cm3leon_jax.decoding.prompts import Ids, edit_streams, image_streams, structure_streams
from cm3leon_jax.fields import require, require_choice
from cm3leon_jax.models.clip import CLIP
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens import wording
from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary


def load(bundle: PathLike, *, int8: bool = False, tensor: int = 1) -> "Generator":
    """Opens a bundle, a local folder or gs:// path, on the first `tensor` devices of this process.

    int8: the layers' weights and the key-value cache are rounded to int8, a quarter of float32's
    bytes. tensor: over so many devices heads and mlp are split. A memory is memory-mapped, so it is
    found in local bundles only.
    """
    c, folder = read_experiment(bundle), local(bundle)
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=tensor), jax.local_devices())
    text = TextTokenizer((folder / "text.model").read_bytes())
    text.check_fits(Vocabulary.of(c.model))
    transformer = open_transformer(c, folder / "transformer", mesh).for_decoding(int8)
    image_tokenizer = open_image_tokenizer(c, folder / "image_tokenizer", mesh)
    clip = open_retriever(c, folder / "clip", mesh) if (folder / "clip").exists() else None
    memory = None
    if (folder / "memory").exists():
        require(clip is not None, "bundle", str(bundle), "use one with clip/, which memory/ needs")
        place = Path(folder / "memory")
        memory = DocumentMemory.open(place, clip, image_tokenizer, text, c.retrieval)  # type: ignore[arg-type]
    return Generator(c, text, transformer, image_tokenizer, memory, clip, int8)


@dataclass(frozen=True)
class Generator:
    """Made by `load`. Arguments left out come from config `decode`; pictures are resized
    and cropped to the image tokenizer's square."""

    experiment: config.Experiment
    text: TextTokenizer
    transformer: Transformer
    image_tokenizer: VQGAN
    memory: DocumentMemory | None = None
    clip: CLIP | None = None
    int8: bool = False  # of the key-value cache

    def images(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        *,
        guidance: float | None = None,
        contrastive: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int | None = None,
        candidates: int | None = None,
        mixed: bool = False,
        return_scores: bool = False,
        seed: int = 0,
    ) -> list[Any]:
        """Text to image: n Pillow images per prompt, those of the first prompt first.

        guidance: 1 is plain conditional sampling.
        contrastive: the k of CD-K, which takes the place of guidance. It has a cut of its own, so
            top_p and top_k hold only where they are given.
        temperature, top_p, top_k: 0 takes the likeliest code, 1 and 0 keep every code.
        documents: so many are found in the bundle's memory with the prompt, in front of it.
        candidates: so many are drawn per prompt, and the n best by the bundle's CLIP returned.
        mixed: half of the candidates are guided (with top_p, top_k), half CD-K (section 3.2).
        return_scores: pairs of a picture and its CLIP score, the cosine with the prompt.
        With either of candidates and return_scores those of a prompt come best first.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        require(len(prompts) > 0, "prompt", prompt, "use some text")
        texts = [read_text("prompt", each, self.text) for each in prompts]
        require(n >= 1, "n", n, "use at least 1")
        count = n if candidates is None else candidates
        require(count >= n, "candidates", candidates, f"use at least n={n}")
        has_clip = self.clip is not None or not (candidates or return_scores)
        require(has_clip, "clip", None, "use a bundle with clip/, which ranks pictures")
        options = guidance, contrastive, temperature, top_p, top_k
        ways = pools.ways(self._drawer, count, mixed, *options)
        found: list[Retrieved] = [()] * len(texts)
        if (each := self._documents(documents)) and self.memory:
            found = self.memory.find_by_texts(prompts, each)
        rows = [image_streams(text, self.vocabulary, d) for text, d in zip(texts, found)]
        streams = [[*stream] for stream in zip(*rows)]
        drawn = [
            self._drawer.codes(streams[: guided.streams], sampling, guided, each, seed)
            for sampling, guided, each in ways
        ]
        codes = np.concatenate([c.reshape(len(texts), -1, c.shape[-1]) for c in drawn], axis=1)
        pixels = decode_codes(self.image_tokenizer, codes.reshape(-1, codes.shape[-1]))
        if self.clip is None or not (candidates or return_scores):
            return [Pillow.fromarray(picture) for picture in pixels]
        pixels = pixels.reshape(len(texts), count, *pixels.shape[1:])
        scores = pools.score(self.clip, texts, pixels)
        pairs = [
            (Pillow.fromarray(pixels[row, i]), float(scores[row, i]))
            for row, numbers in enumerate(pools.best(scores, n))
            for i in numbers
        ]
        return pairs if return_scores else [picture for picture, _ in pairs]

    def edit(
        self,
        image: Pictures,
        instruction: str | Sequence[str],
        *,
        guidance_image: float = 1.5,
        guidance_text: float = 7.5,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """The picture after an instruction; a list for a list of pictures.

        The two scales say how much the result keeps of the picture and follows the instruction
        (their defaults: paper section 4).
        """
        is_one, pictures, asked = pair(image, "instruction", instruction)
        require(guidance_image >= 0, "guidance_image", guidance_image, "use 0 or more")
        require(guidance_text >= 0, "guidance_text", guidance_text, "use 0 or more")
        rows = self._rows(edit_streams, wording.EDIT, pictures, "instruction", asked)
        guidance = Guidance(text=jnp.float32(guidance_text), image=jnp.float32(guidance_image))
        sampling = self._drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, guidance, sampling, seed))

    def from_structure(
        self,
        map_image: Pictures,
        kind: str,
        prompt: str | Sequence[str],
        *,
        guidance: float = 3.0,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """A picture of the prompt along a map of its edges, depth, ...; a list for a list of maps.

        kind: one of `tokens.wording.STRUCTURES`.
        """
        is_one, maps, prompts = pair(map_image, "prompt", prompt)
        require_choice("kind", kind, tuple(wording.STRUCTURES))
        words = wording.structure(kind)
        rows = self._rows(structure_streams, words, maps, "prompt", prompts)
        sampling = self._drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, guide_by(guidance), sampling, seed))

    def from_boxes(
        self,
        caption: str,
        boxes: Sequence[tuple[str, wording.Box]],
        *,
        guidance: float = 3.0,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Pillow.Image:
        """A picture of the caption with each named object in its box, (left, top, right, bottom)
        in pixels of the picture."""
        read_text("caption", caption, self.text)
        checked = holes.check_boxes(boxes, self.experiment.image_tokenizer.size)
        text = Text(self.text.encode(wording.boxes(caption, checked)))
        rows = [image_streams(text, self.vocabulary)]
        sampling = self._drawer.image_sampling(temperature, top_p, top_k)
        return self._draw(rows, guide_by(guidance), sampling, seed)[0]

    def caption(
        self,
        image: Pictures,
        *,
        style: str = "short",
        temperature: float | None = None,
        documents: int | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """Image to text: a string for one picture, a list for a list.

        style: "short" or "long", which needs a model that was tuned on long captions.
        documents: so many are found in the bundle's memory with the picture, in front of it.
        """
        require_choice("style", style, tuple(wording.CAPTIONS))
        is_one, pictures, _ = pair(image, "style", style)
        pixels = read_pictures(pictures, self.experiment.image_tokenizer.size)
        found: list[Retrieved] = [()] * len(pixels)
        if (each := self._documents(documents)) and self.memory:
            found = self.memory.find_by_pictures(pixels, each)
        frames = [wording.CAPTIONS[style][0]] * len(pixels)
        return one_or_list(is_one, self._answer(pixels, frames, temperature, seed, found))

    def answer(
        self,
        image: Pictures,
        question: str | Sequence[str],
        *,
        explain: bool = False,
        temperature: float | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """The answer to a question about a picture; a list for a list of pictures.

        explain: the explanation stands in front, as in `... So the answer is ...`.
        """
        is_one, pictures, asked = pair(image, "question", question)
        for text in asked:
            read_text("question", text, self.text)
        pixels = read_pictures(pictures, self.experiment.image_tokenizer.size)
        frame = wording.explained_question if explain else wording.question
        frames = [frame(text.strip()) for text in asked]
        return one_or_list(is_one, self._answer(pixels, frames, temperature, seed))

    def infill(
        self, document: Document, *, temperature: float | None = None, seed: int = 0
    ) -> Document:
        """Fills every hole in the texts and images of a document, in order, and nothing else.

        Later holes see the earlier fills. temperature: of texts and images alike; left out, each
        has its own.
        """
        document = holes.complete_images(document, self.experiment.model.image_tokens)
        count = len(holes.find_holes(document))
        rule = f"use a document with a hole, {HOLE} in a text or g.mask_image"
        require(count > 0, "document", document, rule)
        self._check_holes(document, count)
        (fills,) = self._drawer.fill([document], temperature, seed)
        return holes.splice(document, fills)

    def complete(
        self,
        document: Document,
        max_segments: int = 4,
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Document:
        """The document with 1 to max_segments texts and images behind its own.

        The model says which kind follows and where the document ends; it also ends where nothing
        more fits the context. temperature as in `infill`.
        """
        require(max_segments >= 1, "max_segments", max_segments, "use at least 1")
        document = holes.complete_images(document, self.experiment.model.image_tokens)
        known = not holes.find_holes(document)
        require(known, "document", document, "use one without holes; g.infill fills them")
        self._check_holes(document, 0)
        found = self._drawer.continue_document(document, max_segments, temperature, seed)
        return Document([*document.segments, *found], document.retrieved)

    def document(self, *parts: Picture | Text | Image) -> Document:
        """A document from texts and pictures in order; `<mask>` in a text is a hole.

        Strings are texts always; give pictures as Pillow images, arrays, Paths or bytes. Segments,
        as `mask_image` gives them, stay as they are.
        """
        require(len(parts) > 0, "parts", parts, "use at least one text or picture")

        def read(part: Picture | Text | Image) -> Text | Image:
            if isinstance(part, str):
                return read_text_with_holes(part, self.text)
            return part if isinstance(part, Text | Image) else Image(self.encode_images([part])[0])

        return Document(map(read, parts))

    def mask_image(self, image: Picture | Image, box: wording.Box) -> Image:
        """A picture, or a segment that has holes already, with a hole for `infill` to fill.

        box: (left, top, right, bottom) in pixels of the image tokenizer's square; every code whose
        patch it touches is missing. (0, 0, size, size) is the whole picture.
        """
        size, c = self.experiment.image_tokenizer.size, self.experiment
        document = holes.complete_images(self.document(image), c.model.image_tokens)
        return holes.cut_box(document.segments[0], box, size, c.objective.max_spans)

    def parts(self, document: Document) -> list[str | Pillow.Image]:
        """The texts and pictures of a document; holes are written `<mask>`, or grey in pictures."""
        document = holes.complete_images(document, self.experiment.model.image_tokens)
        return [
            write_text(segment.ids, self.text)
            if isinstance(segment, Text)
            else show_image(segment, self.image_tokenizer)
            for segment in document.segments
        ]

    def encode_images(self, pictures: Sequence[Picture]) -> NDArray[np.int32]:
        """Codes [B, image_tokens] of pictures, resized and cropped to the tokenizer's square."""
        size = self.experiment.image_tokenizer.size
        return encode_pictures(self.image_tokenizer, read_pictures(pictures, size))

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.experiment.model)

    @property
    def _drawer(self) -> Drawer:
        return Drawer(self.transformer, self.text.pieces, self.experiment.decode, self.int8)

    def _documents(self, documents: int | None) -> int:
        """How many to find for each prompt; left out, the default, or none without a memory."""
        most = self.experiment.retrieval.most if self.memory else 0
        if documents is None:
            return self.experiment.decode.documents if self.memory else 0
        rule = f"use 0 to {most}, as in training" if self.memory else "use 0: there is no memory"
        require(0 <= documents <= most, "documents", documents, rule)
        return documents

    def _answer(
        self,
        pixels: NDArray[np.uint8],
        frames: Sequence[wording.Frame],
        temperature: float | None,
        seed: int,
        found: Sequence[Retrieved] | None = None,
    ) -> list[str]:
        """Fills each frame in front of its picture."""
        codes = encode_pictures(self.image_tokenizer, pixels)
        wholes = [
            Document([read_frame(frame, self.text), Image(row)], retrieved)
            for frame, row, retrieved in zip(frames, codes, found or [()] * len(codes))
        ]
        self._check_holes(wholes[0], len(frames[0]) - 1)
        fills = self._drawer.fill(wholes, temperature, seed)
        return [write_answer(*each, self.text) for each in zip(frames, fills)]

    def _check_holes(self, document: Document, count: int) -> None:
        known = all(MASK not in holes.values(s) for d in document.retrieved for s in d.segments)
        require(known, "document.retrieved", document.retrieved, "use documents without holes")
        most = self.experiment.objective.max_spans
        require(count <= most, "holes", count, f"use at most {most}, as in training")

    def _rows(
        self,
        streams: Callable[[Text, Image, Text, Vocabulary], tuple[Ids, ...]],
        words: str,
        pictures: Sequence[Picture],
        name: str,
        texts: Sequence[str],
    ) -> list[tuple[Ids, ...]]:
        """The streams of each picture and the text `name` that goes with it."""
        first, read = Text(self.text.encode(words)), [read_text(name, t, self.text) for t in texts]
        codes = self.encode_images(pictures)
        return [streams(first, Image(c), t, self.vocabulary) for c, t in zip(codes, read)]

    def _draw(
        self, rows: Sequence[Sequence[Ids]], guidance: Guidance, sampling: Sampling, seed: int
    ) -> list[Pillow.Image]:
        """One picture after each row of streams."""
        streams = [[*stream] for stream in zip(*rows)][: guidance.streams]
        codes = self._drawer.codes(streams, sampling, guidance, seed=seed)
        return [Pillow.fromarray(pixels) for pixels in decode_codes(self.image_tokenizer, codes)]

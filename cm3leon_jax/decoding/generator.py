"""The public object: a loaded bundle that draws images, writes texts, edits and fills holes.

Same arguments and seed, same result. Every row draws from a key of its own, made of the seed, its
prompt and its number, so a sample is the same alone and among others.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax import config
from cm3leon_jax.checkpoint import PathLike, fingerprint, local, read_experiment
from cm3leon_jax.data.networks import (
    open_image_tokenizer,
    open_retriever,
    open_transformer,
    open_upscaler,
)
from cm3leon_jax.decoding import holes, pools
from cm3leon_jax.decoding.instructed import Instructed
from cm3leon_jax.decoding.memory import DocumentMemory, Retrieved
from cm3leon_jax.decoding.parts import (
    HOLE,
    Picture,
    Pictures,
    one_or_list,
    pair,
    read_frame,
    read_text,
    write_answer,
)
from cm3leon_jax.decoding.prompts import image_streams
from cm3leon_jax.fields import require, require_choice
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens import wording
from cm3leon_jax.tokens.clip_text import ClipTokenizer
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer, open_text_model
from cm3leon_jax.tokens.vocabulary import Vocabulary

Stream = Callable[[int, Any], None]
"""Gets the number of a result, and the text or picture so far."""


def load(bundle: PathLike, *, int8: bool = False, tensor: int = 1) -> "Generator":
    """Opens a bundle, a local folder or gs:// path, on the first `tensor` devices of this process.

    int8: the layers' weights and the key-value cache are rounded to int8, a quarter of float32's
    bytes. tensor: over so many devices heads and mlp are split. A memory is memory-mapped, so only
    that of a local bundle is opened.
    """
    c, folder = read_experiment(bundle), local(bundle)
    for place in (folder, folder / "clip", folder / "upscaler"):
        if (place / "notice.txt").exists():  # of weights that were converted
            print((place / "notice.txt").read_text().strip(), file=sys.stderr)
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=tensor), jax.local_devices())
    text = open_text_model((folder / "text.model").read_bytes())
    text.check_fits(Vocabulary.of(c.model))
    stored = open_transformer(c, folder / "transformer", mesh, as_stored=True)
    image_tokenizer = open_image_tokenizer(c, folder / "image_tokenizer", mesh)
    has_upscaler = (folder / "upscaler").exists()
    upscaler = open_upscaler(folder / "upscaler", mesh) if has_upscaler else None
    identity = _identify([stored, image_tokenizer, upscaler], int8)
    transformer = stored.for_decoding(int8, donate=True)
    clip, memory = None, None
    speller: TextTokenizer | ClipTokenizer = text
    if (folder / "clip").exists():
        clip, speller = open_retriever(c, folder / "clip", mesh, text)
    has_memory = (folder / "memory").exists()
    if has_memory and "://" in str(bundle):
        print(f"{bundle}: memory/ is not opened, copy the bundle to a disk", file=sys.stderr)
    elif has_memory:
        require(clip is not None, "bundle", str(bundle), "use one with clip/, which memory/ needs")
        place = Path(folder / "memory")
        given = image_tokenizer, text, c.retrieval, speller
        memory = DocumentMemory.open(place, clip, *given)  # type: ignore[arg-type]
    networks = text, transformer, image_tokenizer, memory, clip
    return Generator(c, *networks, int8, speller, upscaler, identity)


def _identify(networks: Any, int8: bool) -> str:
    """By the first numbers of every array as the bundle has it, before it becomes what a machine
    decodes fastest with."""
    first = jax.tree.map(lambda x: x[(0,) * (x.ndim - 1)][:64], networks)
    return fingerprint([first, int8])


class Generator(Instructed):
    """Made by `load`. Arguments left out come from config `decode`.

    stream: a function that is called while something is drawn, with the number of a result and what
        there is of it: after each piece of a text the whole text so far, after each row of codes
        the picture, grey where nothing is drawn yet. The result is the same as without it.
    documents: so many are found in the bundle's memory and stand in front of the request.
    """

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
        guidance_interval: tuple[float, float] | None = None,
        speculative: bool = False,
        stream: Stream | None = None,
        seed: int = 0,
    ) -> list[Any]:
        """Text to image: n Pillow images per prompt, those of the first prompt first.

        guidance: 1 is plain conditional sampling.
        contrastive: the k of CD-K, which takes the place of guidance. It has a cut of its own, so
            top_p and top_k hold only where they are given.
        temperature, top_p, top_k: 0 takes the likeliest code, 1 and 0 keep every code.
        documents: found with the prompt.
        candidates: so many are drawn per prompt, and the n best by the bundle's CLIP returned.
        mixed: half of the candidates are guided (with top_p, top_k), half CD-K (section 3.2).
        return_scores: pairs of a picture and its CLIP score, the cosine with the prompt.
        guidance_interval: (0.1, 0.8) guides from a tenth to four fifths of the image's codes only.
        speculative: Jacobi decoding, one picture at a time in fewer calls of the model, for few
            pictures fast; the pictures are the same.
        With either of candidates and return_scores those of a prompt come best first.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        require(len(prompts) > 0, "prompt", prompt, "use some text")
        texts = [read_text("prompt", each, self.text) for each in prompts]
        require(n >= 1, "n", n, "use at least 1")
        count = n if candidates is None else candidates
        require(count >= n, "candidates", candidates, f"use at least n={n}")
        is_ranked = bool(candidates or return_scores)
        rule = "use a bundle with clip/, which ranks pictures"
        require(self.clip is not None or not is_ranked, "clip", None, rule)
        rule = "use it without candidates, mixed and return_scores: a pool is ready at the end only"
        require(stream is None or not (is_ranked or mixed), "stream", stream, rule)
        rule = "use it without stream: its codes come in no steady rows"
        require(stream is None or not speculative, "speculative", speculative, rule)
        options = guidance, guidance_interval, contrastive, temperature, top_p, top_k
        ways = pools.ways(self.drawer, count, mixed, *options)
        found = self.find(prompts, documents)
        rows = [
            self.behind(partial(image_streams, text, self.vocabulary), retrieved)
            for text, retrieved in zip(texts, found)
        ]
        streams = [[*row] for row in zip(*rows)]

        def hear(index: int, codes: NDArray[np.int32]) -> None:
            if stream is not None:
                stream(index, self.show_so_far(Image(codes)))

        drawn = [
            self.drawer.codes(
                streams[: guided.streams],
                sampling,
                guided,
                each,
                seed,
                speculative=speculative,
                listen=stream and hear,
            )
            for sampling, guided, each in ways
        ]
        codes = np.concatenate([c.reshape(len(texts), -1, c.shape[-1]) for c in drawn], axis=1)
        pixels = decode_codes(self.image_tokenizer, codes.reshape(-1, codes.shape[-1]))
        if self.clip is None or not is_ranked:
            return [Pillow.fromarray(picture) for picture in pixels]
        pixels = pixels.reshape(len(texts), count, *pixels.shape[1:])
        ids = [self.clip_tokenizer.encode(each) for each in prompts]
        scores = pools.score(self.clip, ids, pixels)
        pairs = [
            (Pillow.fromarray(pixels[row, i]), float(scores[row, i]))
            for row, numbers in enumerate(pools.best(scores, n))
            for i in numbers
        ]
        return pairs if return_scores else [picture for picture, _ in pairs]

    def caption(
        self,
        image: Pictures,
        *,
        style: str = "short",
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        documents: int | None = None,
        stream: Stream | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """Image to text: a string for one picture, a list for a list.

        style: "short" or "long", which needs a model that was tuned on long captions.
        repetition_penalty: CTRL's, of pieces that stand in the text already; 1 is none.
        documents: found with the picture.
        """
        require_choice("style", style, tuple(wording.CAPTIONS))
        is_one, pictures, _ = pair(image, "style", style)
        frames = [wording.CAPTIONS[style][0]] * len(pictures)
        how = temperature, repetition_penalty, documents, stream, seed
        return one_or_list(is_one, self._answer(pictures, frames, *how))

    def answer(
        self,
        image: Pictures,
        question: str | Sequence[str],
        *,
        explain: bool = False,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        documents: int = 0,
        stream: Stream | None = None,
        seed: int = 0,
    ) -> str | list[str]:
        """The answer to a question about a picture; a list for a list of pictures.

        explain: the explanation stands in front, as in `... So the answer is ...`.
        repetition_penalty, documents: as in `caption`.
        """
        is_one, pictures, asked = pair(image, "question", question)
        for text in asked:
            read_text("question", text, self.text)
        frame = wording.explained_question if explain else wording.question
        frames = [frame(text.strip()) for text in asked]
        how = temperature, repetition_penalty, documents, stream, seed
        return one_or_list(is_one, self._answer(pictures, frames, *how))

    def infill(
        self, document: Document, *, temperature: float | None = None, seed: int = 0
    ) -> Document:
        """Fills every hole in the texts and images of a document, in order, and nothing else.

        Later holes see the earlier fills. temperature: of texts and images alike; left out, each
        has its own.
        """
        document = self.with_whole_images(document)
        count = len(holes.find_holes(document))
        rule = f"use a document with a hole, {HOLE} in a text or g.mask_image"
        require(count > 0, "document holes", count, rule)
        self.check_holes(document, count)
        (fills,) = self.drawer.fill([document], temperature, seed)
        return holes.splice(document, fills)

    def complete(
        self,
        document: Document,
        max_segments: int = 4,
        *,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        stream: Stream | None = None,
        seed: int = 0,
    ) -> Document:
        """The document with 1 to max_segments texts and images behind its own.

        The model says which kind follows and where the document ends; it also ends where nothing
        more fits the context. temperature as in `infill`, repetition_penalty of each text by itself
        as in `caption`. stream: the new segments are numbered from 0.
        """
        require(max_segments >= 1, "max_segments", max_segments, "use at least 1")
        document = self.with_whole_images(document)
        missing = len(holes.find_holes(document))
        require(not missing, "document holes", missing, "use one without; g.infill fills them")
        self.check_holes(document, 0)

        def hear(index: int, segment: Text | Image) -> None:
            if stream is not None:
                stream(index, self.show_so_far(segment))

        found = self.drawer.continue_document(
            document, max_segments, temperature, seed, repetition_penalty, stream and hear
        )
        return Document([*document.segments, *found], document.retrieved)

    def _answer(
        self,
        pictures: Sequence[Picture],
        frames: Sequence[wording.Frame],
        temperature: float | None,
        repetition_penalty: float | None,
        documents: int | None,
        stream: Stream | None,
        seed: int,
    ) -> list[str]:
        """Fills each frame in front of its picture."""
        pixels = self.pixels(pictures)
        found = self.find(pixels, documents)
        codes, count = encode_pictures(self.image_tokenizer, pixels), len(frames[0]) - 1
        new = count * (self.experiment.decode.text_tokens + 2) - 2  # sentinels stand around each

        def ask(frame: wording.Frame, row: NDArray[np.int32], retrieved: Retrieved) -> Document:
            main: list[Text | Image] = [read_frame(frame, self.text), Image(row)]
            ids = lambda d: holes.fill_prompt(Document(main, d), [], self.vocabulary)[:1]  # noqa: E731
            return Document(main, self.fit(retrieved, ids, new))

        wholes = [ask(*each) for each in zip(frames, codes, found)]
        self.check_holes(wholes[0], count)

        def hear(index: int, fills: Sequence[holes.Fill]) -> None:
            if stream is not None:
                stream(index, write_answer(frames[index], fills, self.text))

        fills = self.drawer.fill(wholes, temperature, seed, repetition_penalty, stream and hear)
        return [write_answer(*each, self.text) for each in zip(frames, fills)]

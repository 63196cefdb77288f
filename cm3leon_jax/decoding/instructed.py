"""Pictures by a model that was tuned on instructions: edits, along maps, into boxes, and maps of
pictures (paper section 4)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax.decoding import holes
from cm3leon_jax.decoding.drawing import guide_by
from cm3leon_jax.decoding.loaded import Loaded
from cm3leon_jax.decoding.logits import Guidance, Sampling
from cm3leon_jax.decoding.memory import Retrieved
from cm3leon_jax.decoding.parts import Pictures, one_or_list, pair, read_text
from cm3leon_jax.decoding.prompts import (
    UNKNOWN,
    Ids,
    edit_streams,
    image_streams,
    map_streams,
    structure_streams,
)
from cm3leon_jax.fields import require, require_choice
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.tokens import wording
from cm3leon_jax.tokens.document import Image, Text

Boxes = Sequence[tuple[str, wording.Box]]


class Instructed(Loaded):
    """The part of the `Generator` whose pictures follow instructions."""

    def edit(
        self,
        image: Pictures,
        instruction: str | Sequence[str],
        *,
        guidance_image: float | None = None,
        guidance_text: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int = 0,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """The picture after an instruction; a list for a list of pictures.

        The two scales say how much the result keeps of the picture and follows the instruction.
        documents: found with the picture.
        """
        is_one, pictures, asked = pair(image, "instruction", instruction)
        c = self.experiment.decode
        by_image = c.guidance_image if guidance_image is None else guidance_image
        by_text = c.guidance_text if guidance_text is None else guidance_text
        require(by_image >= 0, "guidance_image", by_image, "use 0 or more")
        require(by_text >= 0, "guidance_text", by_text, "use 0 or more")
        pixels = self.pixels(pictures)
        texts = [read_text("instruction", text, self.text) for text in asked]
        found = self.find(pixels, documents)
        rows = self._rows(edit_streams, wording.EDIT, pixels, texts, found)
        guidance = Guidance(text=jnp.float32(by_text), image=jnp.float32(by_image))
        guidance = Guidance() if by_text == by_image == 1 else guidance
        sampling = self.drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, guidance, sampling, seed))

    def from_structure(
        self,
        map_image: Pictures,
        kind: str,
        prompt: str | Sequence[str],
        *,
        guidance: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int = 0,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """A picture of the prompt along a map of its edges, depth, ...; a list for a list of maps.

        kind: one of `tokens.wording.STRUCTURES`. documents: found with the prompt.
        """
        is_one, maps, prompts = pair(map_image, "prompt", prompt)
        require_choice("kind", kind, tuple(wording.STRUCTURES))
        words = wording.structure(kind)
        texts = [read_text("prompt", text, self.text) for text in prompts]
        found = self.find(prompts, documents)
        rows = self._rows(structure_streams, words, self.pixels(maps), texts, found)
        sampling = self.drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, self._guide(guidance), sampling, seed))

    def to_structure(
        self,
        image: Pictures,
        kind: str,
        *,
        guidance: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int = 0,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """The map of a picture, the inverse of `from_structure`; a list for a list of pictures.

        documents: found with the picture.
        """
        require_choice("kind", kind, tuple(wording.STRUCTURES))
        is_one, pictures, kinds = pair(image, "kind", kind)
        pixels = self.pixels(pictures)
        found = self.find(pixels, documents)
        unused = [UNKNOWN] * len(kinds)
        rows = self._rows(map_streams, wording.inverse(kind), pixels, unused, found)
        sampling = self.drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, self._guide(guidance), sampling, seed))

    def from_boxes(
        self,
        caption: str | Sequence[str],
        boxes: Boxes | Sequence[Boxes],
        *,
        guidance: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        documents: int = 0,
        seed: int = 0,
    ) -> Pillow.Image | list[Pillow.Image]:
        """A picture of the caption with each named object in its box, (left, top, right, bottom)
        in pixels of the picture; a list for a list of captions, each with boxes of its own.

        documents: found with the caption.
        """
        is_one = isinstance(caption, str)
        captions: list[str] = [caption] if isinstance(caption, str) else list(caption)
        each: list[Any] = [boxes] if is_one else list(boxes)
        rule = f"use boxes for each of the {len(captions)} captions"
        require(len(captions) == len(each) > 0, "boxes", each, rule)
        texts = []
        for named, places in zip(captions, each):
            read_text("caption", named, self.text)
            checked = holes.check_boxes(places, self.experiment.image_tokenizer.size)
            texts.append(Text(self.text.encode(wording.boxes(named, checked))))
        found = self.find(captions, documents)
        rows = [
            self.behind(partial(image_streams, text, self.vocabulary), retrieved)
            for text, retrieved in zip(texts, found)
        ]
        sampling = self.drawer.image_sampling(temperature, top_p, top_k)
        return one_or_list(is_one, self._draw(rows, self._guide(guidance), sampling, seed))

    def _guide(self, scale: float | None) -> Guidance:
        return guide_by(self.experiment.decode.guidance if scale is None else scale)

    def _rows(
        self,
        streams: Callable[..., tuple[Ids, ...]],
        words: str,
        pixels: NDArray[np.uint8],
        texts: Sequence[Text],
        found: Sequence[Retrieved],
    ) -> list[tuple[Ids, ...]]:
        """The streams of each picture, its text and its documents."""
        first, v = Text(self.text.encode(words)), self.vocabulary
        codes = encode_pictures(self.image_tokenizer, pixels)
        return [
            self.behind(partial(streams, first, Image(c), t, v), d)
            for c, t, d in zip(codes, texts, found)
        ]

    def _draw(
        self, rows: Sequence[Sequence[Ids]], guidance: Guidance, sampling: Sampling, seed: int
    ) -> list[Pillow.Image]:
        """One picture after each row of streams."""
        streams = [[*stream] for stream in zip(*rows)][: guidance.streams]
        codes = self.drawer.codes(streams, sampling, guidance, seed=seed)
        return [Pillow.fromarray(pixels) for pixels in decode_codes(self.image_tokenizer, codes)]

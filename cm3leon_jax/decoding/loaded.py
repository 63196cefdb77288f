"""What a bundle holds once it is loaded, and documents from and to texts and pictures with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax import config
from cm3leon_jax.data.pictures import MAX_PIXELS
from cm3leon_jax.decoding import holes
from cm3leon_jax.decoding.drawing import Drawer
from cm3leon_jax.decoding.memory import DocumentMemory, Retrieved
from cm3leon_jax.decoding.parts import (
    Picture,
    Pictures,
    one_or_list,
    pair,
    read_pictures,
    read_text_with_holes,
    read_whole,
    show_image,
    write_text,
)
from cm3leon_jax.decoding.prompts import Ids
from cm3leon_jax.fields import require
from cm3leon_jax.models.clip import CLIP
from cm3leon_jax.models.image_codes import encode_pictures
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.upscaler import RRDBNet, upscale
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.clip_text import ClipTokenizer
from cm3leon_jax.tokens.document import MASK, Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary
from cm3leon_jax.tokens.wording import Box


@dataclass(frozen=True)
class Loaded:
    """The networks of a bundle. Pictures are resized and cropped to the image tokenizer's square
    wherever they are given."""

    experiment: config.Experiment
    text: TextTokenizer
    transformer: Transformer
    image_tokenizer: VQGAN
    memory: DocumentMemory | None = None
    clip: CLIP | None = None
    int8: bool = False  # of the key-value cache
    clip_text: ClipTokenizer | TextTokenizer | None = None  # None: `clip` reads as `text` spells
    upscaler: RRDBNet | None = None
    identity: str = ""  # 16 hex digits of the networks that pictures come from

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

    def mask_image(self, image: Picture | Image, box: Box) -> Image:
        """A picture, or a segment that has holes already, with a hole for `infill` to fill.

        box: (left, top, right, bottom) in pixels of the image tokenizer's square; every code whose
        patch it touches is missing. (0, 0, size, size) is the whole picture.
        """
        size, c = self.experiment.image_tokenizer.size, self.experiment
        segment = image if isinstance(image, Image) else Image(self.encode_images([image])[0])
        document = self.with_whole_images(Document([segment]))
        return holes.cut_box(document.segments[0], box, size, c.objective.max_spans)

    def upscale(self, image: Pictures) -> Pillow.Image | list[Pillow.Image]:
        """Pictures of any size, as many times larger as the bundle's upscaler was made for; a list
        for a list. Memory on the device is that of one tile (`models.upscaler`)."""
        network = self.require_upscaler()
        is_one, pictures, _ = pair(image, "image", "")
        most = MAX_PIXELS // network.config.scale**2  # what comes out can be read again
        whole = (read_whole(picture, most) for picture in pictures)
        found = [Pillow.fromarray(upscale(network, pixels)) for pixels in whole]
        return one_or_list(is_one, found)

    def require_upscaler(self) -> RRDBNet:
        """Raises ValueError for a bundle without."""
        rule = "use a bundle with upscaler/, which `cm3leon train --stage upscaler` makes"
        if self.upscaler is None:
            raise ValueError(f"upscaler=None: {rule}")
        return self.upscaler

    def parts(self, document: Document) -> list[str | Pillow.Image]:
        """The texts and pictures of a document; holes are written `<mask>`, or grey in pictures."""
        return [self.show_so_far(segment) for segment in self.with_whole_images(document).segments]

    def show_so_far(self, segment: Text | Image) -> str | Pillow.Image:
        """A text, or the picture of an image's first codes, grey where the others will be."""
        if isinstance(segment, Text):
            return write_text(segment.ids, self.text)
        missing = self.experiment.model.image_tokens - len(segment.codes)
        return show_image(Image([*segment.codes, *[MASK] * missing]), self.image_tokenizer)

    def encode_images(self, pictures: Sequence[Picture]) -> NDArray[np.int32]:
        """Codes [B, image_tokens] of pictures, resized and cropped to the tokenizer's square."""
        return encode_pictures(self.image_tokenizer, self.pixels(pictures))

    def pixels(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        """Pictures as the image tokenizer wants them, [B size size 3]."""
        return read_pictures(pictures, self.experiment.image_tokenizer.size)

    def with_whole_images(self, document: Document) -> Document:
        """The document with all codes in every image, MASK for those that are missing."""
        return holes.complete_images(document, self.experiment.model.image_tokens)

    def check_holes(self, document: Document, count: int) -> None:
        """Raises ValueError if retrieved documents have holes, or if `count` are too many."""
        of_retrieved = sum(MASK in holes.values(s) for d in document.retrieved for s in d.segments)
        rule = "use documents without holes"
        require(not of_retrieved, "document.retrieved holes", of_retrieved, rule)
        most = self.experiment.objective.max_spans
        require(count <= most, "holes", count, f"use at most {most}, as in training")

    def find(
        self, queries: Sequence[str] | NDArray[np.uint8], documents: int | None
    ) -> list[Retrieved]:
        """So many documents of the memory for each text, or each picture [B size size 3].

        Left out, as many as config `decode` says, or none without a memory. Raises ValueError for
        more than training had.
        """
        if documents is None:
            count = self.experiment.decode.documents if self.memory else 0
        else:
            most = self.experiment.retrieval.most if self.memory else 0
            of_training = f"use 0 to {most}, as in training"
            rule = of_training if self.memory else "use 0: there is no memory"
            require(0 <= documents <= most, "documents", documents, rule)
            count = documents
        if not count or self.memory is None:
            return [()] * len(queries)
        if isinstance(queries, np.ndarray):
            return self.memory.find_by_pictures(queries, count)
        return self.memory.find_by_texts(queries, count)

    def fit(
        self, found: Retrieved, streams: Callable[[Retrieved], Sequence[Ids]], new: int
    ) -> Retrieved:
        """The documents without the last of them that would not fit the context in front of a
        request's streams and `new` tokens; training leaves out the same."""
        while found and max(map(len, streams(found))) + new > self.experiment.model.context:
            found = found[:-1]
        return found

    def behind(
        self, streams: Callable[[Retrieved], tuple[Ids, ...]], found: Retrieved
    ) -> tuple[Ids, ...]:
        """The streams of a picture behind those documents that fit."""
        return streams(self.fit(found, streams, self.experiment.model.image_tokens))

    @property
    def clip_tokenizer(self) -> ClipTokenizer | TextTokenizer:
        """What spells texts for `clip`."""
        return self.clip_text or self.text

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.experiment.model)

    @property
    def drawer(self) -> Drawer:
        return Drawer(self.transformer, self.text.pieces, self.experiment.decode, self.int8)

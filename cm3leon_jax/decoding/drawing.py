"""Drawing by the grammar of documents: images, fills of holes, whole segments one after the other.

What may follow is laid down here and in the heads of the engine: an image has exactly its codes, a
text at least one piece, `<break>` or `<eos>` stands behind each. Nothing else can be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.decoding.batches import Rows, draw_in_batches
from cm3leon_jax.decoding.engine import Prompts, draw_codes, draw_next, draw_text
from cm3leon_jax.decoding.holes import Fill, fill_prompt, find_holes
from cm3leon_jax.decoding.logits import Contrast, Guidance, Sampling
from cm3leon_jax.decoding.prompts import join
from cm3leon_jax.fields import require
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD, Vocabulary

GROWTH = 256  # a prompt that grows by whole segments is padded to a multiple: fewer compilations


@dataclass(frozen=True)
class Drawer:
    """A transformer that draws. pieces: how many the text tokenizer has; int8: of the cache."""

    model: Transformer
    pieces: int
    defaults: config.Decode
    int8: bool = False

    def image_sampling(
        self,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> Sampling:
        """How a code is drawn; what is None comes from config `decode`."""
        c = self.defaults
        temperature = c.temperature if temperature is None else temperature
        top_p = c.top_p if top_p is None else top_p
        top_k = c.top_k if top_k is None else top_k
        require(temperature >= 0, "temperature", temperature, "use 0 or more")
        require(0 < top_p <= 1, "top_p", top_p, "use above 0, at most 1")
        require(top_k >= 0, "top_k", top_k, "use 0 (all) or more")
        return Sampling(
            jnp.float32(temperature),
            None if top_p == 1 else jnp.float32(top_p),
            None if top_k == 0 else jnp.int32(top_k),
        )

    def text_sampling(self, temperature: float | None = None) -> Sampling:
        """How a piece is drawn; temperature None is that of config `decode`."""
        return self.image_sampling(
            self.defaults.text_temperature if temperature is None else temperature, 1.0, 0
        )

    def codes(
        self,
        streams: Sequence[Rows],
        sampling: Sampling,
        guidance: Guidance,
        n: int = 1,
        seed: int = 0,
        span: tuple[int, int] | None = None,
        **prompts: Any,
    ) -> NDArray[np.int32]:
        """Codes [P*n, count] for P prompts; those of a prompt stand together.

        span: the first and the end of the places to draw, by default of a whole image. prompts:
        `places` and `multiple` as in `draw_in_batches`.
        """
        first, end = span or (0, self.model.config.image_tokens)

        def decode(prompts: Prompts, keys: jax.Array) -> jax.Array:
            if guidance.contrast is not None:  # in a mixed pool no two samples share their draws
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
            return draw_codes(
                self.model, prompts, keys, sampling, guidance, end - first, first, self.int8
            )

        return self._in_batches(streams, decode, n, seed, end - first, **prompts)

    def fill(
        self, documents: Sequence[Document], temperature: float | None, seed: int
    ) -> list[list[Fill]]:
        """Fills for the holes of every document, in order; later ones see the earlier ones.

        All documents have holes of the kinds and sizes of the first one's. A temperature holds for
        texts and images, None is that of config `decode` for each.
        """
        holes, limit = find_holes(documents[0]), self.defaults.text_tokens
        fills: list[list[Fill]] = [[] for _ in documents]
        by_text, by_code = self.text_sampling(temperature), self.image_sampling(temperature)
        # Prompts grow by each fill; padded to the last one's length they are of one shape.
        longest = max(len(fill_prompt(d, [], self._vocabulary)[0]) for d in documents)
        for hole in holes[:-1]:
            longest += 2 + (hole.stop - hole.start if hole.is_image else limit)
        for hole in holes:
            rows, places = zip(
                *(fill_prompt(d, done, self._vocabulary) for d, done in zip(documents, fills))
            )
            padding: dict[str, Any] = {"places": [places], "multiple": -(-longest // 16) * 16}
            if hole.is_image:
                span = hole.start, hole.stop
                drawn = self.codes([rows], by_code, Guidance(), 1, seed, span, **padding)
            else:
                drawn = self._texts(rows, by_text, seed, **padding)
            for row, done in zip(drawn, fills):
                ids = row if hole.is_image else self._vocabulary.pieces(row[row != PAD])
                done.append(tuple(ids.tolist()))
        return fills

    def continue_document(
        self, document: Document, most: int, temperature: float | None, seed: int
    ) -> list[Text | Image]:
        """The segments after a document's, one at least and `most` at most.

        Fewer if the model closes the document or nothing fits the context any more.
        """
        v, c, limit = self._vocabulary, self.model.config, self.defaults.text_tokens
        by_text, by_code = self.text_sampling(temperature), self.image_sampling(temperature)
        ids, closing = join(document.to_ids(v)[:-1]), BREAK
        found: list[Text | Image] = []
        while closing == BREAK and len(found) < most:
            ids = join(ids, [BREAK])
            room = c.context - len(ids)
            texts = np.arange(v.text_start, v.text_start + self.pieces * (room >= limit))
            codes = np.arange(v.image_start, v.image_start + v.images * (room >= c.image_tokens))
            if not len(texts) + len(codes):
                require(bool(found), "document tokens", len(ids), f"use a shorter one: {room} left")
                break
            # The kind of a segment is that of its first id, which is then drawn anew as everywhere.
            if v.is_image(self._next(ids, join(texts, codes), by_text, seed)):
                (row,) = self.codes([[ids]], by_code, Guidance(), 1, seed, multiple=GROWTH)
                found.append(Image(row))
                ids = join(ids, v.image_ids(row))
                closing = self._next(ids, join([BREAK, EOS]), by_text, seed)
            else:
                (row,) = self._texts([ids], by_text, seed, (BREAK, EOS), multiple=GROWTH)
                closing = EOS if EOS in row else BREAK
                ids = join(ids, row[v.is_text(row)])
                found.append(Text(v.pieces(row[v.is_text(row)])))
        return found

    @property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.model.config)

    def _texts(
        self,
        rows: Rows,
        sampling: Sampling,
        seed: int,
        closings: tuple[int, ...] = (EOSS,),
        **prompts: Any,
    ) -> NDArray[np.int32]:
        """Ids [P limit] as `draw_text` gives them."""
        limit = self.defaults.text_tokens

        def decode(prompts: Prompts, keys: jax.Array) -> jax.Array:
            return draw_text(
                self.model,
                prompts,
                keys,
                sampling,
                Guidance(),
                limit,
                self.pieces,
                closings=closings,
                int8=self.int8,
            )

        return self._in_batches([rows], decode, 1, seed, limit, **prompts)

    def _next(
        self, ids: NDArray[np.integer], choices: NDArray[np.int32], sampling: Sampling, seed: int
    ) -> int:
        """One of the choices."""

        def decode(prompts: Prompts, keys: jax.Array) -> jax.Array:
            return draw_next(self.model, prompts, keys, sampling, Guidance(), jnp.array(choices))

        return int(self._in_batches([[ids]], decode, 1, seed, 0, multiple=GROWTH)[0])

    def _in_batches(
        self, streams: Sequence[Rows], decode: Any, n: int, seed: int, new: int, **prompts: Any
    ) -> NDArray[np.int32]:
        require(0 <= seed < 2**63, "seed", seed, "use 0 or more, below 2**63")
        return draw_in_batches(self.model, streams, decode, n, seed, new, **prompts)


def guide_by(scale: float) -> Guidance:
    """Guidance of two streams; of one where the scale is 1, which needs no second."""
    require(scale >= 0, "guidance", scale, "use 0 or more")
    return Guidance() if scale == 1 else Guidance(text=jnp.float32(scale))


def contrast_by(k: int) -> Guidance:
    """CD-K."""
    require(k >= 1, "contrastive", k, "use 1 (plain contrastive decoding) or more")
    return Guidance(contrast=Contrast(jnp.int32(k)))

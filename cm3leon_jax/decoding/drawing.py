"""Drawing by the grammar of documents: images, fills of holes, whole segments one after the other.

What may follow is laid down here and in the heads of the engine: an image has exactly its codes, a
text at least one piece, `<break>` or `<eos>` stands behind each. Nothing else can be drawn.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.decoding.batches import ROWS, Rows, draw_in_batches
from cm3leon_jax.decoding.engine import Prompts, draw_codes, draw_next, draw_text
from cm3leon_jax.decoding.holes import Fill, fill_prompt, find_holes
from cm3leon_jax.decoding.jacobi import draw_codes_in_windows
from cm3leon_jax.decoding.logits import Contrast, Guidance, Sampling
from cm3leon_jax.decoding.prompts import join
from cm3leon_jax.decoding.streaming import stream_codes, stream_text
from cm3leon_jax.fields import require
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, Vocabulary

Listener = Callable[[int, NDArray[np.int32]], None]
"""Gets the number of a sample and what of it has been drawn."""

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
            None if top_k == 0 else jnp.int32(min(top_k, 2**31 - 1)),
        )

    def text_sampling(
        self, temperature: float | None = None, repetition_penalty: float | None = None
    ) -> Sampling:
        """How a piece is drawn; what is None comes from config `decode`."""
        c = self.defaults
        temperature = c.text_temperature if temperature is None else temperature
        penalty = c.repetition_penalty if repetition_penalty is None else repetition_penalty
        require(penalty >= 1, "repetition_penalty", penalty, "use 1 (none) or more")
        sampling = self.image_sampling(temperature, 1.0, 0)
        return sampling if penalty == 1 else sampling._replace(repetition=jnp.float32(penalty))

    def codes(
        self,
        streams: Sequence[Rows],
        sampling: Sampling,
        guidance: Guidance,
        n: int = 1,
        seed: int = 0,
        span: tuple[int, int] | None = None,
        speculative: bool = False,
        listen: Listener | None = None,
        **prompts: Any,
    ) -> NDArray[np.int32]:
        """Codes [P*n, count] for P prompts; those of a prompt stand together.

        span: the first and the end of the places to draw, by default of a whole image. speculative:
        by Jacobi decoding, one sample at a time. listen: gets codes after each row. prompts:
        `places` and `multiple` as in `draw_in_batches`.
        """
        first, end = span or (0, self.model.config.image_tokens)

        def decode(prompts: Prompts, keys: jax.Array, numbers: NDArray[np.int64]) -> Any:
            if guidance.contrast is not None:  # in a mixed pool no two samples share their draws
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
            given = self.model, prompts, keys, sampling, guidance, end - first, first, self.int8
            if speculative:
                return draw_codes_in_windows(*given)[0]
            if listen is not None:
                return _tell(stream_codes(*given), numbers, listen)
            return draw_codes(*given)

        most = 1 if speculative else ROWS
        return self._in_batches(streams, decode, n, seed, end - first, most=most, **prompts)

    def fill(
        self,
        documents: Sequence[Document],
        temperature: float | None,
        seed: int,
        repetition_penalty: float | None = None,
        listen: Callable[[int, list[Fill]], None] | None = None,
    ) -> list[list[Fill]]:
        """Fills for the holes of every document, in order; later ones see the earlier ones.

        All documents have holes of the kinds and sizes of the first one's. A temperature holds for
        texts and images, None is that of config `decode` for each. listen: gets a document's number
        and its fills after each piece of a text.
        """
        self._require_masks()
        holes, limit = find_holes(documents[0]), self.defaults.text_tokens
        fills: list[list[Fill]] = [[] for _ in documents]
        by_text = self.text_sampling(temperature, repetition_penalty)
        by_code = self.image_sampling(temperature)

        def hear(number: int, ids: NDArray[np.int32]) -> None:
            if listen is not None:
                listen(number, [*fills[number], self._pieces(ids)])

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
                drawn = self._texts(rows, by_text, seed, listen=listen and hear, **padding)
            for row, done in zip(drawn, fills):
                done.append(tuple(row.tolist()) if hole.is_image else self._pieces(row))
        return fills

    def continue_document(
        self,
        document: Document,
        most: int,
        temperature: float | None,
        seed: int,
        repetition_penalty: float | None = None,
        listen: Callable[[int, Text | Image], None] | None = None,
    ) -> list[Text | Image]:
        """The segments after a document's, one at least and `most` at most.

        Fewer if the model closes the document or nothing fits the context any more. listen: gets a
        segment's number among them, and what of it has been drawn.
        """
        self._require_masks()
        v, c, limit = self._vocabulary, self.model.config, self.defaults.text_tokens
        by_text = self.text_sampling(temperature, repetition_penalty)
        by_code = self.image_sampling(temperature)
        ids, closing = join(document.to_ids(v)[:-1]), BREAK
        found: list[Text | Image] = []
        heard: dict[str, Any]

        def hear_text(_: int, row: NDArray[np.int32]) -> None:
            if listen is not None:
                listen(len(found), Text(self._pieces(row)))

        def hear_image(_: int, codes: NDArray[np.int32]) -> None:
            if listen is not None:
                listen(len(found), Image(codes))

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
                heard = {"listen": listen and hear_image, "multiple": GROWTH}
                (row,) = self.codes([[ids]], by_code, Guidance(), 1, seed, **heard)
                found.append(Image(row))
                ids = join(ids, v.image_ids(row))
                closing = self._next(ids, join([BREAK, EOS]), by_text, seed)
            else:
                heard = {"listen": listen and hear_text, "multiple": GROWTH}
                (row,) = self._texts([ids], by_text, seed, (BREAK, EOS), **heard)
                closing = EOS if EOS in row else BREAK
                ids = join(ids, row[v.is_text(row)])
                found.append(Text(self._pieces(row)))
        return found

    def _require_masks(self) -> None:
        """Raises ValueError for a model of other documents, which says nothing for our marks."""
        form = self.model.config.documents
        rule = "draws pictures only; train it on from here with model.documents='cm3leon'"
        require(form == "cm3leon", "model.documents", form, rule)

    @property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.model.config)

    def _pieces(self, row: NDArray[np.int32]) -> Fill:
        """The pieces of a row of `draw_text`."""
        v = self._vocabulary
        return tuple(v.pieces(row[v.is_text(row)]).tolist())

    def _texts(
        self,
        rows: Rows,
        sampling: Sampling,
        seed: int,
        closings: tuple[int, ...] = (EOSS,),
        listen: Listener | None = None,
        **prompts: Any,
    ) -> NDArray[np.int32]:
        """Ids [P limit] as `draw_text` gives them. listen: gets them after each piece."""
        limit = self.defaults.text_tokens

        def decode(prompts: Prompts, keys: jax.Array, numbers: NDArray[np.int64]) -> Any:
            how = sampling, Guidance(), limit, self.pieces, self.int8, closings
            if listen is not None:
                return _tell(stream_text(self.model, prompts, keys, *how), numbers, listen)
            return draw_text(self.model, prompts, keys, *how)

        return self._in_batches([rows], decode, 1, seed, limit, **prompts)

    def _next(
        self, ids: NDArray[np.integer], choices: NDArray[np.int32], sampling: Sampling, seed: int
    ) -> int:
        """One of the choices."""

        def decode(prompts: Prompts, keys: jax.Array, _: NDArray[np.int64]) -> jax.Array:
            return draw_next(self.model, prompts, keys, sampling, Guidance(), jnp.array(choices))

        return int(self._in_batches([[ids]], decode, 1, seed, 0, multiple=GROWTH)[0])

    def _in_batches(
        self, streams: Sequence[Rows], decode: Any, n: int, seed: int, new: int, **prompts: Any
    ) -> NDArray[np.int32]:
        holds = isinstance(seed, int | np.integer) and 0 <= seed < 2**63
        require(holds, "seed", seed, "use a whole number, 0 or more, below 2**63")
        return draw_in_batches(self.model, streams, decode, n, seed, new, **prompts)


def _tell(
    steps: Iterable[NDArray[np.int32]], numbers: NDArray[np.int64], listen: Listener
) -> NDArray[np.int32]:
    """The last of the steps; the listener gets each sample's row of every step that changed it."""
    rows = np.unique(numbers, return_index=True)[1]
    before: NDArray[np.int32] | None = None
    for now in steps:
        for row in rows:
            if before is None or not np.array_equal(now[row], before[row]):
                listen(int(numbers[row]), now[row])
        before = now
    assert before is not None  # both streams have at least one step
    return before


def guide_by(
    scale: float, interval: tuple[float, float] | None = None, places: int = 0
) -> Guidance:
    """Guidance of two streams; of one where the scale is 1, which needs no second.

    interval: the shares of an image's places between which it holds.
    """
    require(scale >= 0, "guidance", scale, "use 0 or more")
    within = None
    if interval is not None:
        rule = "use two shares of the image, 0 <= from < to <= 1"
        holds = isinstance(interval, list | tuple) and len(interval) == 2
        holds = holds and 0 <= interval[0] < interval[1] <= 1
        require(holds, "guidance_interval", interval, rule)
        first, end = (round(share * places) for share in interval)
        within = jnp.int32(first), jnp.int32(end)
    return Guidance() if scale == 1 else Guidance(text=jnp.float32(scale), interval=within)


def contrast_by(k: int) -> Guidance:
    """CD-K."""
    require(k >= 1, "contrastive", k, "use 1 (plain contrastive decoding) or more")
    return Guidance(contrast=Contrast(jnp.int32(min(k, 2**31 - 1))))

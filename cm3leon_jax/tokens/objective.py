"""CM3: spans move behind the document, each after its sentinel (paper section 2.2).

    <eos> a b c <break> d e <eos>   ->   <eos> a <mask:0> <break> d e <eos> <mask:0> b c <eoss>

so that a model that reads left to right learns to fill holes with both sides in view. A span never
crosses `<break>`, is never cut, and spans never touch. `restore` is the exact inverse of `rotate`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cm3leon_jax.config import Objective
from cm3leon_jax.tokens.document import Document, Span, spans
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, MASK_START, Vocabulary

ADDED = 3  # ids that a relocated span adds: its sentinel twice and <eoss>
TRIES = 16  # draws of two ends before a span is given up


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one example: every epoch masks anew, every run repeats."""
    return np.random.default_rng((seed, epoch, index))


def rotate(
    ids: ArrayLike,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    objective: Objective,
    max_length: int | None = None,
    answers: Sequence[tuple[int, int]] = (),
) -> NDArray[np.uint32]:
    """Masks a complete document's ids [T]; n spans give [T + 3n], n = 0 gives the ids unchanged.

    With `max_length` only as many spans are drawn as fit, so that neither they nor images are ever
    cut. A longer document, and one that already has holes, raises ValueError. With probability
    `answer_last` the spans are those of `answers`, [start, stop) in order, that end before the
    document does: what is asked for is then read last, as in decoding.
    """
    array = np.asarray(ids)
    segments = spans(array, vocabulary)
    holes = np.flatnonzero(vocabulary.is_mask(array))
    if holes.size:
        rule = "only a document without holes can be rotated"
        raise vocabulary.malformed(array, int(holes[0]), rule)
    limit = _room(len(array), max_length)
    if answers and objective.answer_last and rng.random() < objective.answer_last:
        early = [(start, stop) for start, stop in answers if stop < len(array) - 1]
        if limit is None or len(early) <= limit:
            return relocate(array, early, vocabulary)
    return relocate(array, draw_spans(segments, rng, objective, limit), vocabulary)


def draw_spans(
    segments: Sequence[Span],
    rng: np.random.Generator,
    objective: Objective,
    limit: int | None = None,
) -> list[tuple[int, int]]:
    """Disjoint [start, stop) in order, each within one of the segments that `spans` found.

    min(Poisson(rate), max_spans, limit) are drawn. Each is, with probability `whole_segment`, one
    of the segments not yet touched, else a stretch between two uniform draws over the document
    that meets no earlier span, cut down to the segment it overlaps most. A span that finds no free
    place is dropped, so there may be fewer.
    """
    count = min(int(rng.poisson(objective.rate)), objective.max_spans)
    count = count if limit is None else min(count, limit)
    taken: list[tuple[int, int]] = []
    for _ in range(count):
        if rng.random() < objective.whole_segment:
            span = _draw_segment(segments, taken, rng)
        else:
            span = _draw_stretch(segments, taken, rng)
        if span is not None:
            taken.append(span)
    return sorted(taken)


def relocate(
    ids: NDArray[np.integer], chosen: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> NDArray[np.uint32]:
    """Moves the chosen [start, stop), given in order, behind the closing <eos>."""
    source, fills, end = [], [], 0
    close = np.full(1, EOSS, np.uint32)
    for index, (start, stop) in enumerate(chosen):
        sentinel = np.full(1, vocabulary.mask(index), np.uint32)
        source += [ids[end:start], sentinel]
        fills += [sentinel, ids[start:stop], close]
        end = stop
    return np.concatenate([*source, ids[end:], *fills]).astype(np.uint32, copy=False)


def restore(ids: ArrayLike, vocabulary: Vocabulary) -> NDArray[np.uint32]:
    """The document that `rotate` was given; malformed ids raise ValueError with the position."""
    array = np.asarray(ids)
    origin = provenance(array, vocabulary)
    kept = origin >= 0
    document = np.empty(int(kept.sum()), np.uint32)
    document[origin[kept]] = array[kept]
    return document


def provenance(ids: ArrayLike, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """For each rotated id [T] its position in the document; -1 for sentinels and <eoss>."""
    array = np.asarray(ids)
    sentinels, fills = _read_layout(array, vocabulary)
    origin = np.full(len(array), -1, np.int64)
    count = begin = 0
    source_end = fills[0][0] - 1 if fills else len(array)
    for hole, (start, stop) in zip([*sentinels, source_end], [*fills, (0, 0)], strict=True):
        for low, high in ((begin, hole), (start, stop)):
            origin[low:high] = np.arange(count, count + high - low)
            count += high - low
        begin = hole + 1
    return origin


def code_places(ids: ArrayLike, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """For each rotated id [T] its place in its image; -1 for what is no code.

    A code keeps its place wherever it stands: behind a hole, and in the fill of one.
    """
    array = np.asarray(ids)
    origin = provenance(array, vocabulary)
    edges = origin[(array == EOS) | (array == BREAK)]  # these never move, so they are in order
    is_code = vocabulary.is_image(array)
    codes = origin[is_code]
    places = np.full(len(array), -1, np.int32)
    places[is_code] = codes - edges[np.searchsorted(edges, codes) - 1] - 1
    return places


def token_weights(
    ids: ArrayLike,
    vocabulary: Vocabulary,
    objective: Objective,
    main_start: int = 0,
    answers: Sequence[tuple[int, int]] = (),
) -> NDArray[np.float32]:
    """The loss weight of each rotated id [T] as a target.

    `main_start` is `Document.main_start`: what stood before it weighs `retrieved_weight`, wherever
    it stands now. An <eoss> weighs what its span weighs, sentinels weigh `sentinel_weight`. With
    `answer_only` all but `answers`, [start, stop) in the document, and what closes them weighs 0;
    the n tokens of one together weigh n to the power of `answer_length`.
    """
    array = np.asarray(ids)
    weights = np.ones(len(array), np.float32)
    if objective.retrieved_weight == objective.sentinel_weight == 1 and not objective.answer_only:
        return weights
    origin = provenance(array, vocabulary)
    closes = np.flatnonzero(array == EOSS)
    origin[closes] = origin[closes - 1]
    weights[origin < main_start] = objective.retrieved_weight
    weights[vocabulary.is_mask(array)] = objective.sentinel_weight
    if objective.answer_only:
        asked = [(start <= origin) & (origin <= stop) for start, stop in answers]
        weights[~np.any(asked, axis=0)] = 0
        for tokens in asked:
            weights[tokens] *= tokens.sum() ** (objective.answer_length - 1)
    return weights


def statistics(
    documents: Sequence[Document],
    vocabulary: Vocabulary,
    objective: Objective,
    rounds: int = 100,
    seed: int = 0,
    max_length: int | None = None,
) -> dict[str, float]:
    """Shares of rows, over `rounds` epochs of the documents: what the objective trains on."""
    names = ("no_mask", "text_masked", "some_text_masked", "image_masked", "some_image_masked")
    counts = dict.fromkeys(names, 0)
    for index, document in enumerate(documents):
        ids = document.to_ids(vocabulary)
        segments, limit = spans(ids, vocabulary), _room(len(ids), max_length)
        for epoch in range(rounds):
            chosen = draw_spans(segments, rng_for(seed, epoch, index), objective, limit)
            counts["no_mask"] += not chosen
            for kind in ("text", "image"):
                places = [(start, start + n) for k, start, n in segments if k == kind]
                counts[f"{kind}_masked"] += any(place in chosen for place in places)
                counts[f"some_{kind}_masked"] += any(
                    low <= start and stop <= high for start, stop in chosen for low, high in places
                )
    return {name: count / (rounds * len(documents)) for name, count in counts.items()}


def _room(length: int, max_length: int | None) -> int | None:
    """How many spans fit a document of `length` ids."""
    if max_length is None:
        return None
    if length > max_length:
        rule = "use longer rows, shorter texts or fewer retrieved documents"
        raise ValueError(f"document of {length} ids, max_length={max_length}: {rule}")
    return (max_length - length) // ADDED


def _is_free(start: int, stop: int, taken: Sequence[tuple[int, int]]) -> bool:
    """Whether [start, stop) neither overlaps nor touches a taken span."""
    return all(stop < low or start > high for low, high in taken)


def _draw_segment(
    segments: Sequence[Span], taken: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    free = [(s, s + n) for _, s, n in segments if _is_free(s, s + n, taken)]
    return free[rng.integers(len(free))] if free else None


def _draw_stretch(
    segments: Sequence[Span], taken: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    end = segments[-1].start + segments[-1].length  # the closing <eos>; 0 is the opening one
    for _ in range(TRIES):
        first, last = np.sort(rng.integers(1, end, size=2)).tolist()
        if not _is_free(first, last + 1, taken):
            continue
        cuts = [(max(first, s), min(last + 1, s + n)) for _, s, n in segments]
        start, stop = max(cuts, key=lambda cut: cut[1] - cut[0])
        if start < stop:  # not so for a stretch that is one <break>
            return start, stop
    return None


def _read_layout(
    array: NDArray[np.integer], vocabulary: Vocabulary
) -> tuple[list[int], list[tuple[int, int]]]:
    """Positions of the sentinels in the source, and the [start, stop) of their fills."""
    special = np.flatnonzero(array < vocabulary.text_start).tolist()
    outside = np.flatnonzero(array >= vocabulary.size)
    if outside.size:
        raise vocabulary.malformed(array, int(outside[0]), "not an id")
    if special[:1] != [0] or array[0] != EOS:
        raise vocabulary.malformed(array, 0, "a document opens with <eos>")
    sentinels: list[int] = []
    closing = len(array)
    for position in special[1:]:
        if array[position] == EOS:
            closing = position
            break
        if array[position] == MASK_START + len(sentinels):
            sentinels.append(position)
        elif array[position] != BREAK:
            rule = f"only <break>, <mask:{len(sentinels)}> or <eos> may stand here"
            raise vocabulary.malformed(array, position, rule)
    if closing == len(array):
        raise vocabulary.malformed(array, closing, "a document closes with <eos>")

    fills: list[tuple[int, int]] = []
    place = closing + 1
    behind = [position for position in special if position > closing]
    behind += [len(array)] * (2 * len(sentinels))  # so that missing ones are found at the end
    for index in range(len(sentinels)):
        opens, closes = behind[2 * index : 2 * index + 2]
        if opens != place or opens == len(array) or array[opens] != MASK_START + index:
            raise vocabulary.malformed(array, place, f"the fill of <mask:{index}> opens here")
        if closes == len(array) or array[closes] != EOSS:
            raise vocabulary.malformed(array, closes, f"<eoss> closes the fill of <mask:{index}>")
        if closes == opens + 1:
            raise vocabulary.malformed(array, closes, f"the fill of <mask:{index}> is empty")
        fills.append((opens + 1, closes))
        place = closes + 1
    if place != len(array):
        raise vocabulary.malformed(array, place, "nothing stands behind the last fill")
    return sentinels, fills

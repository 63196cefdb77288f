"""`cm3leon inspect documents`: the joined, masked and packed rows of one batch as one HTML page."""

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.evaluation import report
from cm3leon_jax.evaluation.rows import Origin, Seen, read_row
from cm3leon_jax.tokens.document import Span
from cm3leon_jax.tokens.objective import statistics
from cm3leon_jax.tokens.packing import Batch
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import EOS, EOSS, Vocabulary

Decode = Callable[[NDArray[np.int32]], NDArray[np.uint8]]  # codes [B N] -> pictures [B Y X 3]
COLOURS = ("#2563eb", "#ea8a0b", "#0f9d6b", "#9b3fd1", "#d6336c", "#0c93ad", "#6b8e12", "#6057d6")
KINDS = {"text": "#334155", "image": "#93c5fd", "sign": "#111827", "mask": "#e11d48"}
WEIGHT, LIGHTER = "#9aa1ab", "73"  # the latter behind a colour: its opacity
SHARES = {
    "no_mask": "nothing masked",
    "text_masked": "a whole text masked",
    "some_text_masked": "some of a text masked",
    "image_masked": "a whole image masked",
    "some_image_masked": "some of an image masked",
}
ROUNDS = 100  # epochs of the page's documents that the expected shares are counted over
STYLE = """
body { max-width: 78rem } h2 { margin: 2.6rem 0 .5rem } h2 small { color: #666; font-weight: 400 }
.row { position: relative; margin-bottom: .9rem }
.row a { position: absolute; top: 2px; color: #fff; font: 600 13px/20px system-ui, sans-serif;
         padding-left: 6px; text-decoration: none }
.example { border-left: 5px solid var(--colour); background: #fbfbfc; border-radius: 8px;
           padding: .45rem .9rem .7rem; margin: .55rem 0; break-inside: avoid }
.example header { font-size: .8rem; color: #777; margin-bottom: .4rem }
.example header b { color: var(--colour); margin-right: .4rem }
.flow { display: flex; flex-wrap: wrap; align-items: center; gap: .45rem .4rem }
.document { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; background: #fff;
            border: 2px solid var(--colour); border-radius: 8px; padding: 1.15rem .6rem .5rem;
            position: relative; max-width: 34rem }
.document > i { position: absolute; top: .1rem; left: .6rem; right: .6rem; overflow: hidden;
                text-overflow: ellipsis; white-space: nowrap; color: var(--colour);
                font: .68rem/1rem system-ui, sans-serif }
.retrieved { border: 2px dashed #b9bec6; background: #f4f5f7 } .retrieved > i { color: #777 }
.text { white-space: pre-wrap; max-width: 20rem; overflow-wrap: anywhere; line-height: 1.35 }
.image { text-align: center; line-height: 1.1 } .image img { display: block; width: 5.6rem;
         border-radius: 4px; border: 1px solid #dcdfe3; margin-bottom: .15rem }
.small img { image-rendering: pixelated }
.empty { display: grid; place-items: center; width: 5.6rem; height: 5.6rem; border-radius: 4px;
         background: repeating-linear-gradient(45deg, #e9ebee 0 5px, #f6f7f8 5px 10px) }
.sign { font: 600 .68rem/1.25rem ui-monospace, monospace; border-radius: 9px; padding: 0 .4rem;
        background: #e5e7eb; color: #4b5563; white-space: nowrap; display: inline-block }
.mask { background: #ffe1e7; color: #c3123c }
.fill { display: flex; align-items: center; gap: .4rem; background: #fff6f7; padding: .4rem .5rem;
        border: 1px solid #f6b9c5; border-radius: 8px }
"""


def page(
    batch: Batch,
    origins: Iterable[Origin],
    text: TextTokenizer,
    decode: Decode,
    c: config.Experiment,
    title: str = "What training sees",
) -> str:
    """The rows of a batch of `token_batches` (all [B T]), self-contained.

    `origins` are those of the batch's documents, in any order; more do no harm.
    """
    vocabulary = Vocabulary.of(c.model)
    known = {one.document.to_ids(vocabulary).tobytes(): one for one in origins}
    count, length = batch["tokens"].shape
    rows = [{name: values[i] for name, values in batch.items()} for i in range(count)]
    seen = [read_row(row, vocabulary, known) for row in rows]
    every = [example for examples in seen for example in examples]
    draw = _Drawing(vocabulary, text, _pictures(every, vocabulary, decode))
    sections = [_figures(every, batch, vocabulary, c), _legend()]
    for number, (row, examples) in enumerate(zip(rows, seen), start=1):
        used = sum(example.size for example in examples)
        sections.append(
            f"<h2>Row {number} <small>{_count(len(examples), 'document')}, {used} of {length}"
            f" places filled: {used / length:.0%}</small></h2>"
            f"{_strip(number, row, examples, vocabulary)}"
        )
        sections += [
            draw.example(example, f"{number}.{place}", COLOURS[(place - 1) % len(COLOURS)])
            for place, example in enumerate(examples, start=1)
        ]
    return report.page(title, sections, STYLE)


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Ids as HTML."""

    vocabulary: Vocabulary
    text: TextTokenizer
    pictures: dict[bytes, NDArray[np.uint8]]  # by the bytes of an image's ids

    def example(self, seen: Seen, number: str, colour: str) -> str:
        """The document as it is read, its spans behind it."""
        frames = [self._frame(seen, number) for number in range(len(seen.documents()))]
        body = _sign("<eos>") + _sign("<break>").join(frames) + _sign("<eos>")
        body += "".join(self._fill(seen, number) for number in range(len(seen.holes)))
        parts = [seen.origin.name, f"{len(seen.ids)} tokens"]
        parts += [_count(len(frames) - 1, "retrieved document")] if len(frames) > 1 else []
        parts += [_count(len(seen.holes), "masked span") if seen.holes else "nothing masked"]
        about = html.escape(" · ".join(filter(None, parts)))
        return (
            f'<div class="example" id="e{number}" style="--colour:{colour}"><header><b>{number}</b>'
            f'{about}</header><div class="flow">{body}</div></div>'
        )

    def _frame(self, seen: Seen, number: int) -> str:
        segments = seen.documents()[number]
        is_main = number == len(seen.documents()) - 1
        notes = ["main document" if is_main else "retrieved"]
        weight = seen.weight(segments[0].start, segments[-1].start + segments[-1].length)
        notes += [] if weight == 1 else [f"weight {weight:.2g}"]
        notes += [] if is_main else seen.origin.found[number : number + 1]
        label = html.escape(" · ".join(filter(None, notes)))
        content = _sign("<break>").join(self._segment(seen, segment) for segment in segments)
        kind = "document" if is_main else "document retrieved"
        return f'<div class="{kind}"><i title="{label}">{label}</i>{content}</div>'

    def _segment(self, seen: Seen, segment: Span) -> str:
        """A text or an image without its masked spans, their sentinels in their place."""
        kind, start, length = segment
        stop = start + length
        holes = {low: i for i, (low, _) in enumerate(seen.holes) if start <= low < stop}
        if kind == "image":
            is_masked, signs = (
                seen.masked(segment, holes.values()),
                "".join(map(_mask, holes.values())),
            )
            if is_masked.all():
                return f'<div class="image"><div class="empty">{signs}</div></div>'
            return self._image(seen.document[start:stop], ~is_masked, signs)
        shown, at = "", start
        for low, i in holes.items():
            shown += self._words(seen.document[at:low]) + _mask(i)
            at = seen.holes[i][1]
        shown += self._words(seen.document[at:stop])
        whole = f' title="{self._words(seen.document[start:stop])}"' if holes else ""
        return f'<span class="text"{whole}>{shown}</span>'

    def _fill(self, seen: Seen, number: int) -> str:
        """A masked span between its sentinel and <eoss>; of an image the rest is not shown."""
        low, high = seen.holes[number]
        segment = next(s for s in seen.segments if s.start <= low < s.start + s.length)
        if segment.kind == "text":
            content = f'<span class="text">{self._words(seen.document[low:high])}</span>'
        else:
            ids = seen.document[segment.start : segment.start + segment.length]
            content = self._image(ids, seen.masked(segment, [number]))
        return f'<div class="fill">{_mask(number)}{content}{_sign("<eoss>", "mask")}</div>'

    def _words(self, ids: NDArray[np.uint32]) -> str:
        return html.escape(self.text.decode(self.vocabulary.pieces(ids).tolist()))

    def _image(self, ids: NDArray[np.uint32], is_shown: NDArray[np.bool_], below: str = "") -> str:
        pixels = report.cover(self.pictures[ids.tobytes()], is_shown)
        kind = "image small" if len(pixels) <= 64 else "image"
        return f'<div class="{kind}">{report.picture(pixels)}{below}</div>'


def _pictures(
    every: Sequence[Seen], vocabulary: Vocabulary, decode: Decode
) -> dict[bytes, NDArray[np.uint8]]:
    """All whole images of the page, each decoded once."""
    found = {}
    for seen in every:
        for kind, start, length in seen.segments:
            if kind == "image":
                ids = seen.document[start : start + length]
                found[ids.tobytes()] = vocabulary.codes(ids).astype(np.int32)
    return dict(zip(found, decode(np.stack(list(found.values()))))) if found else {}


def _figures(
    every: Sequence[Seen], batch: Batch, vocabulary: Vocabulary, c: config.Experiment
) -> str:
    """What the batch holds, and how often a span masks what, beside the expected shares."""
    filled = batch["segments"] != 0
    neighbours = [len(seen.origin.document.retrieved) for seen in every]
    weight = batch["weights"] / batch["weights"].sum()
    image = weight[vocabulary.is_image(batch["targets"])].sum()
    text = weight[vocabulary.is_text(batch["targets"])].sum()
    rows, length = filled.shape
    tally = ", ".join(f"{neighbours.count(n)} with {n}" for n in sorted(set(neighbours)))
    figures = report.figures(
        (
            (f"{filled.mean():.0%}", "of all places filled", f"{rows} rows of {length}"),
            (f"{len(every) / rows:.1f}", "documents per row", f"{len(every)} in all"),
            (f"{np.mean(neighbours):.1f}", "retrieved per document", tally),
            (f"{image:.0%}", "of the loss on images", f"{text:.0%} on texts, the rest on signs"),
        )
    )
    documents = [seen.origin.document for seen in every]
    expected = statistics(documents, vocabulary, c.objective, ROUNDS, max_length=length + 1)
    counted = {name: sum(name in _masked(seen) for seen in every) for name in expected}
    table = report.table(
        ("documents with", "here", "share", "expected"),
        [
            (SHARES[name], counted[name], f"{counted[name] / len(every):.0%}", f"{share:.0%}")
            for name, share in expected.items()
        ],
    )
    note = f"Expected: the share over {ROUNDS} epochs of these documents."
    return f'{figures}{table}<p class="muted">{note}</p>'


def _masked(seen: Seen) -> set[str]:
    """The names of `objective.statistics` that hold for one example."""
    names = set() if seen.holes else {"no_mask"}
    for kind, start, length in seen.segments:
        inside = [hole for hole in seen.holes if start <= hole[0] < start + length]
        names |= {f"some_{kind}_masked"} if inside else set()
        names |= {f"{kind}_masked"} if inside == [(start, start + length)] else set()
    return names


def _strip(number: int, row: Batch, examples: Sequence[Seen], vocabulary: Vocabulary) -> str:
    """A row place by place: whose it is, what is read there, and the weight of what is told."""
    tokens, length, top = row["tokens"], len(row["tokens"]), row["weights"].max()
    kinds = np.full(length, "sign", dtype=object)
    for name, is_kind in (("text", vocabulary.is_text), ("image", vocabulary.is_image)):
        kinds[is_kind(tokens)] = name
    kinds[vocabulary.is_mask(tokens) | (tokens == EOSS)] = "mask"
    boxes: list[tuple[int, int, float, float, str]] = []
    links, at = "", 0
    for place, seen in enumerate(examples, start=1):
        colour = COLOURS[(place - 1) % len(COLOURS)]
        places = np.arange(len(seen.ids))
        is_fill = places > np.flatnonzero(seen.ids == EOS)[1]
        # Signs without a place of their own go with their neighbour, that of a fill with the next.
        beside = places + np.where(is_fill & vocabulary.is_mask(seen.ids), 1, -1)
        origins = seen.origins[np.where(seen.origins < 0, beside, places)]
        is_retrieved = (origins > 0) & (origins < seen.origin.document.main_start)
        for start, stop, faded in _runs(is_retrieved[:-1], at):
            boxes.append((start, stop, 0, 24, colour + LIGHTER if faded else colour))
        for start, stop, masked in _runs(is_fill[:-1], at):
            boxes += [(start, stop, 24, 28, KINDS["mask"])] if masked else []
        left = f"left:{100 * at / length:.3f}%"
        links += f'<a href="#e{number}.{place}" style="{left}">{place}</a>'
        at += seen.size
    boxes += [(start, stop, 29, 41, KINDS[kind]) for start, stop, kind in _runs(kinds[:at])]
    for start, stop, weight in _runs(row["weights"][:at]):
        boxes.append((start, stop, 64 - 20 * weight / top, 64, WEIGHT))
    return f'<div class="row">{report.strip(length, 64, boxes)}{links}</div>'


def _runs(values: NDArray[Any], start: int = 0) -> Iterator[tuple[int, int, Any]]:
    """[start, stop) and value of every stretch of equal values."""
    for value, run in groupby(values.tolist()):
        stop = start + sum(1 for _ in run)
        yield start, stop, value
        start = stop


def _sign(name: str, kind: str = "") -> str:
    return f'<span class="sign {kind}">{html.escape(name)}</span>'


def _mask(number: int) -> str:
    return _sign(f"<mask:{number}>", "mask")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _legend() -> str:
    faded = f"linear-gradient(90deg, {COLOURS[0]}{LIGHTER} 50%, {COLOURS[0]} 50%)"
    return report.legend(
        (
            f"{report.swatch(faded)}one colour per example, lighter where it was retrieved",
            f"{report.swatch(KINDS['text'])}text",
            f"{report.swatch(KINDS['image'])}image codes",
            f"{report.swatch(KINDS['mask'])}masked spans, told behind their document",
            f"{report.swatch(WEIGHT)}height: weight in the loss of the id that is told there",
            f"{_sign('<eos>')} opens and closes a document",
            f"{_sign('<break>')} between segments",
            f"{_mask(0)} a span was here; it follows behind, up to {_sign('<eoss>', 'mask')}",
        )
    )

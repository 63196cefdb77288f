"""The suites of `cm3leon evaluate`: each draws or writes for a set of inputs, and scores it.

A suite is a function of a generator and settings. It works in parts inside its own folder, so it
goes on after a kill, and several processes share it; the first of them scores. What of a protocol
is known before the work is checked by then (`Settings.check`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config, processes
from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation import inputs, scene_tasks
from cm3leon_jax.evaluation.captions import TOKENIZER, caption_scores
from cm3leon_jax.evaluation.clip_score import Encoders, bundle_encoders
from cm3leon_jax.evaluation.distances import feature_scores, text_scores
from cm3leon_jax.evaluation.features import FeatureNetwork
from cm3leon_jax.evaluation.inputs import Inputs, draw_inputs, read_pictures
from cm3leon_jax.evaluation.parts import in_parts, read_lists, write_bytes
from cm3leon_jax.evaluation.vqa import exact_accuracy, read_choice, vqa_accuracy
from cm3leon_jax.fields import require

SHOWN = 24  # cards of a report
Card = tuple[Sequence[NDArray[np.uint8]], str]


@dataclass(frozen=True)
class Settings:
    """What is measured, on how much of it, and how the model is asked."""

    out: Path
    data: config.Data
    split: inputs.Split = "held_out"
    count: int = 512
    seed: int = 0
    documents: int | None = None  # retrieved ones in front; None: as `Generator` has it
    candidates: int | None = None  # coco_fid: drawn for each caption, the best by CLIP is kept
    style: str = "short"  # of captions
    explain: bool = False  # vqa: explanations in front of answers
    reference: Path | None = None  # coco_fid: a folder of pictures, or statistics of one
    network: FeatureNetwork | None = None  # coco_fid: None for no FID and KID
    encoders: Encoders | None = None  # coco_fid: a CLIP; None for the bundle's, if it has one
    check: Callable[[Mapping[str, Any]], None] | None = None  # may refuse a protocol; None: none


@dataclass(frozen=True)
class Result:
    """Scores by name, the protocol that they hold for, what was bad, and some of what was made."""

    scores: dict[str, Any]
    protocol: dict[str, Any]
    bad: list[str]
    cards: list[Card]


Suite = Callable[[Generator, Settings], Result | None]
"""None on all processes but the first. `settings.out` is a folder of the suite's own."""


def coco_fid(generator: Generator, settings: Settings) -> Result | None:
    """Draws one picture for one caption of each item: FID, KID, CLIP score, retrieval precision."""
    encoders = settings.encoders or bundle_encoders(generator)
    rule = "use --inception FILE, --clip FOLDER or a bundle with clip/, to score pictures"
    require(encoders is not None or settings.network is not None, "inception", None, rule)
    found = _draw(generator, settings, "captions")
    protocol = _protocol("coco_fid", generator, settings, found)
    asked = [_choose(item.texts, settings.seed, item.id) for item in found.items]
    drawn = settings.out / "drawn"

    def draw(rows: Sequence[int]) -> list[str]:
        images = generator.images(
            [asked[i] for i in rows],
            documents=settings.documents,
            candidates=settings.candidates,
            seed=settings.seed,
        )
        for i, image in zip(rows, images):
            write_bytes(drawn / f"{i:06}.png", to_png(np.asarray(image)))
        return [f"{i:06}.png" for i in rows]

    drawn.mkdir(parents=True, exist_ok=True)
    names, refused = _ask_all(settings.out / "drawing", found, draw)
    paths = [drawn / name for name in names if name]
    prompts = [prompt for name, prompt in zip(names, asked) if name]
    own = [found.folder / item.picture for item in found.items]
    scores: dict[str, Any] = {}
    measure: dict[str, Any] = {}
    if encoders is not None:
        scores, measure = text_scores(encoders, paths, prompts, found.size, settings.out)
    if settings.network is not None:
        reference = own if settings.reference is None else settings.reference
        more, how = feature_scores(settings.network, paths, reference, found.size, settings.out)
        scores, measure = more | scores, measure | how
    if not processes.is_first():
        return None
    shown = range(min(SHOWN, len(paths)))
    pictures = read_pictures([paths[i] for i in shown], found.size)
    scores |= {"count": len(paths), "refused": len(refused)}
    cards: list[Card] = [([pictures[i]], prompts[i]) for i in shown]
    return Result(scores, protocol | {"measure": measure}, found.bad + refused, cards)


def captions(generator: Generator, settings: Settings) -> Result | None:
    """Writes a caption of each picture: CIDEr, BLEU and ROUGE-L against all that it has."""
    found = _draw(generator, settings, "captions")
    protocol = _protocol("captions", generator, settings, found, style=settings.style)

    def write(rows: Sequence[int]) -> list[str]:
        return _as_list(
            generator.caption(
                list(found.pictures(rows)),
                style=settings.style,
                documents=settings.documents,
                seed=settings.seed,
            )
        )

    said, refused = _ask_all(settings.out / "captions", found, write)
    if not processes.is_first():
        return None
    scores = caption_scores(said, [item.texts for item in found.items])
    scores |= _counts(said, refused)
    protocol |= {"measure": {"tokenizer": TOKENIZER}}
    texts = [f"{text} — {item.texts[0]}" for text, item in zip(said, found.items)]
    return Result(scores, protocol, found.bad + refused, _cards(found, texts))


def vqa(generator: Generator, settings: Settings) -> Result | None:
    """Answers each question: VQA accuracy where there are answers of several people, equality where
    there is one, and of questions with choices the share of right ones."""
    documents = settings.documents or 0  # as `Generator.answer` has it
    settings = replace(settings, documents=documents)
    found = _draw(generator, settings, "questions")
    protocol = _protocol("vqa", generator, settings, found, explain=settings.explain)
    items = found.items

    def write(rows: Sequence[int]) -> list[str]:
        asked = [items[i].question for i in rows]
        pictures = list(found.pictures(rows))
        return _as_list(
            generator.answer(
                pictures,
                asked,
                explain=settings.explain,
                documents=documents,
                seed=settings.seed,
            )
        )

    said, refused = _ask_all(settings.out / "answers", found, write)
    if not processes.is_first():
        return None
    kinds: dict[str, list[float]] = {}
    for text, item in zip(said, items):
        answer = text.rpartition(scene_tasks.REASON)[2].strip(" .") if settings.explain else text
        if item.choices:
            chosen = read_choice(answer, item.choices)
            is_right = chosen is not None and item.choices[chosen] == item.answers[0]
            kinds.setdefault("choice_accuracy", []).append(float(is_right))
            kinds.setdefault("choice_named", []).append(float(chosen is not None))
        elif len(item.answers) > 1:
            kinds.setdefault("vqa_accuracy", []).append(vqa_accuracy(answer, item.answers))
        else:
            kinds.setdefault("exact_accuracy", []).append(exact_accuracy(answer, item.answers))
    scores: dict[str, Any] = {name: float(np.mean(values)) for name, values in kinds.items()}
    scores |= {f"{name}_count": len(values) for name, values in kinds.items()} | _counts(
        said, refused
    )
    protocol |= {"measure": {"answers": "official normalisation"}}
    rows = zip(said, items)
    texts = [f"{item.question} {text} — {item.answers[0]}" for text, item in rows]
    return Result(scores, protocol, found.bad + refused, _cards(found, texts))


def scenes(generator: Generator, settings: Settings) -> Result | None:
    """Every task that held-out scenes give exact answers for (`evaluation.scene_tasks`), those of
    the bundle's own data. A task is a part; one that the model cannot be asked has no score."""
    c = generator.experiment
    source = c.data.source
    require(source == "scenes", "data.source", source, "use a bundle trained on scenes")
    names = scene_tasks.of_templates(("plain", *c.data.tasks))
    protocol = {
        "suite": "scenes",
        "dataset": f"{source}, seed {c.data.seed}",
        "split": "held_out",
        "held_out": c.data.held_out,
        "seed": settings.seed,
        "size": c.image_tokenizer.size,
        "documents": settings.documents,  # None: each task's own
        "decode": _decode(generator, settings),
    }
    _check(settings, protocol)
    tasks = settings.out / "tasks"
    parts = in_parts(
        tasks, len(names), lambda rows: [_task(generator, names[rows[0]], settings)], size=1
    )
    if not processes.is_first():
        return None
    found = dict(zip(names, read_lists(parts)))
    refused = [f"{name}: {one['refused']}" for name, one in found.items() if one["refused"]]
    if len(refused) == len(names):
        raise ValueError(f"all {len(names)} tasks were refused; the first one, {refused[0]}")
    scores = {name: one["score"] for name, one in found.items()}
    protocol["tasks"] = {name: score["count"] for name, score in scores.items()}
    cards: list[Card] = [
        ([np.array(picture, np.uint8) for picture in pictures], text)
        for one in found.values()
        for pictures, text in one["cards"]
    ]
    return Result(scores, protocol, refused, cards)


def _task(generator: Generator, name: str, settings: Settings) -> dict[str, Any]:
    """What is kept of a task as JSON: its score, its first cards, and why it was refused or ""."""
    data, count = generator.experiment.data, settings.count
    how = data, count, settings.seed, settings.documents
    try:
        found = scene_tasks.evaluate_task(generator, name, *how)
    except ValueError as error:
        asked = len(scene_tasks.requests(generator, name, data, count))
        return {"score": {"count": asked, "refused": asked}, "cards": [], "refused": str(error)}
    shown = found.cards()[: SHOWN // 4]
    cards = [([picture.tolist() for picture in pictures], text) for pictures, text in shown]
    return {"score": found.score(), "cards": cards, "refused": ""}


SUITES: dict[str, Suite] = {
    "coco_fid": coco_fid,
    "captions": captions,
    "vqa": vqa,
    "scenes": scenes,
}


def _draw(generator: Generator, settings: Settings, kind: inputs.Kind) -> Inputs:
    size, limit = generator.experiment.image_tokenizer.size, settings.data.max_bad_fraction
    source = inputs.from_records(settings.data, size, settings.split, kind)
    return draw_inputs(settings.out, source, settings.count, settings.seed, size, limit)


def _ask_all(
    folder: Path, found: Inputs, ask: Callable[[Sequence[int]], list[str]]
) -> tuple[list[str], list[str]]:
    """What `ask` says to each item, in parts, and why it refused some, such as a text too long for
    the context: there it says nothing, which scores 0. Raises ValueError where it refused all."""
    parts = in_parts(folder, len(found.items), lambda rows: _ask(rows, ask))
    pairs = list(zip(found.items, read_lists(parts)))
    refused = [f"{item.id}: {reason}" for item, (_, reason) in pairs if reason]
    if len(refused) == len(pairs):
        raise ValueError(f"all {len(pairs)} items were refused; the first one, {refused[0]}")
    return [text for _, (text, _) in pairs], refused


def _ask(rows: Sequence[int], ask: Callable[[Sequence[int]], list[str]]) -> list[tuple[str, str]]:
    """Pairs of what was said and why not; a refused batch is halved to find who is to blame."""
    try:
        return [(text, "") for text in ask(rows)]
    except ValueError as error:
        if len(rows) == 1:
            return [("", str(error))]
    half = len(rows) // 2
    return _ask(rows[:half], ask) + _ask(rows[half:], ask)


def _protocol(
    suite: str, generator: Generator, settings: Settings, found: Inputs, **asked: Any
) -> dict[str, Any]:
    """All but how it is measured."""
    data = f"{Path(settings.data.source).name} as {settings.data.task}"
    about = inputs.describe(found, data, settings.split, settings.seed)
    protocol = {"suite": suite} | about | {"decode": _decode(generator, settings)} | asked
    _check(settings, protocol)
    return protocol


def _check(settings: Settings, protocol: Mapping[str, Any]) -> None:
    if settings.check is not None:
        settings.check(protocol)


def _decode(generator: Generator, settings: Settings) -> dict[str, Any]:
    found = asdict(generator.experiment.decode)
    if settings.documents is not None:
        found["documents"] = settings.documents
    if generator.memory is None:
        found["documents"] = 0
    return found | {"candidates": settings.candidates or 1, "int8": generator.int8}


def _choose(texts: Sequence[str], seed: int, id: str) -> str:
    """One of the captions of a picture."""
    return texts[int.from_bytes(inputs.order(seed, id)[:4], "big") % len(texts)]


def _counts(said: Sequence[str], refused: Sequence[str]) -> dict[str, Any]:
    """Of all, those without a word, and those among them that the model could not be asked."""
    empty = sum(not text.strip() for text in said)
    return {"count": len(said), "empty": empty, "refused": len(refused)}


def _cards(found: Inputs, texts: Sequence[str]) -> list[Card]:
    shown = range(min(SHOWN, len(found.items)))
    return [([picture], texts[i]) for i, picture in zip(shown, found.pictures(shown))]


def _as_list(texts: str | list[str]) -> list[str]:
    assert isinstance(texts, list)  # a list was asked for
    return texts

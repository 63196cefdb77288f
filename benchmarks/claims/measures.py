"""What models are asked: each question has a dict of values, {"right", "count"} or {"value"}.

Of scenes a picture is right that shows everything asked for and nothing else. Pictures of other
sources have the Frechet distance to the real ones of the same captions, between features of
EfficientNet-Lite0 (`FD`): they are not Inception's, so it is no FID. The real ones are seen as the
image tokenizer decodes them: it is that of all models, and its blur is most of the distance to the
true pixels (`decoded`), of which still more blurred drawings would seem nearer.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.claims.crossing import relocate_example
from benchmarks.claims.parts import TAU, Setup
from cm3leon_jax import config, stages
from cm3leon_jax.data.collection import captioned, collect
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.decoding.memory import Retrieved
from cm3leon_jax.decoding.prompts import join
from cm3leon_jax.evaluation import fid, scene_tasks, scenes
from cm3leon_jax.interop.efficientnet import load_features
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.tokens.document import Document, Image, Text, spans
from cm3leon_jax.tokens.objective import rng_for
from cm3leon_jax.tokens.packing import Example, fill_row, stack
from cm3leon_jax.tokens.vocabulary import Vocabulary
from cm3leon_jax.training.step import token_loss

Value = dict[str, float]
Pictures = NDArray[np.uint8]  # [B Y X 3]

FD, SHARE, NATS = "FD-EfficientNetLite0", "share right", "nats per token"
SIDE = 128  # pixels at which the network sees pictures; it was trained on 224
BATCH = 64
POOL = 32
SIZES = (1, 2, 4, 8, 16, 32)
CD_K = 1  # with 4 nothing is drawn right, where models are as sure as these (docs/decoding.md)
ASKED = 128  # requests of each task


def pictures(generator: Generator, setup: Setup, run: Path, **how: Any) -> dict[str, Value]:
    """One for each held-out caption, with options of `Generator.images`."""
    prompts, _ = held_out(setup.experiment, setup.count)
    drawn = to_pixels(generator.images(prompts, **how))
    return {"": score(generator, drawn, setup.experiment)}


def pools(generator: Generator, setup: Setup, run: Path) -> dict[str, Value]:
    """Of pools of 1 to 32 candidates the one that CLIP chooses: "top-p 8", "CD-K 8", "half 8".

    Smaller pools are parts of the one of 32, and half and half is half of one and half of the
    other.
    """
    prompts, _ = held_out(setup.experiment, setup.pooled)
    guided = TAU | {"guidance": setup.experiment.decode.guidance}
    ways = {
        "top-p": candidates(generator, prompts, guided),
        "CD-K": candidates(generator, prompts, {"temperature": 1.0, "contrastive": CD_K}),
    }
    found: dict[str, Value] = {}
    for size in SIZES:
        halves = [(drawn[:, : size // 2], ranks[:, : size // 2]) for drawn, ranks in ways.values()]
        mixed = [np.concatenate(parts, axis=1) for parts in zip(*halves)]
        for way, (drawn, ranks) in (ways | {"half": tuple(mixed)}).items():
            if way == "half" and size < 2:
                continue
            best = ranks[:, :size].argmax(1)
            chosen = drawn[np.arange(len(prompts)), best]
            found[f"{way} {size}"] = score(generator, chosen, setup.experiment)
    return found


def candidates(
    generator: Generator, prompts: list[str], how: dict[str, Any]
) -> tuple[Pictures, NDArray[np.float64]]:
    """32 pictures for each of P prompts [P 32 Y X 3] and their CLIP scores [P 32], in no order."""
    pairs = generator.images(prompts, POOL, candidates=POOL, return_scores=True, **how)
    drawn = to_pixels([picture for picture, _ in pairs])
    drawn = drawn.reshape(len(prompts), POOL, *drawn.shape[1:])
    ranks = np.array([rank for _, rank in pairs]).reshape(len(prompts), POOL)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(POOL), (len(prompts), 1)), axis=1)
    rows = np.arange(len(prompts))[:, None]
    return drawn[rows, order], ranks[rows, order]  # they came best first


def captions(generator: Generator, setup: Setup, run: Path) -> dict[str, Value]:
    """Held-out pictures whose caption says what is there; of other sources, word for word."""
    wanted, real = held_out(setup.experiment, setup.count)
    told = generator.caption(list(real), documents=0)
    if setup.experiment.data.source == "scenes":
        truth = scenes.read_captions(wanted)
        right = scenes.compare(scenes.read_captions(list(told)), truth)["exact"] == 1
    else:
        right = np.array([a == b for a, b in zip(told, wanted)])
    return {"": share(right)}


def tasks(generator: Generator, setup: Setup, run: Path) -> dict[str, Value]:
    """All tasks of scenes, by name."""
    data = setup.experiment.data
    names = scene_tasks.of_templates(("plain", *data.tasks))
    found = {n: scene_tasks.evaluate_task(generator, n, data, ASKED, 0, 0) for n in names}
    return {name: share(result.right) for name, result in found.items()}


def decoded(generator: Generator, setup: Setup, run: Path) -> dict[str, Value]:
    """The held-out pictures from their own codes: no drawn picture can be better. Of other sources
    than scenes, their distance to the true pixels."""
    _, real = held_out(setup.experiment, setup.count)
    again = decode_again(generator, real)
    if setup.experiment.data.source == "scenes":
        return {"": score(generator, again, setup.experiment)}
    return {"": {"value": distance(again, real)}}


def loss(generator: Generator, setup: Setup, run: Path, documents: int = 0) -> dict[str, Value]:
    """Nats per token of held-out documents without spans, behind those that are found by their
    text: "loss", and of its parts "text" and "image". "caption" is that of the caption as a span
    behind its picture. What the text finds tells of the text, so behind it only "image" counts."""
    c, vocabulary = setup.experiment, Vocabulary.of(setup.experiment.model)
    source = stages.open_held_out(c, run)
    some = range(min(setup.count, len(source)))
    mains = [source.document(i, rng_for(0, 0, i)).segments for i in some]
    texts = [next(s.ids for s in main if isinstance(s, Text)) for main in mains]
    found = generator.find([generator.text.decode(ids) for ids in texts], documents)
    behind = [_behind(generator, *pair) for pair in zip(mains, found)]
    plain = _mean_losses(generator, [_unmasked(d, vocabulary) for d in behind])
    masked = _mean_losses(generator, [_caption_last(d, vocabulary) for d in behind])
    nats = {"loss": plain["loss"], "text": plain["text_loss"], "image": plain["image_loss"]}
    return {name: {"value": x} for name, x in (nats | {"caption": masked["text_loss"]}).items()}


ASKS: dict[str, Callable[..., dict[str, Value]]] = {
    "pictures": pictures,
    "captions": captions,
    "decoded": decoded,
    "loss": loss,
    "pools": pools,
    "tasks": tasks,
}


def unit_of(ask: str, source: str) -> str:
    """What the values of an answer are: share right, the distance, or nats per token."""
    if ask == "loss":
        return NATS
    return FD if ask in ("pictures", "pools", "decoded") and source != "scenes" else SHARE


def score(generator: Generator, drawn: Pictures, c: config.Experiment) -> Value:
    """Of a picture [B Y X 3] for each of the first B held-out captions."""
    prompts, real = held_out(c, len(drawn))
    if c.data.source != "scenes":
        return {"value": distance(drawn, decode_again(generator, real))}
    wanted = [scene for text in prompts if (scene := scenes.parse_caption(text))]
    found = scenes.compare(scenes.read_images(drawn), scenes.read_scenes(wanted))
    return share(found["exact"] == 1)


def distance(pictures: Pictures, others: Pictures) -> float:
    """`FD` between two sets of pictures."""
    one, other = (fid.Statistics.of(pool_features(each)) for each in (pictures, others))
    return fid.frechet_distance(one, other)


def decode_again(generator: Generator, real: Pictures) -> Pictures:
    """Pictures from their own codes."""
    tokenizer = generator.image_tokenizer
    return decode_codes(tokenizer, encode_pictures(tokenizer, real))


def share(right: NDArray[np.bool_]) -> Value:
    return {"right": int(right.sum()), "count": len(right)}


@lru_cache
def held_out(c: config.Experiment, count: int) -> tuple[list[str], Pictures]:
    """The first held-out captions and their pictures; twice as many are read as hold them."""
    enough = round(2 * count / c.data.held_out)
    data = config.replace(c, {"data.tasks": (), "data.sample": enough}).data
    prompts, real = captioned(collect(data, c.image_tokenizer.size).held_out)
    return prompts[:count], real[:count]


@lru_cache
def _network() -> Callable[[Pictures], jax.Array]:
    maps = load_features()

    @jax.jit
    def pooled(images: jax.Array) -> jax.Array:
        form = (len(images), SIDE, SIDE, 3)
        pixels = jax.image.resize(images.astype(jnp.float32), form, "bilinear")
        return maps(pixels / 127.5 - 1)[-1].mean((1, 2))

    return pooled


def pool_features(images: Pictures) -> NDArray[np.float32]:
    """The last map of EfficientNet-Lite0, averaged: uint8 [B Y X 3] -> [B 320]."""
    padded = np.concatenate([images, images[: -len(images) % BATCH]])
    padded = np.resize(padded, (-(-len(images) // BATCH) * BATCH, *images.shape[1:]))
    parts = [_network()(padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)]
    return np.concatenate(parts)[: len(images)]


def _behind(generator: Generator, main: Sequence[Text | Image], found: Retrieved) -> Document:
    ids = lambda retrieved: [join(Document(main, retrieved).to_ids(generator.vocabulary))]  # noqa: E731
    return Document(main, generator.fit(found, ids, 2))  # <mask:0> and <eoss> may be added


def _unmasked(document: Document, vocabulary: Vocabulary) -> Example:
    example = relocate_example(document.to_ids(vocabulary), [], vocabulary)
    example.weights[: document.main_start] = 0
    return example


def _caption_last(document: Document, vocabulary: Vocabulary) -> Example:
    """The document's first text behind the rest of it, and only it is counted."""
    ids = document.to_ids(vocabulary)
    main = [span for span in spans(ids, vocabulary) if span.start >= document.main_start]
    text = next(span for span in main if span.kind == "text")
    end = text.start + text.length
    example = relocate_example(ids, [(text.start, end)], vocabulary)
    example.weights[: -(text.length + 1)] = 0  # in front of the text and its <eoss>
    return example


def _mean_losses(generator: Generator, examples: Sequence[Example]) -> dict[str, float]:
    c = generator.experiment
    rows = [fill_row([example], c.model.context) for example in examples]
    rows += [fill_row([], c.model.context)] * (-len(rows) % BATCH)
    batches = (stack(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH))
    parts = [_losses(c, generator.transformer, batch) for batch in batches]
    sums = jax.tree.map(lambda *x: sum(x), *parts)
    return {name: float(value) for name, value in sums.means().items()}


_losses = jax.jit(token_loss, static_argnums=0)


def to_pixels(drawn: Any) -> Pictures:
    """Pillow images as [B Y X 3]."""
    return np.stack([np.asarray(image) for image in drawn])

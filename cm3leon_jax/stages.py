"""The stages of an experiment, each one command, all in one work directory.

    text.model          text tokenizer
    image_tokenizer/    checkpoints, logs and the finished network of the image tokenizer
    documents/          token documents: train and held_out, skipped.txt
    transformer/        checkpoints and logs of the transformer
    bundle/             what `load` opens

Every stage leaves its result under its final name only when it is complete, finds the results of
the stages before it there, and resumes its own training from the newest checkpoint.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data.loader import image_batches, token_batches
from cm3leon_jax.data.pictures import grid
from cm3leon_jax.data.prepare import Collection, keep_fitting, tokenize
from cm3leon_jax.data.shards import Shards, TokenDocument, write_shards
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation.run import psnr
from cm3leon_jax.fields import to_flat
from cm3leon_jax.interop.efficientnet import load_features
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary
from cm3leon_jax.training import image_tokenizer as tokenizer_training
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import eval_step, init_state, train_step

SHOWN = 16  # held-out documents in the sample grids of a run


# What each result was made from; a name that ends in a dot stands for all fields below it.
DATA = ("data.source", "data.count", "data.seed", "data.held_out")
TRAIN = ("train.steps", "train.batch", "train.seed")
MADE_FROM = {
    "text.model": (*DATA, "model.text_pieces"),
    "image_tokenizer": (*DATA, "image_tokenizer."),
    "documents": (*DATA, "data.row_length", "image_tokenizer.", "model.specials"),
    "transformer": ("model.", "objective.", "optimizer.", *TRAIN),
}


def open_workdir(experiment: config.Experiment, workdir: Path) -> None:
    """Writes the config into the work directory.

    Raises ValueError where a result that is already there was made with another value.
    """
    if (workdir / "config.json").exists():
        there, here = map(to_flat, (checkpoint.read_experiment(workdir), experiment))
        for result, fields in MADE_FROM.items():
            for name in there if (workdir / result).exists() else ():
                if name.startswith(fields) and there[name] != here[name]:
                    raise ValueError(
                        f"{workdir / result} was made with {name}={there[name]!r}, now it is"
                        f" {here[name]!r}; use another --workdir, or the old value"
                    )
    checkpoint.write_experiment(workdir, experiment)


def train_text_tokenizer(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> TextTokenizer:
    """Trains on the texts of the training examples; at most `model.text_pieces` pieces."""
    path = workdir / "text.model"
    if not path.exists():
        texts = (text for example in collection.train for text in example.texts)
        try:
            TextTokenizer.train(texts, path, pieces=experiment.model.text_pieces)
        except ValueError as error:
            raise ValueError(f"model.text_pieces: {error}") from error
    return TextTokenizer.load(path)


def train_image_tokenizer(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> VQGAN:
    """Trains the VQGAN; its sample grids show held-out pictures above their reconstructions.

    A perceptual weight takes its features from the installed EfficientNet package.
    """
    c, folder = experiment.image_tokenizer, workdir / "image_tokenizer"
    network = folder / "network"
    if not network.exists():
        train = np.stack([image for example in collection.train for image in example.images])
        shown = np.stack(
            [image for example in collection.held_out for image in example.images][:SHOWN]
        )

        def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
            again = decode_codes(state.model, encode_pictures(state.model, shown))
            both = [*shown, *again]
            return {"held_out_psnr": psnr(shown, again)}, {"reconstructions": grid(both, SHOWN)}

        mesh = make_mesh(experiment.mesh)
        init = partial(tokenizer_training.init_state, c)
        step = tokenizer_training.make_train_step(c, load_features() if c.perceptual else None)
        batches = image_batches(train, c.train.batch, c.train.seed)
        state = fit(step, init, batches, c.train, mesh, folder, "images", show)
        checkpoint.save_network(network, state.model)
    return load_image_tokenizer(experiment, workdir)


def load_text_tokenizer(workdir: Path) -> TextTokenizer:
    """The finished text tokenizer of a work directory."""
    _require_result(workdir, "text.model", "tokenizer text")
    return TextTokenizer.load(workdir / "text.model")


def load_image_tokenizer(experiment: config.Experiment, workdir: Path) -> VQGAN:
    """The finished image tokenizer of a work directory."""
    _require_result(workdir, "image_tokenizer/network", "tokenizer image")
    build = lambda key: VQGAN(experiment.image_tokenizer, rngs=nnx.Rngs(key))  # noqa: E731
    form = jax.eval_shape(build, jax.random.key(0))
    at = shardings(form, make_mesh(experiment.mesh))
    return checkpoint.load_network(workdir / "image_tokenizer" / "network", form, at)


def prepare_documents(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> tuple[Shards, Shards]:
    """Writes token documents; returns those to train on and those held out."""
    c, folder = experiment, workdir / "documents"
    finished = folder / "skipped.txt"  # written last
    if not finished.exists():
        text = load_text_tokenizer(workdir)
        tokenizer = load_image_tokenizer(c, workdir)
        skipped = collection.skipped
        train, held_out = (
            keep_fitting(side, text, c, skipped) for side in (collection.train, collection.held_out)
        )
        skipped.check(c.data.max_bad_fraction)
        encode = partial(encode_pictures, tokenizer)
        for name, examples in (("train", train), ("held_out", held_out)):
            documents = tokenize(examples, text, encode, c.model)
            write_shards(documents, folder, name)
        kept = [*train, *held_out]
        checkpoint.write_json(folder / "licenses.json", Counter(e.license for e in kept))
        skipped.write(finished)
    return Shards(folder, "train"), Shards(folder, "held_out")


def train_transformer(experiment: config.Experiment, workdir: Path) -> Path:
    """Trains on the prepared documents and writes the bundle; returns its folder.

    Its sample grids show the pictures of held-out documents, as the image tokenizer decodes them,
    above what the model draws for their texts.
    """
    c, bundle = experiment, workdir / "bundle"
    if bundle.exists():
        return bundle
    _require_result(workdir, "documents/skipped.txt", "prepare")
    train, held_out = (Shards(workdir / "documents", name) for name in ("train", "held_out"))
    tokenizer = load_image_tokenizer(c, workdir)
    text = load_text_tokenizer(workdir)
    mesh = make_mesh(c.mesh)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    schedule = make_schedule(c.optimizer, c.train.steps)
    codebook = tokenizer.codebook if c.model.code_features else None
    init = lambda key: init_state(c, optimizer, key, codebook)  # noqa: E731
    unknown = [held_out[i] for i in range(min(len(held_out), 256))]
    captions, codes = captioned(unknown, SHOWN, Vocabulary.of(c.model))
    prompts = [text.decode(caption.ids) for caption in captions]
    truths = [decode_codes(tokenizer, np.array([image.codes]))[0] for image in codes]
    evaluate = jax.jit(partial(eval_step, c))
    held_out_batch = next(iter(token_batches(unknown, c)))

    def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
        losses = jax.device_get(evaluate(state.model, held_out_batch))
        numbers = {f"held_out_{name}": float(value) for name, value in losses.items()}
        if not prompts:
            return numbers, {}
        drawn = Generator(c, text, state.model, tokenizer).images(prompts)
        picture = grid([*truths, *map(np.asarray, drawn)], len(prompts))
        return numbers, {"truth above samples": picture}

    batches = token_batches(train, c)
    step = partial(train_step, c, optimizer, schedule)
    state = fit(step, init, batches, c.train, mesh, workdir / "transformer", "tokens", show)
    write_bundle(c, workdir, state.model)
    return bundle


def write_bundle(experiment: config.Experiment, workdir: Path, transformer: Transformer) -> None:
    """Assembles the self-contained bundle under a temporary name, then renames it."""
    bundle, unfinished = workdir / "bundle", workdir / "bundle.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    source = experiment.data.source  # a bundle holds no paths of the machine that made it
    data = replace(experiment.data, source=Path(source).name, font="")
    experiment = replace(experiment, data=data)
    checkpoint.write_experiment(unfinished, experiment)
    shutil.copy(workdir / "text.model", unfinished / "text.model")
    shutil.copytree(workdir / "image_tokenizer" / "network", unfinished / "image_tokenizer")
    checkpoint.save_network(unfinished / "transformer", transformer)
    licenses = json.loads((workdir / "documents" / "licenses.json").read_text())
    (unfinished / "card.md").write_text(card(experiment, licenses))
    unfinished.rename(bundle)


def card(experiment: config.Experiment, licenses: Mapping[str, int]) -> str:
    """The model card: what it is, from what data under which licences, how to open it."""
    c = experiment
    places = c.train.steps * c.train.batch * c.data.row_length
    counts = "\n".join(f"| {name or 'not stated'} | {n:,} |" for name, n in licenses.items())
    return f"""# A CM3Leon model

{c.model.parameters:,} parameters, context {c.model.context} tokens, images of \
{c.image_tokenizer.size} x {c.image_tokenizer.size} pixels in {c.model.image_tokens} codes.
Trained with the CM3 objective for {c.train.steps:,} steps of {c.train.batch} rows \
({places:,} places) on `{c.data.source}`, {c.data.held_out:.0%} of the documents held out.

| licence of the documents | count |
|---|---:|
{counts}

```python
import cm3leon_jax as cm3

generator = cm3.load("bundle")
generator.images("...", n=4)
```

It knows what its training data showed and nothing else.
"""


def captioned(
    documents: Sequence[TokenDocument], count: int, vocabulary: Vocabulary
) -> tuple[list[Text], list[Image]]:
    """The first text and first image of the first `count` documents that have both."""
    texts: list[Text] = []
    images: list[Image] = []
    for document in documents:
        segments = Document.from_ids(document.ids, vocabulary).segments
        text = next((s for s in segments if isinstance(s, Text)), None)
        image = next((s for s in segments if isinstance(s, Image)), None)
        if text and image and len(texts) < count:
            texts.append(text)
            images.append(image)
    return texts, images


def _require_result(workdir: Path, name: str, verb: str) -> None:
    if not (workdir / name).exists():
        raise ValueError(f"{workdir / name} is missing; run: cm3leon {verb} --workdir {workdir}")

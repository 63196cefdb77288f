"""The stages of an experiment, each one command, all in one work directory.

    text.model          text tokenizer
    image_tokenizer/    checkpoints, logs and the finished network of the image tokenizer
    documents/          token documents: train and held_out, skipped.txt
    transformer/        checkpoints and logs of the transformer
    bundle/             what `load` opens

Every stage leaves its result under its final name only when it is complete, finds the results of
the stages before it there, and resumes its own training from the newest checkpoint.
"""

import shutil
from collections.abc import Mapping, Sequence
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
from cm3leon_jax.data.prepare import Collection, tokenize
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
from cm3leon_jax.training.step import eval_step, init_sharded, init_state, train_step

SHOWN = 16  # held-out documents in the sample grids of a run


def open_workdir(experiment: config.Experiment, workdir: Path) -> None:
    """Writes the config into a new work directory, or checks that it is the one there."""
    if not (workdir / "config.json").exists():
        checkpoint.write_experiment(workdir, experiment)
        return
    there, here = map(to_flat, (checkpoint.read_experiment(workdir), experiment))
    for name, value in here.items():
        if there[name] != value:
            raise ValueError(
                f"{workdir} was made with {name}={there[name]!r}, now it is {value!r};"
                " use another --workdir, or the old value"
            )


def train_text_tokenizer(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> TextTokenizer:
    """Trains on the texts of the training examples; at most `model.text_pieces` pieces."""
    path = workdir / "text.model"
    if not path.exists():
        texts = (text for example in collection.train for text in example.texts)
        TextTokenizer.train(texts, path, pieces=experiment.model.text_pieces)
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
        state = init_sharded(
            partial(tokenizer_training.init_state, c), jax.random.key(c.train.seed), mesh
        )
        step = tokenizer_training.make_train_step(c, load_features() if c.perceptual else None)
        batches = image_batches(train, c.train.batch, c.train.seed)
        state = fit(step, state, batches, c.train, mesh, folder, "images", show)
        checkpoint.save_network(network, state.model)
    return load_image_tokenizer(experiment, workdir)


def load_image_tokenizer(experiment: config.Experiment, workdir: Path) -> VQGAN:
    """The finished image tokenizer of a work directory."""
    build = lambda key: VQGAN(experiment.image_tokenizer, rngs=nnx.Rngs(key))  # noqa: E731
    form = jax.eval_shape(build, jax.random.key(0))
    at = shardings(form, make_mesh(experiment.mesh))
    return checkpoint.load_network(workdir / "image_tokenizer" / "network", form, at)


def prepare_documents(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> tuple[Shards, Shards]:
    """Writes token documents; returns those to train on and those held out."""
    folder = workdir / "documents"
    if not (folder / "held_out.index.json").exists():
        text = TextTokenizer.load(workdir / "text.model")
        tokenizer = load_image_tokenizer(experiment, workdir)
        sides = {"train": collection.train, "held_out": collection.held_out}
        for name, examples in sides.items():
            documents = tokenize(
                examples,
                text,
                partial(encode_pictures, tokenizer),
                vocabulary(experiment),
                experiment.model.image_tokens,
                experiment.data.row_length + 1,
                collection.skipped,
            )
            write_shards(documents, folder, name)
        collection.skipped.check(experiment.data.max_bad_fraction)
        collection.skipped.write(folder / "skipped.txt")
    return Shards(folder, "train"), Shards(folder, "held_out")


def train_transformer(experiment: config.Experiment, workdir: Path) -> Path:
    """Trains on the prepared documents and writes the bundle; returns its folder.

    Its sample grids show the pictures of held-out documents, as the image tokenizer decodes them,
    above what the model draws for their texts.
    """
    c, bundle = experiment, workdir / "bundle"
    if bundle.exists():
        return bundle
    train, held_out = (Shards(workdir / "documents", name) for name in ("train", "held_out"))
    tokenizer = load_image_tokenizer(c, workdir)
    text = TextTokenizer.load(workdir / "text.model")
    mesh = make_mesh(c.mesh)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    schedule = make_schedule(c.optimizer, c.train.steps)
    codebook = tokenizer.codebook if c.model.code_features else None
    init = lambda key: init_state(c, optimizer, key, codebook)  # noqa: E731
    state = init_sharded(init, jax.random.key(c.train.seed), mesh)
    unknown = [held_out[i] for i in range(min(len(held_out), 256))]
    captions, codes = captioned(unknown, SHOWN, vocabulary(c))
    prompts = [text.decode(caption.ids) for caption in captions]
    truths = [decode_codes(tokenizer, np.array([image.codes]))[0] for image in codes]
    evaluate = jax.jit(partial(eval_step, c))
    held_out_batch = next(
        iter(token_batches(unknown, vocabulary(c), c.objective, c.train, c.data.row_length))
    )

    def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
        losses = jax.device_get(evaluate(state.model, held_out_batch))
        numbers = {f"held_out_{name}": float(value) for name, value in losses.items()}
        if not prompts:
            return numbers, {}
        drawn = Generator(c, text, state.model, tokenizer).images(prompts)
        picture = grid([*truths, *map(np.asarray, drawn)], len(prompts))
        return numbers, {"truth above samples": picture}

    batches = token_batches(train, vocabulary(c), c.objective, c.train, c.data.row_length)
    step = partial(train_step, c, optimizer, schedule)
    state = fit(step, state, batches, c.train, mesh, workdir / "transformer", "tokens", show)
    write_bundle(c, workdir, state.model)
    return bundle


def write_bundle(experiment: config.Experiment, workdir: Path, transformer: Transformer) -> None:
    """Assembles the self-contained bundle under a temporary name, then renames it."""
    bundle, partial_bundle = workdir / "bundle", workdir / "bundle.part"
    shutil.rmtree(partial_bundle, ignore_errors=True)
    checkpoint.write_experiment(partial_bundle, experiment)
    shutil.copy(workdir / "text.model", partial_bundle / "text.model")
    tokenizer = workdir / "image_tokenizer" / "network"
    shutil.copytree(tokenizer, partial_bundle / "image_tokenizer")
    checkpoint.save_network(partial_bundle / "transformer", transformer)
    (partial_bundle / "card.md").write_text(card(experiment))
    partial_bundle.rename(bundle)


def card(experiment: config.Experiment) -> str:
    """The model card: what it is, from what data, how to open it."""
    c = experiment
    tokens = c.train.steps * c.train.batch * c.data.row_length
    return f"""# A CM3Leon model

{c.model.parameters:,} parameters, context {c.model.context} tokens, images of \
{c.image_tokenizer.size} x {c.image_tokenizer.size} pixels in {c.model.image_tokens} codes.
Trained with the CM3 objective for {c.train.steps:,} steps (at most {tokens:,} tokens) on \
`{c.data.source}`, {c.data.held_out:.0%} of the documents held out.

```python
import cm3leon_jax as cm3

generator = cm3.load("bundle")
generator.images("...", n=4)
```

It knows what its training data showed and nothing else. Check the data's licence before sharing.
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


def vocabulary(experiment: config.Experiment) -> Vocabulary:
    model = experiment.model
    return Vocabulary(model.specials, model.sentinels, model.text_pieces, model.image_codes)

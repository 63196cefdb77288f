"""The stages that train a network on pictures in memory: image tokenizer, retriever, upscaler.

As in `stages`: each leaves `network` in its folder of the work directory when it is complete, does
nothing where that is there, and resumes from its newest checkpoint.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import checkpoint, config
from cm3leon_jax.bundle import add_upscaler
from cm3leon_jax.data.collection import Collection, captioned, collect
from cm3leon_jax.data.crops import crop_batches
from cm3leon_jax.data.degradation import shrink
from cm3leon_jax.data.loader import image_batches, pair_batches
from cm3leon_jax.data.networks import open_text, save_upscaler
from cm3leon_jax.data.pictures import grid
from cm3leon_jax.data.sources import tasks_with_records
from cm3leon_jax.evaluation.retrieval import recall
from cm3leon_jax.evaluation.run import psnr
from cm3leon_jax.fields import require
from cm3leon_jax.interop.efficientnet import load_features
from cm3leon_jax.models.clip import embed_pictures, embed_texts, text_batch
from cm3leon_jax.models.image_codes import decode_codes, encode_pictures
from cm3leon_jax.models.upscaler import upscale
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.training import image_tokenizer as tokenizer_training
from cm3leon_jax.training import retriever as retriever_training
from cm3leon_jax.training import upscaler as upscaler_training
from cm3leon_jax.training.batches import host_rows
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.samples import for_samples

SHOWN = 16  # held-out pictures in the sample grids of a run
CANDIDATES = 200  # held-out pairs among which the retriever's recall is measured


def train_image_tokenizer(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> None:
    """Trains the VQGAN; its sample grids show held-out pictures above their reconstructions.

    A perceptual weight takes its features from the installed EfficientNet package.
    """
    c, folder = experiment.image_tokenizer, workdir / "image_tokenizer"
    network = folder / "network"
    if not network.exists():
        seen = [collection.train]
        seen += [collection.tasks[task] for task in tasks_with_records(experiment.data)]
        train = [np.stack([image for e in examples for image in e.images]) for examples in seen]
        shown = np.stack(
            [image for example in collection.held_out for image in example.images][:SHOWN]
        )

        def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
            with for_samples(state.model) as model:
                if model is None:
                    return {}, {}
                again = decode_codes(model, encode_pictures(model, shown))
            both = [*shown, *again]
            return {"held_out_psnr": psnr(shown, again)}, {"reconstructions": grid(both, SHOWN)}

        mesh = make_mesh(experiment.mesh)
        init = partial(tokenizer_training.init_state, c)
        step = tokenizer_training.make_train_step(c, load_features() if c.perceptual else None)
        rows = host_rows(mesh, c.train.batch)
        batches = image_batches(train, c.train.batch, c.train.seed, rows)
        state = fit(step, init, batches, c.train, mesh, folder, "images", show)
        checkpoint.save_network(network, state.model)


def train_retriever(experiment: config.Experiment, collection: Collection, workdir: Path) -> None:
    """Trains the two-tower encoder on the captioned pictures; logs its held-out recall."""
    c, folder = experiment.retriever, workdir / "retriever"
    if (folder / "network").exists():
        return
    text, pieces = open_text(workdir), experiment.model.text_pieces
    captions, images = captioned(collection.train)
    texts = text_batch([text.encode(caption) for caption in captions], c, pieces)
    known, shown = captioned(collection.held_out)
    queries = [text.encode(caption) for caption in known[:CANDIDATES]]

    def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
        with for_samples(state.model) as model:
            if model is None:
                return {}, {}
            found = embed_pictures(model, shown[:CANDIDATES]), embed_texts(model, queries)
            return recall(*found), {}

    mesh = make_mesh(experiment.mesh)
    rows = host_rows(mesh, c.train.batch)
    batches = pair_batches(images, texts, c.train.batch, c.train.seed, rows)
    init = partial(retriever_training.init_state, c, pieces)
    step = retriever_training.make_train_step(c)
    state = fit(step, init, batches, c.train, mesh, folder, "pairs", show)
    checkpoint.save_network(folder / "network", state.model)


def train_upscaler(experiment: config.Experiment, collection: Collection, workdir: Path) -> None:
    """Trains the super-resolution network, and gives it to the bundle where there is one.

    Its sample grids show held-out pictures above what is made of them once they are small. A
    perceptual weight takes its features from the installed EfficientNet package.
    """
    c, folder = experiment.upscaler, workdir / "upscaler"
    if not (folder / "network").exists():
        train, held_out = ([i for e in side for i in e.images] for side in collection[:2])
        large = np.stack(held_out[:SHOWN])
        small = [shrink(picture, c.scale) for picture in large]

        def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
            with for_samples(state.model) as model:
                if model is None:
                    return {}, {}
                again = np.stack([upscale(model, picture) for picture in small])
            pictures = {"truth above enlarged": grid([*large, *again], SHOWN)}
            return {"held_out_psnr": psnr(large, again)}, pictures

        mesh = make_mesh(experiment.mesh)
        init = partial(upscaler_training.init_state, c)
        step = upscaler_training.make_train_step(c, load_features() if c.perceptual else None)
        batches = crop_batches(train, c, host_rows(mesh, c.train.batch))
        state = fit(step, init, batches, c.train, mesh, folder, "images", show)
        save_upscaler(folder, state.model)
    if (workdir / "bundle").exists():
        add_upscaler(workdir, workdir / "bundle")


def collect_large(experiment: config.Experiment) -> Collection:
    """What the upscaler learns from: `upscaler.sample` pictures of the size of its results."""
    c, source = experiment.upscaler, experiment.data.source
    rule = "scenes are drawn in one size; train the upscaler on emoji or a folder, and copy it"
    require(source != "scenes", "data.source", source, rule)
    data = replace(experiment.data, sample=c.sample, tasks=())
    return collect(data, c.scale * experiment.image_tokenizer.size)

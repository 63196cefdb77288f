"""The stages of an experiment, each one command, all in one work directory.

    text.model          text tokenizer
    image_tokenizer/    checkpoints, logs and the finished network of the image tokenizer
    retriever/          the same of the retriever
    upscaler/           the same of the upscaler, for who wants larger pictures
    documents/          coded records and vectors: train and held_out, skipped.txt
    neighbours/         which documents of train belong in front of each
    transformer/        checkpoints and logs of the transformer
    bundle/             what `load` opens

Every stage leaves its result under its final name only when it is complete, finds the results of
the stages before it there, and resumes its own training from the newest checkpoint. Of several
processes all run a stage together, on one file system; samples are drawn by the first one alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import checkpoint, config, processes
from cm3leon_jax.bundle import write_bundle
from cm3leon_jax.data.collection import Collection, written
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.data.loader import fixed_batch, token_batches
from cm3leon_jax.data.networks import open_image_tokenizer, open_text, require_result
from cm3leon_jax.data.pictures import grid
from cm3leon_jax.data.prepare import prepare
from cm3leon_jax.data.sources import for_task, tasks_with_records, told_of
from cm3leon_jax.data.tasks import resolve
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.evaluation.documents import page
from cm3leon_jax.evaluation.gain import Gain, retrieval_gain
from cm3leon_jax.evaluation.rows import Watched
from cm3leon_jax.fields import require, to_flat
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.models.image_codes import decode_codes
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.presets import SHARES
from cm3leon_jax.retrieval.index import Search, build_faiss, choose_kind
from cm3leon_jax.retrieval.join import explain, join, summarize
from cm3leon_jax.retrieval.memory import Documents, Memory
from cm3leon_jax.retrieval.mesh_search import MeshSearch
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.start import adopt, open_start
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.objective import rng_for
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.training.batches import host_rows
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.samples import for_samples, own_mesh
from cm3leon_jax.training.step import eval_step, init_state, start_state, train_step

SHOWN = 16  # held-out documents in the sample grids of a run
GAINED = 64  # held-out documents whose loss is compared with and without the retrieved ones

# What each result was made from; a name that ends in a dot stands for all fields below it.
DATA = ("data.source", "data.fields", "data.allow_licenses", "data.count", "data.seed")
SAMPLE = (*DATA, "data.sample", "data.held_out")
TRAIN = ("train.steps", "train.batch", "train.seed", "train.start_from")
# What only says how a training is watched and kept.
WATCHED = (
    *(".train.log_every", ".train.sample_every", ".train.save_every"),
    *(".train.keep", ".train.hang_seconds"),
)
MADE_FROM = {
    "text.model": (*SAMPLE, "data.tasks", "model.text_pieces"),
    "image_tokenizer": (*SAMPLE, "data.tasks", "image_tokenizer."),
    "retriever": (*SAMPLE, "retriever.", "model.text_pieces"),
    "upscaler": (*DATA, "data.held_out", "upscaler.", "image_tokenizer.size"),
    "documents": (
        *(*DATA, "data.task", "data.held_out", "data.part", "data.row_length"),
        *("image_tokenizer.", "model.specials", "retriever.", "retrieval.query_dropout"),
    ),
    "neighbours": (
        *("retrieval.by_text", "retrieval.by_image", "retrieval.candidates"),
        *("retrieval.max_score", "retrieval.max_similarity"),
    ),
    "transformer": ("model.", "objective.", "optimizer.", "retrieval.", "data.mixture", *TRAIN),
}


def open_workdir(experiment: config.Experiment, workdir: Path) -> None:
    """Writes the config into the work directory, and what it takes from `train.start_from`.

    Raises ValueError where a result that is already there was made with another value.
    """
    if (workdir / "config.json").exists():
        there, here = map(to_flat, (checkpoint.read_experiment(workdir), experiment))
        for result, fields in MADE_FROM.items():
            for name in there if (workdir / result).exists() else ():
                is_fixed = name.startswith(fields) and not name.endswith(WATCHED)
                if is_fixed and there[name] != here[name]:
                    raise ValueError(
                        f"{workdir / result} was made with {name}={there[name]!r}, now it is"
                        f" {here[name]!r}; use another --workdir, or the old value"
                    )
    processes.wait_for_all("config is read")
    if processes.is_first():
        checkpoint.write_experiment(workdir, experiment)
        adopt(experiment, workdir)
    processes.wait_for_all("config is written")


def train_text_tokenizer(
    experiment: config.Experiment, collection: Collection, workdir: Path
) -> None:
    """Trains on the texts of the training examples, and on those that `data.tasks` make of theirs;
    at most `model.text_pieces` pieces."""
    path = workdir / "text.model"
    if not path.exists() and processes.is_first():
        plain = (text for example in collection.train for text in example.texts)
        told = (text for task, few in collection.tasks.items() for text in written(task, few))
        texts = chain(plain, told)
        try:
            TextTokenizer.train(texts, path, pieces=experiment.model.text_pieces)
        except ValueError as error:
            raise ValueError(f"model.text_pieces: {error}") from error


def retrieve(experiment: config.Experiment, workdir: Path) -> dict[str, Mapping[str, float]]:
    """Finds the neighbours of every document among those to train on: `neighbours/`.

    Returns, for each side, how many neighbours documents have, and how often which rule refused a
    candidate of theirs.
    """
    require_result(workdir, "documents/skipped.txt")
    rules, folder = experiment.retrieval, workdir / "documents"
    if not rules.most:
        raise ValueError("retrieval.most=0: this experiment has no retrieval; give it documents")
    vectors = Mapped(folder, "train.vectors")
    memory = Memory(vectors, _make_search(rules, vectors, folder))
    summary: dict[str, Mapping[str, float]] = {}
    for side in ("train", "held_out"):
        queries, same = Mapped(folder, f"{side}.vectors"), side == "train"
        found = join(queries, memory, rules, workdir / "neighbours", side, same)
        summary[side] = summarize(found)
        summary[f"rules, {side}"] = explain(queries, memory, rules, same)
    return summary


def train_transformer(experiment: config.Experiment, workdir: Path) -> Path:
    """Trains on the prepared documents and writes the bundle; returns its folder.

    Its log has the losses of held-out documents, what their retrieved documents are worth to them,
    and grids of their pictures above what the model draws for their texts.
    """
    c, bundle = experiment, workdir / "bundle"
    if bundle.exists():
        return bundle
    form, rule = c.model.documents, "only 'cm3leon' is trained; start_from also takes 'chameleon'"
    require(form == "cm3leon", "model.documents", form, rule)
    require_result(workdir, "documents/skipped.txt")
    mesh, text = make_mesh(c.mesh), open_text(workdir)
    tokenizer = _open_tokenizer(c, workdir)
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    schedule = make_schedule(c.optimizer, c.train.steps)
    codebook = tokenizer.codebook if c.model.code_features else None
    init = lambda key: init_state(c, optimizer, key, codebook)  # noqa: E731
    begin = lambda: start_state(optimizer, open_start(c, workdir, mesh), mesh)  # noqa: E731

    held_out = open_held_out(c, workdir)
    held_out_batch = fixed_batch(held_out, c)
    documents = (held_out.document(i, rng_for(0, 0, i)) for i in range(len(held_out)))
    pairs = list(islice(filter(None, map(first_pair, documents)), SHOWN))
    prompts = [text.decode(caption.ids) for caption, _ in pairs]
    truths = [decode_codes(tokenizer, np.array([image.codes]))[0] for _, image in pairs]
    evaluate = jax.jit(partial(eval_step, c))

    def show(state: Any, step: int) -> tuple[Mapping[str, float], Mapping[str, NDArray]]:
        losses = jax.device_get(evaluate(state.model, held_out_batch))
        # A loss of 0 is one of places where the batch has no tokens.
        numbers = {f"held_out_{name}": float(value) for name, value in losses.items() if value}
        with for_samples(state.model) as model:
            if model is None:
                return numbers, {}
            if gain := measure_gain(c, workdir, model, GAINED):
                numbers["retrieval_gain"] = gain.gain
            if not prompts:
                return numbers, {}
            drawn = Generator(c, text, model, tokenizer).images(prompts)
            picture = grid([*truths, *map(np.asarray, drawn)], len(prompts))
            return numbers, {"truth above samples": picture}

    sources = resolve(c.data.mixture, workdir)
    batches = token_batches(sources, text, c, host_rows(mesh, c.train.batch))
    step = partial(train_step, c, optimizer, schedule)
    folder, given = workdir / "transformer", begin if c.train.start_from else None
    flops = c.model.train_flops(c.data.row_length)
    state = fit(step, init, batches, c.train, mesh, folder, "tokens", show, given, flops)
    write_bundle(c, workdir, state.model)
    return bundle


def prepare_tasks(experiment: config.Experiment, workdir: Path, run: Path) -> None:
    """Prepares those of `data.tasks` that have records of their own, with the tokenizers of a run,
    each in a folder of `workdir`."""
    for task in tasks_with_records(experiment.data):
        alone = for_one_task(experiment, task, run)
        open_workdir(alone, workdir / task)
        prepare(alone, workdir / task)


def mixture_of_tasks(data: config.Data, workdir: Path, run: Path) -> str:
    """The documents of a run as they are and told by each of `data.tasks`."""
    shares = SHARES.get(data.source, {})
    told = [(task, f"{workdir / of if of else run}:{task}") for task, of in told_of(data).items()]
    places = [("plain", str(run)), *told]
    return ",".join(f"{place}={shares.get(task, 1)}" for task, place in places)


def for_one_task(experiment: config.Experiment, task: str, run: Path) -> config.Experiment:
    """The preparation of one of `data.tasks`, with the tokenizers of a run and no retrieval."""
    alone = {
        "retrieval.least": 0,
        "retrieval.most": 0,
        "decode.documents": 0,
        "train.start_from": str(run),
    }
    return config.replace(replace(experiment, data=for_task(experiment.data, task)), alone)


def show_documents(experiment: config.Experiment, workdir: Path, rows: int) -> str:
    """An HTML page of the first rows that training reads (`evaluation.documents`)."""
    require_result(workdir, "documents/skipped.txt")
    c = config.replace(experiment, {"train.batch": rows, "train.accumulate": 1, "data.workers": 0})
    text, tokenizer = open_text(workdir), _open_tokenizer(c, workdir)
    sources = resolve(c.data.mixture, workdir)
    watched = [Watched.open(source, text, c) for source, _ in sources]
    rates = [rate for _, rate in sources]
    batch = next(iter(token_batches(list(zip(watched, rates)), text, c)))
    origins = [origin for source in watched for origin in source.origins]
    return page(batch, origins, text, partial(decode_codes, tokenizer), c)


def measure_gain(
    experiment: config.Experiment, workdir: Path, transformer: Transformer, count: int
) -> Gain | None:
    """`retrieval_gain` over evenly spaced held-out documents, with as many retrieved as may be.

    None where none of them has a neighbour.
    """
    rules = replace(experiment.retrieval, least=experiment.retrieval.most, alone=0.0)
    held_out = open_held_out(replace(experiment, retrieval=rules), workdir)
    chosen = np.linspace(0, len(held_out) - 1, min(count, len(held_out))).round().astype(int)
    documents = [held_out.document(i, rng_for(0, 0, i)) for i in chosen.tolist()]
    has_some = any(document.retrieved for document in documents)
    return retrieval_gain(experiment, transformer, documents) if has_some else None


def open_held_out(experiment: config.Experiment, workdir: Path) -> Examples:
    """The held-out documents of a work directory, with their neighbours if it has retrieval."""
    if experiment.retrieval.most:
        require_result(workdir, "neighbours/held_out.json")
    source = Source("held_out", workdir, "held_out")
    return Examples.open(source, open_text(workdir), experiment)


def first_pair(document: Document) -> tuple[Text, Image] | None:
    """The first text and the first image of a document that has both."""
    text = next((s for s in document.segments if isinstance(s, Text)), None)
    image = next((s for s in document.segments if isinstance(s, Image)), None)
    return (text, image) if text and image else None


def _make_search(rules: config.Retrieval, vectors: Mapped, folder: Path) -> Search:
    """The search that `retrieval.search` names; that of FAISS is saved for the bundle's memory."""
    if rules.search != "faiss":
        exact = rules.search == "exact"
        dtype, share = (jnp.float32, 1.0) if exact else (jnp.bfloat16, 0.95)
        mesh = make_mesh(config.Mesh(data=-1, fsdp=1))  # the axis that joins TPU slices
        return MeshSearch(Documents(vectors), mesh, dtype, share)
    count, _, width = vectors.shape
    kind = choose_kind(count, width, int(rules.index_gib * 2**30))
    index = build_faiss(Documents(vectors), kind)
    if processes.is_first():
        index.save(folder, "train", {"retriever": vectors.meta["retriever"]})
    return index


def _open_tokenizer(experiment: config.Experiment, workdir: Path) -> VQGAN:
    folder = require_result(workdir, "image_tokenizer/network")
    if processes.count() == 1:
        return open_image_tokenizer(experiment, folder, make_mesh(experiment.mesh))
    return open_image_tokenizer(experiment, folder, own_mesh())

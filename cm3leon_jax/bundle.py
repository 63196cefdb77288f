"""The bundle: what training produces and `load` opens, self-contained, without absolute paths.

card.md  config.json  text.model  transformer/  image_tokenizer/
clip/  memory/          with retrieval: the retriever, and the documents that it finds
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
from flax import nnx

from cm3leon_jax import checkpoint, config
from cm3leon_jax.checkpoint import PathLike, local
from cm3leon_jax.data.networks import open_image_tokenizer, open_transformer
from cm3leon_jax.fields import to_flat
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings

# Fields of a model that may change between a run and the one that starts from it; learned
# positions of another context are refused by their shape.
FREE = (
    *("context", "init_std", "position_std", "init_residual"),
    *("dtype", "remat", "quantize", "loss_chunk"),
)


def write_bundle(experiment: config.Experiment, workdir: Path, transformer: Transformer) -> None:
    """Assembles the results of a work directory under a temporary name, then renames it."""
    bundle, unfinished = workdir / "bundle", workdir / "bundle.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    source = experiment.data.source  # a bundle holds no paths of the machine that made it
    data = replace(experiment.data, source=Path(source).name, font="", mixture="")
    experiment = replace(experiment, data=data)
    written = replace(experiment, train=replace(experiment.train, start_from=""))
    checkpoint.write_experiment(unfinished, written)
    shutil.copy(workdir / "text.model", unfinished / "text.model")
    shutil.copytree(workdir / "image_tokenizer" / "network", unfinished / "image_tokenizer")
    checkpoint.save_network(unfinished / "transformer", transformer)
    if experiment.retrieval.most:
        shutil.copytree(workdir / "retriever" / "network", unfinished / "clip")
        (unfinished / "memory").mkdir()
        for pattern in ("train-*", "train.index.json", "train.vectors*", "train.faiss*"):
            for path in (workdir / "documents").glob(pattern):
                _link(path, unfinished / "memory" / path.name)
    licenses = json.loads((workdir / "documents" / "licenses.json").read_text())
    (unfinished / "card.md").write_text(card(experiment, licenses))
    unfinished.rename(bundle)


def open_start(
    experiment: config.Experiment, workdir: Path, mesh: jax.sharding.Mesh
) -> Transformer:
    """The transformer in `train.start_from`, read onto the mesh as training keeps it.

    A bundle, or a run: then its bundle or, before there is one, its newest checkpoint. Raises
    ValueError where the model is of another form, or where its text or image tokenizer is not that
    of `workdir`: the same ids would mean something else.
    """
    name = f"train.start_from={experiment.train.start_from!r}"
    folder = local(experiment.train.start_from)
    if (folder / "bundle").exists():
        folder = folder / "bundle"
    started = checkpoint.read_experiment(folder)
    there, here = to_flat(started.model), to_flat(experiment.model)
    for field in here:
        if field not in FREE and there[field] != here[field]:
            raise ValueError(
                f"{name}: its model has model.{field}={there[field]!r}, this run"
                f" {here[field]!r}; give both the same"
            )
    is_run = (folder / "image_tokenizer" / "network").exists()
    images = folder / "image_tokenizer" / "network" if is_run else folder / "image_tokenizer"
    own = workdir / "image_tokenizer" / "network"
    made = {
        "text tokenizer": (_digest(folder / "text.model"), _digest(workdir / "text.model")),
        "image tokenizer": (_fingerprint(started, images), _fingerprint(experiment, own)),
    }
    for part, (theirs, ours) in made.items():
        if theirs != ours:
            raise ValueError(
                f"{name}: was trained with the {part} {theirs}, {workdir} has {ours};"
                " copy that one into the work directory before its documents are prepared"
            )
    if not is_run:
        return open_transformer(experiment, folder / "transformer", mesh)
    build = lambda key: Transformer(experiment.model, rngs=nnx.Rngs(key))  # noqa: E731
    form = jax.eval_shape(build, jax.random.key(0))
    place = folder / "transformer" / "checkpoints"
    return checkpoint.load_part(place, "model", form, shardings(form, mesh))


def _digest(path: PathLike) -> str:
    return hashlib.sha256(local(path).read_bytes()).hexdigest()[:16]


def _fingerprint(experiment: config.Experiment, folder: PathLike) -> str:
    """Of an image tokenizer, read whole by every process."""
    mesh = make_mesh(config.Mesh(fsdp=1), jax.local_devices()[:1])
    return checkpoint.fingerprint(open_image_tokenizer(experiment, folder, mesh))


def card(experiment: config.Experiment, licenses: Mapping[str, int]) -> str:
    """The model card: what it is, from what data under which licences, how to open it."""
    c = experiment
    places = c.train.steps * c.train.batch * c.data.row_length
    counts = "\n".join(f"| {name or 'not stated'} | {n:,} |" for name, n in licenses.items())
    memory = ""
    if c.retrieval.most:
        memory = (
            f"\nTrained with {c.retrieval.least} to {c.retrieval.most} retrieved documents in front"
            " of each; `memory/` holds the training documents, with their licences, for sampling"
            " with `documents=`.\n"
        )
    started = ""
    if c.train.start_from:
        started = (
            "\nIt started from the parameters of another model, whose documents are not counted"
            " here.\n"
        )
    return f"""# A CM3Leon model

{c.model.parameters:,} parameters, context {c.model.context} tokens, images of \
{c.image_tokenizer.size} x {c.image_tokenizer.size} pixels in {c.model.image_tokens} codes.
Trained with the CM3 objective for {c.train.steps:,} steps of {c.train.batch} rows \
({places:,} places) on `{c.data.source}`, {c.data.held_out:.0%} of the documents held out.
{memory}{started}
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


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is never changed, or its copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)

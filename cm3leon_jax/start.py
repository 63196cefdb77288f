"""Where a new run starts from, `train.start_from`: the parameters of a bundle or of another run."""

import hashlib
import shutil
from pathlib import Path

import jax
from flax import nnx

from cm3leon_jax import checkpoint, config
from cm3leon_jax.checkpoint import PathLike, link, local
from cm3leon_jax.data.networks import open_image_tokenizer, open_transformer
from cm3leon_jax.fields import to_flat
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh, shardings

# Fields of a model that may change between a run and the one that starts from it; learned
# positions of another context are refused by their shape.
FREE = (
    *("context", "documents", "init_std", "position_std", "init_residual"),
    *("dtype", "remat", "quantize", "loss_chunk"),
)


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


def adopt(experiment: config.Experiment, workdir: Path) -> None:
    """Gives the work directory what it has not and `train.start_from` has, as second names: the
    tokenizers, the upscaler and, with retrieval, the retriever. With a `data.mixture` that stands
    elsewhere also the documents of the run and their neighbours: they are held out, and the
    bundle's memory.

    The start is a run or bundle on this machine; from elsewhere its parts are copied by hand.
    """
    start = Path(experiment.train.start_from)
    if not experiment.train.start_from or not start.exists():
        return
    is_run = (start / "image_tokenizer" / "network").exists()
    parts = {"text.model": "text.model"}
    parts["image_tokenizer/network"] = "image_tokenizer/network" if is_run else "image_tokenizer"
    if experiment.retrieval.most:
        parts["retriever/network"] = "retriever/network" if is_run else "clip"
    parts |= {name: name for name in ("upscaler/config.json", "upscaler/network")}
    if experiment.data.mixture:
        parts |= {"documents": "documents", "neighbours": "neighbours"}
    for name, there in parts.items():
        if (start / there).exists() and not (workdir / name).exists():
            _link_all(start / there, workdir / name)


def _link_all(source: Path, target: Path) -> None:
    """A file or a folder under a second name, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.part")
    if source.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished, copy_function=link)
    else:
        unfinished.unlink(missing_ok=True)
        link(source, unfinished)
    unfinished.rename(target)


def _digest(path: PathLike) -> str:
    return hashlib.sha256(local(path).read_bytes()).hexdigest()[:16]


def _fingerprint(experiment: config.Experiment, folder: PathLike) -> str:
    """Of an image tokenizer, read whole by every process."""
    mesh = make_mesh(config.Mesh(fsdp=1), jax.local_devices()[:1])
    return checkpoint.fingerprint(open_image_tokenizer(experiment, folder, mesh))

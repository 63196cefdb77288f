"""`cm3leon convert`: a table of layouts, each found by what lies in the source.

A layout writes into an unfinished folder, which is renamed when it is whole: nothing half-written
is ever left under the wanted name.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data.networks import save_upscaler
from cm3leon_jax.interop import chameleon, esrgan, vq
from cm3leon_jax.interop.cards import read_licence, write_card
from cm3leon_jax.interop.clip import convert_clip
from cm3leon_jax.interop.shards import Shards, read_json, refuse_pickle
from cm3leon_jax.presets import preset


@dataclass(frozen=True)
class Wishes:
    """What a command may say: the experiment that an image tokenizer is for, and its size."""

    experiment: config.Experiment | None = None
    size: int | None = None  # pixels a side, where a file of weights does not say it


@dataclass(frozen=True)
class Layout:
    """is_it(source, its config.json or {}): whether this is it. convert(source, target, wishes)."""

    is_it: Callable[[Path, dict[str, Any]], bool]
    convert: Callable[[Path, Path, Wishes], None]


def convert(source: Path, target: Path, wishes: Wishes = Wishes()) -> str:
    """Converts, and returns the name of the layout. Raises ValueError with one line."""
    if target.exists():
        raise ValueError(f"{target}: is there already; name a new folder")
    is_bundle = (source / "transformer").is_dir()
    if not is_bundle:
        refuse_pickle(source)
    path = source / "config.json" if source.is_dir() else source.parent / "config.json"
    theirs = read_json(path) if path.exists() else {}
    names = [name for name, layout in LAYOUTS.items() if layout.is_it(source, theirs)]
    if not names:
        found = theirs.get("model_type") or theirs.get("_class_name") or "no config.json"
        known = ", ".join(LAYOUTS)
        raise ValueError(f"{source}: is of no layout that is read ({found}); use one of {known}")
    if wishes != Wishes() and names[0] != "image_tokenizer":
        rule = "leave --size, --config and --gin_file out"
        raise ValueError(f"{source}: of layout {names[0]}, which says all itself; {rule}")
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        LAYOUTS[names[0]].convert(source, unfinished, wishes)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return names[0]


def from_torch(source: Path, target: Path) -> None:
    """Makes safetensors of a PyTorch checkpoint, in a process of its own that only unpickles
    tensors (`torch.load(weights_only=True)`)."""
    if target.suffix != ".safetensors" or target.exists():
        raise ValueError(f"{target}: name a new .safetensors file")
    if not source.is_file():
        raise ValueError(f"{source}: is no file; give a .ckpt, .pt or .pth")
    module = "cm3leon_jax.interop.torch_file"
    done = subprocess.run(
        [sys.executable, "-m", module, str(source), str(target)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise ValueError(f"{source}: cannot be converted: {lines[-1]}")


def _read_image_tokenizer(source: Path, target: Path, wishes: Wishes) -> None:
    """The beginning of a work directory: `image_tokenizer/network`, and the config that fits it."""
    c, network, digests = vq.read_tokenizer(source, wishes.size)
    base = wishes.experiment or preset("350m")
    c = replace(c, train=base.image_tokenizer.train, optimizer=base.image_tokenizer.optimizer)
    try:
        features = c.width if base.model.code_features else 0
        sizes: dict[str, Any] = {
            "image_codes": c.codes,
            "image_tokens": c.grid**2,
            "code_features": features,
        }
        model = replace(base.model, **sizes)
        experiment = replace(base, model=model, image_tokenizer=c)
    except ValueError as error:
        rule = "give an experiment that it fits with --config or --gin_file"
        raise ValueError(f"image tokenizer of {c.grid**2} tokens: {error}; {rule}") from error
    checkpoint.write_experiment(target, experiment)
    checkpoint.save_named(target / "image_tokenizer" / "network", network)
    write_card(target, "An image tokenizer", source, digests, read_licence(source))


def _read_upscaler(source: Path, target: Path, wishes: Wishes) -> None:
    """The upscaler of a bundle, for the folder `upscaler/` in it."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    save_upscaler(target, esrgan.read_upscaler(source))
    write_card(target, "An upscaler", source, {source.name: digest}, read_licence(source))


def _is_upscaler(source: Path, theirs: dict[str, Any]) -> bool:
    if source.suffix != ".safetensors":
        return False
    try:
        return esrgan.is_upscaler(Shards.open(source).tensors)
    except ValueError:
        return False


def _is_image_tokenizer(source: Path, theirs: dict[str, Any]) -> bool:
    if source.is_dir() and (theirs.get("model_type") or (source / "transformer").is_dir()):
        return False
    if theirs.get("_class_name") == "VQModel":
        return True
    try:
        return vq.find_family(Shards.open(source).tensors) is not None
    except ValueError:
        return source.suffix == ".safetensors"  # to say what is wrong with it


LAYOUTS: dict[str, Layout] = {
    "chameleon": Layout(
        lambda source, theirs: source.is_dir() and theirs.get("model_type") == "chameleon",
        lambda source, target, wishes: chameleon.read_directory(source, target),
    ),
    "bundle": Layout(
        lambda source, theirs: (source / "transformer").is_dir(),
        lambda source, target, wishes: chameleon.write_directory(source, target),
    ),
    "clip": Layout(
        lambda source, theirs: source.is_dir() and theirs.get("model_type") == "clip",
        lambda source, target, wishes: convert_clip(source, target),
    ),
    "upscaler": Layout(_is_upscaler, _read_upscaler),
    "image_tokenizer": Layout(_is_image_tokenizer, _read_image_tokenizer),
}

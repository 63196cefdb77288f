"""The bundle: what training produces and `load` opens, self-contained, without absolute paths.

card.md  config.json  text.model  transformer/  image_tokenizer/
clip/  memory/          with retrieval: the retriever, and the documents that it finds
upscaler/               where that stage was trained, or others' weights were converted to it
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from cm3leon_jax import checkpoint, config, processes
from cm3leon_jax.card import Made, card, sha256
from cm3leon_jax.data.shards import Shards
from cm3leon_jax.models.transformer import Transformer


def write_bundle(experiment: config.Experiment, workdir: Path, transformer: Transformer) -> None:
    """Assembles the results of a work directory under a temporary name, then renames it.

    All processes call it: each writes its part of the network, the first one everything else.
    """
    bundle, unfinished = workdir / "bundle", workdir / "bundle.part"
    source = experiment.data.source  # a bundle holds no paths of the machine that made it
    data = replace(experiment.data, source=Path(source).name, font="", mixture="")
    experiment = replace(experiment, data=data)
    if processes.is_first():
        shutil.rmtree(unfinished, ignore_errors=True)
        train = replace(experiment.train, start_from="")
        checkpoint.write_experiment(unfinished, replace(experiment, train=train))
    processes.wait_for_all("bundle begins")
    checkpoint.save_network(unfinished / "transformer", transformer)
    if processes.is_first():
        _copy_results(experiment, workdir, unfinished)
        unfinished.rename(bundle)
    processes.wait_for_all("bundle is finished")


def _copy_results(experiment: config.Experiment, workdir: Path, target: Path) -> None:
    shutil.copy(workdir / "text.model", target / "text.model")
    shutil.copytree(workdir / "image_tokenizer" / "network", target / "image_tokenizer")
    if experiment.retrieval.most:
        shutil.copytree(workdir / "retriever" / "network", target / "clip")
        (target / "memory").mkdir()
        for pattern in ("train-*", "train.index.json", "train.vectors*", "train.faiss*"):
            for path in (workdir / "documents").glob(pattern):
                checkpoint.link(path, target / "memory" / path.name)
    add_upscaler(workdir, target)
    _copy_notice(workdir, target)
    (target / "card.md").write_text(card(experiment, _made(workdir, target)))


def add_upscaler(workdir: Path, bundle: Path) -> None:
    """Copies the finished upscaler of a work directory, if any, into a bundle that has none."""
    source, target = workdir / "upscaler", bundle / "upscaler"
    if processes.is_first() and (source / "network").exists() and not target.exists():
        unfinished = bundle / "upscaler.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source / "network", unfinished / "network")
        shutil.copy(source / "config.json", unfinished)
        _copy_notice(source, unfinished)
        unfinished.rename(target)


def _copy_notice(source: Path, target: Path) -> None:
    """What the licence of converted weights forbids, which loading prints."""
    if (source / "notice.txt").exists():
        shutil.copy(source / "notice.txt", target)


def _made(workdir: Path, bundle: Path) -> Made:
    """What the documents of a work directory, and the parts of its bundle, are."""
    folder = workdir / "documents"
    made_by = Shards(folder, "train").made_by
    parts = {"image_tokenizer": "image_tokenizer", "retriever": "clip"}
    checksums = {parts[name]: digits for name, digits in made_by.items()}
    return Made(
        licenses=json.loads((folder / "licenses.json").read_text()),
        skipped=len((folder / "skipped.txt").read_text().splitlines()),
        checksums={"text.model": sha256(bundle / "text.model"), **checksums},
    )

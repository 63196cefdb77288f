"""The bundle: what training produces and `load` opens, self-contained, without absolute paths.

card.md  config.json  text.model  transformer/  image_tokenizer/
clip/  memory/          with retrieval: the retriever, and the documents that it finds
upscaler/               where that stage was trained, or others' weights were converted to it
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cm3leon_jax import checkpoint, config, processes
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
    licenses = json.loads((workdir / "documents" / "licenses.json").read_text())
    (target / "card.md").write_text(card(experiment, licenses))


def add_upscaler(workdir: Path, bundle: Path) -> None:
    """Copies the finished upscaler of a work directory, if any, into a bundle that has none."""
    source, target = workdir / "upscaler", bundle / "upscaler"
    if processes.is_first() and (source / "network").exists() and not target.exists():
        unfinished = bundle / "upscaler.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source / "network", unfinished / "network")
        shutil.copy(source / "config.json", unfinished)
        unfinished.rename(target)


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

"""The model card of a bundle: what it is for, what it is made from, how, and what it cannot do."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax import config
from cm3leon_jax.version import __version__


@dataclass(frozen=True)
class Made:
    """What a work directory knows of its documents and parts.

    licenses: documents by licence, "" where a record says none. skipped: records that could not be
    read. checksums: by part of the bundle.
    """

    licenses: Mapping[str, int]
    skipped: int
    checksums: Mapping[str, str]


def card(c: config.Experiment, made: Made) -> str:
    """Markdown; `c` is the experiment as the bundle has it."""
    sections = [_head(c), _use(c), _data(c, made), _limits(), _again(c), _checksums(made)]
    return "\n".join(sections)


def sha256(path: Path) -> str:
    """Of a file's contents."""
    with path.open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _head(c: config.Experiment) -> str:
    places = c.train.steps * c.train.batch * c.data.row_length
    return f"""# A CM3Leon model

{c.model.parameters:,} parameters, context {c.model.context} tokens, images of \
{c.image_tokenizer.size} x {c.image_tokenizer.size} pixels in {c.model.image_tokens} codes.
Trained with the CM3 objective for {c.train.steps:,} steps of {c.train.batch} rows \
({places:,} places) by cm3leon_jax {__version__}.

```python
import cm3leon_jax as cm3

generator = cm3.load("bundle")
generator.images("...", n=4)
```
"""


def _use(c: config.Experiment) -> str:
    sampling = "drawing pictures of texts, telling pictures in words, filling holes in both"
    if c.data.tasks:
        sampling += f", and the tasks that it was tuned on: {', '.join(c.data.tasks)}"
    return f"""## Intended use

Research on models of texts and pictures: {sampling}. `cm3leon sample` writes prompt, seed and
options into its pictures: keep them where you publish one. Not intended for decisions about people,
for pictures of real persons, or for anything where a wrong answer does harm: nothing filters what
it draws or writes.
"""


def _data(c: config.Experiment, made: Made) -> str:
    counts = "\n".join(f"| {name or 'not stated'} | {n:,} |" for name, n in made.licenses.items())
    count = sum(made.licenses.values())
    text = f"""## Data and licences

{count:,} documents of `{c.data.source}`, {c.data.held_out:.0%} held out by a hash of their id; \
{made.skipped:,} records could not be read.

| licence of the documents | count |
|---|---:|
{counts}

The licences of the documents bind whoever passes this model or its pictures on; where one of them,
or of the weights that it started from, is for research only, so is the model. Documents without a
stated licence are to be taken as not free.
"""
    if c.retrieval.most:
        text += f"""
Trained with {c.retrieval.least} to {c.retrieval.most} retrieved documents in front of each; \
`memory/` holds the training documents, with their licences, for sampling with `documents=`.
Passing the bundle on passes them on: remove `memory/` where their licences do not allow it.
"""
    if c.train.start_from:
        text += """
It started from the parameters of another model, whose documents are not counted here.
"""
    return text


def _limits() -> str:
    return """## Bias and limits

It knows what its training data showed and nothing else, and it repeats the associations of that
data: who and what is shown how often, beside which words, in which language. Nobody has measured
this bias here. It can draw a training picture again, above all behind retrieved documents. What it
says of a picture, and answers, may be wrong without a sign of doubt. Its scores hold for held-out
documents of the same source: `cm3leon evaluate bundle` measures them.
"""


def _again(c: config.Experiment) -> str:
    retriever = "cm3leon train --stage retriever --workdir W\n" if c.retrieval.most else ""
    neighbours = "cm3leon retrieve --workdir W\n" if c.retrieval.most else ""
    started = ""
    if c.train.start_from or c.data.tasks:
        started = """
A model that was tuned needs two more: the first model, and what it was tuned on, as \
`--config.train.start_from` and `--config.data.mixture` of the last command.
"""
    return f"""## How it was made

`config.json` holds every value. In an empty folder `W` with a copy of it, these make it again:

```
cm3leon tokenizer text --workdir W --data {shlex.quote(c.data.source)}
cm3leon tokenizer image --workdir W
{retriever}cm3leon prepare --workdir W
{neighbours}cm3leon train --workdir W
```
{started}"""


def _checksums(made: Made) -> str:
    rows = "\n".join(f"| {part} | `{digits}` |" for part, digits in made.checksums.items())
    return f"""## Checksums

| part | |
|---|---|
{rows}

Those of networks are `cm3leon_jax.checkpoint.fingerprint`; loading compares them with the memory's.
"""

"""The quickstart on procedural scenes: 32x32 pictures of one to three objects, captions,
questions.

Expect: held-out captions drawn, pictures told exactly, maps, boxes and letters too; six in ten
edits and eight in ten questions: docs/quickstart.md.
Cost: about 19 minutes on two idle CPU cores; memory 2 GB.
Run:  cm3leon quickstart --config tiny --workdir runs/tiny
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny"))).lock()

"""The quickstart on procedural scenes: 32x32 pictures of one to three objects, captions,
questions.

Expect: nine in ten of held-out captions drawn, nearly all pictures told exactly; edits, questions,
maps, boxes and letters as in docs/quickstart.md.
Cost: 24 minutes on two CPU cores with other work on them.
Run:  cm3leon quickstart --config tiny --workdir runs/tiny
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny"))).lock()

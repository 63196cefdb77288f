"""The quickstart on procedural scenes: 32x32 pictures of one to three objects, captions,
questions.

Expect: held-out captions drawn with the exact composition in about two of three pictures.
Cost: about ten minutes on two CPU cores, 8 GB; `make quickstart` runs all of its stages.
Run:  cm3leon train --config tiny --workdir runs/tiny
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny"))).lock()

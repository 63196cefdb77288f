"""The quickstart on procedural scenes: 32x32 pictures of one to three objects, captions,
questions.

Expect: of held-out captions and pictures nineteen in twenty and more drawn and told exactly
(docs/quickstart.md).
Cost: sixteen minutes on two CPU cores, 1.7 GiB of memory.
Run:  cm3leon quickstart --config tiny --workdir runs/tiny
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny"))).lock()

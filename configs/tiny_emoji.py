"""The quickstart on real pictures: Noto colour emoji with their Unicode names.

Expect: recognisable reconstructions and generations in the report.
Cost: about ten minutes on two CPU cores, 8 GB; `make quickstart DATA=emoji` runs all of its
stages.
Run:  cm3leon train --config tiny_emoji --workdir runs/tiny_emoji
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny_emoji"))).lock()

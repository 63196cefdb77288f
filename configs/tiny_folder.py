"""The quickstart on your own folder of pictures and texts.

Expect: depends on the pictures; the report shows reconstructions beside originals.
Cost: about ten minutes on two CPU cores, 8 GB; `make quickstart DATA=FOLDER` runs all of its
stages.
Run:  cm3leon train --config tiny_folder --workdir runs/tiny_folder
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny_folder"))).lock()

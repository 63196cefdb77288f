"""The quickstart on your own folder of pictures and texts.

Expect: depends on the pictures; the report shows reconstructions beside originals.
Cost: that of tiny_emoji plus the reading of the pictures, all of which stay in memory.
Run:  cm3leon quickstart --data FOLDER --config tiny_folder --workdir runs/tiny_folder
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny_folder"))).lock()

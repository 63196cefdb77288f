"""The quickstart on real pictures: Noto colour emoji with their Unicode names.

Expect: people, hands, faces and flags recognisable; many one-off objects are blobs still.
Cost: about 20 minutes on two CPU cores (twice what half of the steps took), 1.5 GiB of
memory.
Run:  cm3leon quickstart --data emoji --config tiny_emoji --workdir runs/tiny_emoji
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny_emoji"))).lock()

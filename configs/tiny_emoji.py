"""The quickstart on real pictures: Noto colour emoji with their Unicode names.

Expect: people and hands drawn, told and edited, also of skin tones that were not seen of them; many
one-off objects are blobs still: docs/quickstart.md.
Cost: 26 minutes on one CPU core, 1.5 GiB of memory by an earlier recipe.
Run:  cm3leon quickstart --data emoji --config tiny_emoji --workdir runs/tiny_emoji
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("tiny_emoji"))).lock()

"""The quickstart on scenes with time: 4,000 steps of pretraining and 20,000 on all tasks.

Expect: held-out captions, maps, boxes and letters right, of edits and questions 97 to 98 %:
docs/quickstart.md.
Cost: 100 minutes on one CPU core; training holds 1.6 GiB.
Run:  cm3leon quickstart --config scenes_full --workdir runs/scenes_full
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("scenes_full"))).lock()

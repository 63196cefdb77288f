"""The quickstart on scenes with time: 4,000 steps of pretraining and 20,000 on all tasks.

Expect: more than docs/quickstart.md says of the 1,000 and 5,000 steps of tiny (not measured yet).
Cost: about 80 minutes on two CPU cores (four times tiny's steps, not measured), 3 GiB of memory.
Run:  cm3leon quickstart --config scenes_full --workdir runs/scenes_full
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("scenes_full"))).lock()

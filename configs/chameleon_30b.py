"""Chameleon-30B (34B in arXiv 2405.09818): norms after the sub-layers and 8 key/value heads keep
it stable and small to decode.

Expect: a stable loss where norms before the sub-layers diverge late (paper section 2.3).
Cost: the authors report 4,282,407 A100 hours for 9.2T tokens.
Run:  cm3leon tokenizer text --config chameleon_30b --data FOLDER --workdir runs/chameleon_30b
      then `tokenizer image`, `prepare` and `train`, each with --workdir runs/chameleon_30b.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("chameleon_30b"))).lock()

"""CM3Leon-760M, table 3 of the paper (arXiv 2309.02591): 1.9T tokens in rows of 4,096 ids.

Expect: zero-shot MS-COCO FID 6.61 with two retrieved documents (the paper's figure, not reproduced
here).
Cost: 8.9e21 FLOPs (6 N D); at 50 % of peak 42 hours on 256 TPU v5p chips, 16 thousand A100 hours
(arithmetic, not measured).
Run:  cm3leon tokenizer text --config 760m --data FOLDER --workdir runs/760m
      then `tokenizer image`, `prepare` and `train`, each with --workdir runs/760m.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("760m"))).lock()

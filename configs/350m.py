"""CM3Leon-350M, table 3 of the paper (arXiv 2309.02591): 1.4T tokens in rows of 4,096 ids.

Expect: zero-shot MS-COCO FID 14.20 with two retrieved documents (the paper's figure, not
reproduced here).
Cost: 3.1e21 FLOPs (6 N D); at 50 % of peak 15 hours on 256 TPU v5p chips, 6 thousand A100 hours
(arithmetic, not measured).
Run:  cm3leon tokenizer text --config 350m --data FOLDER --workdir runs/350m
      then `tokenizer image`, `prepare` and `train`, each with --workdir runs/350m.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("350m"))).lock()

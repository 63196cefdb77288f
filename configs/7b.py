"""CM3Leon-7B, table 3 of the paper (arXiv 2309.02591): 2.4T tokens in rows of 4,096 ids.

Expect: zero-shot MS-COCO FID 4.88 with two retrieved documents (the paper's figure, not reproduced
here).
Cost: 9.7e22 FLOPs (6 N D); at 50 % of peak 19 days on 256 TPU v5p chips, 170 thousand A100 hours
(arithmetic, not measured).
Run:  cm3leon tokenizer text --config 7b --data FOLDER --workdir runs/7b
      then `tokenizer image`, `prepare` and `train`, each with --workdir runs/7b.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("7b"))).lock()

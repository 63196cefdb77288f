"""Chameleon-7B (arXiv 2405.09818): the same decoder with RMSNorm, rotary positions, SwiGLU and
QK-norm; no CM3 spans.

Expect: MS-COCO FID 26.7 (others' measurement of the published model, not reproduced here).
Cost: the authors report 856,481 A100 hours for 9.2T tokens.
Run:  cm3leon tokenizer text --config chameleon_7b --data FOLDER --workdir runs/chameleon_7b
      then `tokenizer image`, `prepare` and `train`, each with --workdir runs/chameleon_7b.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset


def get_config() -> ConfigDict:
    return ConfigDict(to_dict(preset("chameleon_7b"))).lock()

"""Pretraining (section 2 and table 3 of arXiv 2309.02591) of a preset, which keeps its peak rate
and its number of steps: batches of 8M tokens, 1,500 steps of warmup, two retrieved documents in
front of each, the CM3 objective on every token; on a TPU pod.

Expect: what the preset's own file says.
Cost: what the preset's own file says. A checkpoint takes 10 bytes per parameter, three are kept;
one every 500 steps is every 3 minutes for 350M and every 48 for 7B on 256 TPU v5p chips
(arithmetic).
Run:  cm3leon tokenizer text --config pretrain:350m --data FOLDER --workdir runs/350m
      then `tokenizer image`, `train --stage retriever`, `prepare`, `retrieve` and `train`, each
      with --workdir runs/350m alone: the first command has written the config there.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset, with_run


def get_config(model: str = "350m") -> ConfigDict:
    return ConfigDict(to_dict(with_run(preset(model), "pretrain"))).lock()

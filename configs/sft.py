"""Supervised fine-tuning (section 4 and table 4 of arXiv 2309.02591) of a pretrained preset: 30B
tokens of instruction data in batches of 2M at a rate of 5e-5 after 150 steps of warmup; the CM3
objective on the whole sequence, instructions too. The paper states neither decay nor retrieval:
here the rate falls to a tenth, documents stand alone. Takes the tokenizers of the pretrained run,
train.start_from, into the new --workdir. On all tasks of the paper: `train
--config.data.mixture=mixtures/instruct.gin` (docs/instructions.md). Loss on the answers alone:
--config.objective.answer_only=true; answers read last, as they are decoded, in half of the
documents: --config.objective.answer_last=0.5.

Expect: at 7B a COCO CIDEr of 61.6 and 47.6 % on VQA2 (the paper's figures, not reproduced here).
Cost: 350M 6.7e19, 760M 1.4e20, 7B 1.2e21 FLOPs (6 N D); at 50 % of peak 20 minutes, 40 minutes
and 6 hours on 256 TPU v5p chips (arithmetic, not measured).
Run:  cm3leon prepare --config sft:350m --config.train.start_from=runs/350m \\
          --data FOLDER --workdir runs/sft
      then `train --workdir runs/sft`.
"""

from ml_collections import ConfigDict

from cm3leon_jax.fields import to_dict
from cm3leon_jax.presets import preset, with_run


def get_config(model: str = "350m") -> ConfigDict:
    return ConfigDict(to_dict(with_run(preset(model), "sft"))).lock()

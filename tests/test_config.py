"""config.py: every rule speaks, dicts come back, sizes are the paper's."""

import dataclasses
import json
import re

import jax
import pytest
from flax import nnx

from cm3leon_jax.config import (
    Experiment,
    Model,
    from_dict,
    replace,
)
from cm3leon_jax.fields import to_dict, to_flat
from cm3leon_jax.models.transformer import Frozen, Transformer
from cm3leon_jax.presets import PRESETS, preset

SMALL = Model(
    layers=3, width=24, heads=4, mlp=40, context=32, specials=16, sentinels=8, text_pieces=30,
    image_codes=18, image_tokens=16, remat="none",
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.layers": 0}, "model.layers=0: must be > 0"),
        (
            {"model.heads": 7},
            "model.heads=7: must divide model.width=1024; use one of [1",
        ),
        ({"model.kv_heads": 3}, "model.kv_heads=3: must be 0 or divide model.heads=16"),
        (
            {"model.activation": "silu"},
            "model.activation='silu': use one of 'relu', 'gelu'",
        ),
        ({"model.positions": "alibi"}, "model.positions='alibi': use one of 'learned', 'rotary'"),
        ({"model.positions": "rotary", "model.width": 48}, "model.positions='rotary': rotary"),
        ({"model.image_tokens": 1000}, "model.image_tokens=1000: an image is a square raster; use"),
        ({"model.context": 1024}, "model.context=1024: must leave room"),
        ({"model.init_residual": "one"}, "model.init_residual='one': use one of 'zero', 'scaled'"),
        ({"objective.rate": -1.0}, "objective.rate=-1.0: must be >= 0"),
        ({"objective.max_spans": -1}, "objective.max_spans=-1: must be >= 0"),
        (
            {"objective.max_spans": 513},
            "objective.max_spans=513: must fit into model.sentinels",
        ),
        ({"objective.whole_segment": 1.5}, "objective.whole_segment=1.5: is a probability; use a"),
        (
            {"objective.answer_length": 0.5},
            "objective.answer_length=0.5: needs objective.answer_only",
        ),
        ({"objective.sentinel_weight": -1.0}, "objective.sentinel_weight=-1.0: >= 0"),
        ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate=0.0: must be > 0"),
        ({"optimizer.schedule": "steps"}, "optimizer.schedule='steps': use one of 'linear'"),
        ({"optimizer.clip": -1.0}, "optimizer.clip=-1.0: >= 0"),
        ({"optimizer.beta2": 1.2}, "optimizer.beta2=1.2: must be >= 0 and < 1"),
        ({"mesh.data": -1}, "mesh (data, fsdp, tensor)=(-1, -1, 1): use positive numbers, and -1"),
        ({"mesh.tensor": 0}, "mesh (data, fsdp, tensor)=(1, -1, 0): use positive numbers"),
        ({"train.steps": 0}, "train.steps=0: must be > 0"),
        ({"train.save_every": 0}, "train.save_every=0: must be > 0"),
        (
            {"train.accumulate": 7, "train.batch": 8},
            "train.batch=8: must be a multiple of train",
        ),
        ({"objective.z_loss": -1.0}, "objective.z_loss=-1.0: >= 0"),
        ({"data.row_length": 5000}, "data.row_length=5000: must not exceed model.context=4096"),
        ({"data.count": -1}, "data.count=-1: must be >= 0"),
        ({"data.sample": 0}, "data.sample=0: must be > 0"),
        ({"data.workers": -1}, "data.workers=-1: must be >= 0"),
        ({"retrieval.least": 1}, "retrieval.least=1: must be >= 0 and <= retrieval.most"),
        ({"retrieval.most": 5}, "retrieval.most=5: must be at most retrieval.by_text"),
        ({"retrieval.candidates": 3}, "retrieval.candidates=3: must be at least"),
        ({"retrieval.max_score": 1.5}, "retrieval.max_score=1.5: is a cosine"),
        ({"retrieval.alone": 1.0}, "retrieval.alone=1.0: must be >= 0 and < 1"),
        ({"retrieval.query_dropout": 1.0}, "retrieval.query_dropout=1.0: must be >= 0 and < 1"),
        ({"decode.documents": 1}, "decode.documents=1: must be at most retrieval.most=0"),
        ({"retriever.patch": 30}, "retriever.patch=30: must divide retriever.size=224"),
        ({"retriever.heads": 10}, "retriever.heads=10: must divide retriever.width=768"),
        ({"retriever.text_heads": 7}, "retriever.text_heads=7: must divide retriever.text_width"),
        ({"decode.repetition_penalty": 0.5}, "decode.repetition_penalty=0.5: must be >= 1"),
        ({"retriever.text_tokens": 2}, "retriever.text_tokens=2: must hold a start"),
        ({"upscaler.scale": 3}, "upscaler.scale=3: use one of 4, 2"),
        ({"upscaler.channels": 2}, "upscaler.channels=2: must be >= 3"),
        ({"upscaler.crop": 30}, "upscaler.crop=30: must be a multiple of 4"),
        ({"upscaler.degradation": "blur"}, "upscaler.degradation='blur': use one of 'none', 'fir"),
        ({"upscaler.perceptual": -1.0}, "upscaler.perceptual=-1.0: must be >= 0"),
        (
            {"upscaler.train.accumulate": 2, "upscaler.train.batch": 2},
            "upscaler.train.accumulate=2: only the transformer has it; use 1",
        ),
        (
            {"retriever.train.start_from": "a"},
            "retriever.train.start_from='a': only the transformer has it; use ''",
        ),
        (
            {"image_tokenizer.optimizer.matrices": "muon"},
            "image_tokenizer.optimizer.matrices='muon': only the transformer has it; use 'adam'",
        ),
        ({"data.held_out": 1.0}, "data.held_out=1.0: must be > 0 and < 1"),
        ({"decode.top_p": 0.0}, "decode.top_p=0.0: must be > 0 and <= 1"),
        ({"decode.temperature": -0.1}, "decode.temperature=-0.1: >= 0"),
        ({"decode.text_tokens": 0}, "decode.text_tokens=0: must be > 0"),
        ({"image_tokenizer.channels": 0}, "image_tokenizer.channels=0: must be >= 1"),
        (
            {"image_tokenizer.multipliers": []},
            "image_tokenizer.multipliers=(): give one number",
        ),
        ({"image_tokenizer.size": 100}, "image_tokenizer.size=100: must be a multiple of patch"),
        ({"image_tokenizer.size": 512}, "image_tokenizer grid**2, codes=(4096, 8192): must equal"),
        ({"image_tokenizer.groups": 48}, "image_tokenizer.groups=48: must divide every level"),
        ({"image_tokenizer.attention": [5]}, "image_tokenizer.attention=(5,): must be among grid"),
        ({"image_tokenizer.quantizer": "fsq"}, "image_tokenizer.quantizer='fsq': use one of"),
        ({"image_tokenizer.decay": 1.0}, "image_tokenizer.decay=1.0: must be >= 0 and < 1"),
        ({"image_tokenizer.absolute": 0.0}, "image_tokenizer.absolute=0.0: must be > 0 where"),
        (
            {"model.code_features": 12},
            "model.code_features=12: must be 0 or image_tokenizer",
        ),
    ],
)
def test_every_rule_names_field_value_and_fix(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        replace(Experiment(), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.stps": 1}, "train.stps: unknown config key; did you mean train.steps?"),
        ({"trian.steps": 1}, "trian: unknown config key; did you mean train?"),
        ({"mesh.xyz": 1}, "mesh.xyz: unknown config key; known: data, fsdp, tensor"),
        ({"train.steps.more": 1}, "train.steps.more=1: steps has no fields"),
        ({"train": 1}, "train=1: must be a mapping of fields"),
        ({"train.steps": "ten"}, "train.steps='ten': must be of type int"),
        ({"train.steps": True}, "train.steps=True: must be of type int"),
        ({"model.norm_affine": 1}, "model.norm_affine=1: must be of type bool"),
        ({"image_tokenizer.multipliers": 4}, "image_tokenizer.multipliers=4: must be a list"),
        (
            {"image_tokenizer.multipliers": ["a"]},
            "image_tokenizer.multipliers='a': must be of",
        ),
    ],
)
def test_unknown_keys_and_wrong_types_name_the_nearest(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(Experiment(), overrides)


@pytest.mark.parametrize("name", PRESETS)
def test_experiments_survive_json(name):
    experiment = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment
    assert replace(experiment, to_flat(experiment)) == experiment


def test_missing_keys_keep_their_defaults_and_ints_serve_as_floats():
    experiment = from_dict({"optimizer": {"clip": 2}})
    assert experiment.optimizer.clip == 2.0
    assert type(experiment.optimizer.clip) is float
    assert replace(experiment, {"optimizer.clip": 1.0}) == Experiment()


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(ValueError, match=r"preset='8b': use one of tiny, .*7b"):
        preset("8b")


@pytest.mark.parametrize(("name", "millions"), [("350m", 350), ("760m", 760), ("7b", 7000)])
def test_presets_have_the_size_in_their_name(name, millions):
    assert preset(name).model.vocabulary == 65_536
    assert preset(name).model.parameters / 1e6 == pytest.approx(millions, rel=0.07)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "swiglu", "tie_embeddings": False},
        {"norm_affine": True},
        {"norm": "rmsnorm", "norm_affine": True, "norm_placement": "after"},
        {"qk_norm": True, "kv_heads": 2, "positions": "rotary"},
        {"norm": "rmsnorm", "qk_norm": True, "kv_heads": 1},
        {"code_positions": True, "code_features": 5},
    ],
)
def test_parameters_counts_the_real_arrays(changes):
    assert (
        count(dataclasses.replace(SMALL, **changes))
        == dataclasses.replace(SMALL, **changes).parameters
    )


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_counts_the_arrays_of_presets(name):
    assert count(preset(name).model) == preset(name).model.parameters


def count(model: Model) -> int:
    """Trained numbers of the network, from its shapes; the codebook is not trained."""
    shapes = jax.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0)))
    rows = jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    trained = [row for row in rows if not isinstance(row, Frozen)]
    return sum(shape.size for shape in jax.tree.leaves(trained))

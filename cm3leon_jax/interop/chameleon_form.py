"""Chameleon's config.json as our `config.Experiment` and back, and its tensors under our names.

Every field that would change the network and is not ours is refused by name; fields that a file
leaves out have the values that transformers' ChameleonConfig gives them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import config
from cm3leon_jax.fields import require, to_dict
from cm3leon_jax.interop.chameleon_ids import IMAGE, Ids, name_ids
from cm3leon_jax.interop.shards import Shape
from cm3leon_jax.presets import preset

Numbers = NDArray[Any]
OURS = "cm3leon"  # our experiment in the config.json of a model of ours that was exported
DEFAULTS: dict[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 4096,
    "model_parallel_size": 1,
    "swin_norm": False,
    "tie_word_embeddings": False,
}
VQ_DEFAULTS: dict[str, Any] = {
    "embed_dim": 256,
    "num_embeddings": 8192,
    "latent_channels": 256,
    "resolution": 512,
    "base_channels": 128,
    "channel_multiplier": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": None,
}
RULES = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5}
VQ_RULES = {"double_latent": False, "in_channels": 3, "attn_type": "vanilla"}
OWN_FORM = {
    "norm": "rmsnorm",
    "norm_affine": True,
    "activation": "swiglu",
    "positions": "rotary",
    "qk_norm": True,
    "code_positions": False,
    "code_features": 0,
}
OWN_VQ = {"encoder": "convolutional", "patch": 1, "groups": 32, "normalize": False}
SCORED = "gumbel"  # a quantizer with a layer that Chameleon has not


@dataclass(frozen=True)
class Row:
    """One tensor of theirs and where it lies in ours: an array, or a layer of a stacked one."""

    theirs: str
    ours: str
    layer: int | None
    shape: Shape  # of ours, without the layers
    shapes: tuple[Shape, ...]  # of theirs: that of transformers, and others that mean the same
    take: Callable[[Numbers], Numbers]
    give: Callable[[Numbers], Numbers]
    fields: str  # of config.json that say the shape


def read_form(theirs: Mapping[str, Any], count_ids: Callable[[int, int], Ids]) -> Any:
    """(experiment, ids) of a config.json.

    count_ids(vocab_size, codes) orders the ids. Raises ValueError naming the field that is not
    read, or does not fit.
    """
    require(theirs.get("model_type") == "chameleon", "model_type", theirs.get("model_type"), "only")
    c, q = DEFAULTS | dict(theirs), VQ_DEFAULTS | dict(theirs.get("vq_config") or {})
    for prefix, content, rules in (("", c, RULES), ("vq_config.", q, VQ_RULES)):
        for name, value in rules.items():
            here = content.get(name, value)
            require(here == value, f"{prefix}{name}", here, f"only {value!r} is read")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(kind == "default", "rope_parameters.rope_type", kind, "only 'default' is read")
    ids = count_ids(c["vocab_size"], q["num_embeddings"])
    heads = c["num_attention_heads"]
    kv_heads = c["num_key_value_heads"] or heads
    side = q["resolution"] // 2 ** (len(q["channel_multiplier"]) - 1)
    changes: dict[str, Any] = {
        "model.layers": c["num_hidden_layers"],
        "model.width": c["hidden_size"],
        "model.heads": heads,
        "model.kv_heads": 0 if kv_heads == heads else kv_heads,
        "model.mlp": c["intermediate_size"],
        "model.context": c["max_position_embeddings"],
        "model.specials": ids.specials,
        "model.sentinels": ids.sentinels,
        "model.text_pieces": ids.text,
        "model.image_codes": ids.codes,
        "model.image_tokens": side**2,
        "model.norm_placement": "after" if c["swin_norm"] else "before",
        "model.rotary_base": float(rope.get("rope_theta", c.get("rope_theta") or 10_000.0)),
        "model.tie_embeddings": bool(c["tie_word_embeddings"]),
        "model.documents": "chameleon",
        "image_tokenizer.size": q["resolution"],
        "image_tokenizer.channels": q["base_channels"],
        "image_tokenizer.multipliers": list(q["channel_multiplier"]),
        "image_tokenizer.blocks": q["num_res_blocks"],
        "image_tokenizer.attention": list(q["attn_resolutions"] or ()),
        "image_tokenizer.latent": q["latent_channels"],
        "image_tokenizer.codes": q["num_embeddings"],
        "image_tokenizer.width": q["embed_dim"],
        "data.row_length": c["max_position_embeddings"],
    }
    base = preset("chameleon_7b")
    room = c["max_position_embeddings"] - side**2 - 5
    changes["decode.text_tokens"] = max(1, min(base.decode.text_tokens, room))
    changes["objective.max_spans"] = min(base.objective.max_spans, ids.sentinels)
    return config.replace(base, changes), ids


def write_form(
    experiment: config.Experiment, source: Mapping[str, Any] | None, dtype: str
) -> dict[str, Any]:
    """The config.json for transformers. source: the one that a converted model came from."""
    m, t = experiment.model, experiment.image_tokenizer
    for prefix, part, form in (("model", m, OWN_FORM), ("image_tokenizer", t, OWN_VQ)):
        for name, value in form.items():
            rule = f"only {value!r} goes into Chameleon's layout"
            require(getattr(part, name) == value, f"{prefix}.{name}", getattr(part, name), rule)
    rule = "its layer of scores has no place in Chameleon's layout"
    require(t.quantizer != SCORED, "image_tokenizer.quantizer", t.quantizer, rule)
    written: dict[str, Any] = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "dtype": dtype,
        "vocab_size": m.vocabulary,
        "hidden_size": m.width,
        "intermediate_size": m.mlp,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads or m.heads,
        "max_position_embeddings": m.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rotary_base},
        "swin_norm": m.norm_placement == "after",
        "tie_word_embeddings": m.tie_embeddings,
        "vq_config": {
            "embed_dim": t.width,
            "num_embeddings": t.codes,
            "latent_channels": t.latent,
            "resolution": t.size,
            "base_channels": t.channels,
            "channel_multiplier": list(t.multipliers),
            "num_res_blocks": t.blocks,
            "attn_resolutions": list(t.attention) or None,
        },
    } | RULES
    if source is not None:
        return dict(source) | written
    names = name_ids(m)
    written |= {"vocabulary_map": names, "image_token_id": names[IMAGE], OURS: to_dict(experiment)}
    return written | {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def rows(m: config.Model, ids: Ids, groups: int = 1) -> list[Row]:
    """The tensors of the transformer. groups: `model_parallel_size`, in which the ranks of training
    shared a norm of queries and keys: such a norm [groups H] is that of the heads of each."""
    v, wide, heads, head = m.vocabulary, m.width, m.heads, m.head_size
    kv_heads = m.kv_heads or heads
    order = ids.theirs
    made: list[Row] = []

    def same(x: Numbers) -> Numbers:
        return x

    def row(
        theirs: str,
        ours: str,
        fields: str,
        *shapes: Shape,
        shape: Shape | None = None,
        take: Any = same,
        give: Any = same,
    ) -> None:
        made.append(Row(theirs, ours, layer, shape or shapes[0], shapes, take, give, fields))

    def restore(x: Numbers) -> Numbers:
        back = np.empty_like(x)
        back[order] = x
        return back

    layer: int | None = None
    table: dict[str, Any] = {"take": lambda x: x[order], "give": restore}
    row("model.embed_tokens.weight", "embedding", "vocab_size, hidden_size", (v, wide), **table)
    if not m.tie_embeddings:
        row("lm_head.weight", "head", "vocab_size, hidden_size", (v, wide), **table)
    row("model.norm.weight", "final_norm.scale", "hidden_size", (wide,))
    for layer in range(m.layers):
        at, sizes = f"model.layers.{layer}.", "hidden_size"
        for name, norm in (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "mlp_norm"),
        ):
            row(f"{at}{name}.weight", f"layers.{norm}.scale", sizes, (wide,))
        for name, theirs, n, field in (
            ("query", "q", heads, "num_attention_heads"),
            ("key", "k", kv_heads, "num_key_value_heads"),
            ("value", "v", kv_heads, "num_key_value_heads"),
        ):
            row(
                f"{at}self_attn.{theirs}_proj.weight",
                f"layers.{name}",
                f"{field}, {sizes}",
                (n * head, wide),
                shape=(wide, n, head),
                take=lambda x, n=n: x.T.reshape(wide, n, head),
                give=lambda x: x.reshape(wide, -1).T,
            )
            for end, part in (("weight", "scale"), ("bias", "bias")) if name != "value" else ():
                divides = n % groups == 0 and groups < n
                row(
                    f"{at}self_attn.{theirs}_norm.{end}",
                    f"layers.{name}_norm.{part}",
                    f"{field}, model_parallel_size",
                    (n, head),
                    *([(groups, head)] if divides else []),
                    take=lambda x, n=n: np.repeat(x, n // len(x), axis=0),
                )
        row(
            f"{at}self_attn.o_proj.weight",
            "layers.out",
            f"num_attention_heads, {sizes}",
            (wide, heads * head),
            shape=(heads, head, wide),
            take=lambda x: x.T.reshape(heads, head, wide),
            give=lambda x: x.reshape(-1, wide).T,
        )
        turn: dict[str, Any] = {"take": np.transpose, "give": np.transpose}
        for name, shape in (
            ("gate", (m.mlp, wide)),
            ("up", (m.mlp, wide)),
            ("down", (wide, m.mlp)),
        ):
            theirs, field = f"{at}mlp.{name}_proj.weight", f"intermediate_size, {sizes}"
            row(theirs, f"layers.{name}", field, shape, shape=shape[::-1], **turn)
    return made

"""Chameleon's form in sizes for this machine, as a config of ours and as transformers' model."""

from typing import Any

from cm3leon_jax import config
from cm3leon_jax.presets import preset


def shape(size: tuple[int, ...], dtype: str, platform: str) -> config.Experiment:
    """The Chameleon form in a size; its vocabulary is the paper's on a GPU, 8,192 ids on a CPU.

    size: layers, width, heads, mlp, places in a row, rows.
    """
    layers, width, heads, mlp, length, rows = size
    changes: dict[str, Any] = {
        "model.layers": layers,
        "model.width": width,
        "model.heads": heads,
        "model.mlp": mlp,
        "model.context": length,
        "model.dtype": dtype,
        "data.row_length": length,
        "train.batch": rows,
        "objective.z_loss": 0.0,
        "mesh.fsdp": 1,
    }
    if platform == "cpu":
        changes |= {"model.image_codes": 1024, "image_tokenizer.codes": 1024}
        changes |= {"model.image_tokens": 256, "image_tokenizer.size": 256}
        changes |= {"model.text_pieces": 6144, "model.loss_chunk": length}
    return config.replace(preset("chameleon_7b"), changes)


def their_model(m: config.Model, **changes: Any) -> Any:
    """transformers' Chameleon of our shape with torch's fused attention, on the CPU, untrained."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    form = ChameleonConfig(
        vocab_size=m.vocabulary,
        hidden_size=m.width,
        intermediate_size=m.mlp,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads or m.heads,
        max_position_embeddings=m.context,
        attn_implementation="sdpa",
        vocabulary_map={"<image>": 4},
        # Its image tokenizer takes no part and is dropped; small, it is quick to make.
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
        **changes,
    )
    model = ChameleonForConditionalGeneration(form)
    model.model.vqmodel = None
    count = sum(p.numel() for p in model.parameters())
    assert count == m.parameters, f"two shapes: {count:,} and {m.parameters:,} parameters"
    return model

"""OpenAI's and OpenCLIP's CLIP, from a folder in Hugging Face layout.

    config.json  model.safetensors  tokenizer.json  [preprocessor_config.json]

Every tensor is used exactly once: one that is missing, left over or of another shape is an error
that names it. B batch, D width, N heads, H head size, L layers, E embedding.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax.checkpoint import fingerprint, from_names, save_network, write_json
from cm3leon_jax.config import Retriever
from cm3leon_jax.data.networks import CLIP_SHAPE, CLIP_TEXT
from cm3leon_jax.fields import require, to_dict
from cm3leon_jax.interop.cards import read_licence, write_card
from cm3leon_jax.interop.shards import Shards, read_json
from cm3leon_jax.models.clip import CLIP, DEVIATION, MEAN, embed_pictures, embed_texts
from cm3leon_jax.tokens.clip_text import ClipTokenizer

FIELDS = {  # ours: theirs, of vision_config and text_config
    "size": "vision_config.image_size",
    "patch": "vision_config.patch_size",
    "width": "vision_config.hidden_size",
    "layers": "vision_config.num_hidden_layers",
    "heads": "vision_config.num_attention_heads",
    "text_width": "text_config.hidden_size",
    "text_layers": "text_config.num_hidden_layers",
    "text_heads": "text_config.num_attention_heads",
    "text_tokens": "text_config.max_position_embeddings",
    "embedding": "projection_dim",
    "activation": "text_config.hidden_act",
}
TOWERS: dict[str, dict[str, Any]] = {  # what transformers takes where a file says nothing
    "vision_config": {
        "image_size": 224,
        "patch_size": 32,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
    },
}
BOTH: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class ImportedClip:
    """A network and the tokenizer of its texts."""

    network: CLIP
    text: ClipTokenizer

    @property
    def name(self) -> str:
        return f"imported {fingerprint(self.network)}"

    def pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors [B E] of pictures [B Y X 3]; not square: the middle square is taken."""
        side = min(pictures.shape[1:3])
        top, left = ((size - side) // 2 for size in pictures.shape[1:3])
        return embed_pictures(self.network, pictures[:, top : top + side, left : left + side])

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B E] of B texts; long ones lose their end."""
        return embed_texts(self.network, [self.text.encode(text) for text in texts])


def read_clip(folder: Path) -> ImportedClip:
    """The network in float32 and its tokenizer; ValueError for what is no such CLIP."""
    return _read(folder)[0]


def convert_clip(source: Path, target: Path) -> None:
    """Writes the folder of a network: `retriever/network` of a work directory, `clip` of a bundle.

    Its tokenizer stands beside it, and clip.json with the shape, which the experiment does not say.
    """
    clip, digests = _read(source)
    save_network(target, clip.network)
    write_json(target / CLIP_SHAPE, to_dict(clip.network.config))
    shutil.copyfile(source / "tokenizer.json", target / CLIP_TEXT)
    write_card(target, "A CLIP", source, digests, read_licence(source))


def _read(folder: Path) -> tuple[ImportedClip, dict[str, str]]:
    """The network and its tokenizer, and the sha256 of its files."""
    c, pieces = read_config(folder)
    _check_pictures(folder)
    text = ClipTokenizer.load(folder / "tokenizer.json")
    rule = f"has {text.pieces + 2} ids; use the tokenizer of this network"
    require(
        text.pieces == pieces,
        "config.json text_config.vocab_size",
        pieces + 2,
        f"tokenizer.json {rule}",
    )
    shards = Shards.open(folder)
    network = fill_clip(c, pieces, dict(shards.stream()))
    return ImportedClip(network, text), shards.sha256


def read_config(folder: Path) -> tuple[Retriever, int]:
    """The shape that config.json states, and the number of text pieces."""
    content = read_json(folder / "config.json")
    kind = content.get("model_type")
    require(kind == "clip", "config.json model_type", kind, "use a CLIP, 'clip'")
    whole: dict[str, Any] = {"projection_dim": content.get("projection_dim", 512)}
    for tower, standard in TOWERS.items():
        whole[tower] = BOTH | standard | (content.get(tower) or {})
        wide, wider = whole[tower]["hidden_size"], whole[tower]["intermediate_size"]
        rule = f"use a tower whose mlp is 4 x hidden_size = {4 * wide}"
        require(wider == 4 * wide, f"config.json {tower}.intermediate_size", wider, rule)
        epsilon = whole[tower]["layer_norm_eps"]
        require(epsilon == 1e-5, f"config.json {tower}.layer_norm_eps", epsilon, "use 1e-05")
    acts = [whole[tower]["hidden_act"] for tower in ("text_config", "vision_config")]
    require(acts[0] == acts[1], "config.json hidden_act", acts, "use one for both towers")
    found = {}
    for ours, theirs in FIELDS.items():
        tower, _, name = theirs.rpartition(".")
        found[ours] = whole[tower][name] if tower else whole[name]
    return Retriever(**found, dtype="float32"), whole["text_config"]["vocab_size"] - 2


def fill_clip(c: Retriever, pieces: int, tensors: Mapping[str, NDArray]) -> CLIP:
    """The network of tensors under Hugging Face's names; see the module for what is refused."""
    left = dict(tensors)

    def take(name: str, field: str, *shape: int) -> NDArray[np.float32]:
        require(name in left, "tensor", name, "is missing; use the whole checkpoint")
        array = left.pop(name)
        rule = f"config.json {field} asks for {shape}; the two must belong together"
        require(array.shape == shape, f"{name} shape", array.shape, rule)
        return np.asarray(array, np.float32)

    def norm(name: str, field: str, wide: int) -> dict[str, Any]:
        return {
            "scale": take(f"{name}.weight", field, wide),
            "bias": take(f"{name}.bias", field, wide),
        }

    def layer(name: str, tower: str, wide: int, heads: int) -> dict[str, Any]:
        field, head = f"{tower}.hidden_size", wide // heads

        def linear(part: str, out: int, inside: int) -> tuple[NDArray, NDArray]:
            weight = take(f"{name}.{part}.weight", field, out, inside)
            return weight.T, take(f"{name}.{part}.bias", field, out)

        each = [linear(f"self_attn.{part}_proj", wide, wide) for part in "qkv"]
        out, out_bias = linear("self_attn.out_proj", wide, wide)
        up, up_bias = linear("mlp.fc1", 4 * wide, wide)
        down, down_bias = linear("mlp.fc2", wide, 4 * wide)
        return {
            "query_key_value": np.concatenate(
                [weight.reshape(wide, heads, head) for weight, _ in each], axis=-1
            ),
            "query_key_value_bias": np.concatenate(
                [bias.reshape(heads, head) for _, bias in each], axis=-1
            ),
            "out": out.reshape(heads, head, wide),
            "out_bias": out_bias,
            "up": up,
            "up_bias": up_bias,
            "down": down,
            "down_bias": down_bias,
            "attention_norm": norm(f"{name}.layer_norm1", field, wide),
            "mlp_norm": norm(f"{name}.layer_norm2", field, wide),
        }

    def layers(model: str, tower: str, count: int, wide: int, heads: int) -> Any:
        each = [layer(f"{model}.encoder.layers.{i}", tower, wide, heads) for i in range(count)]
        return jax.tree.map(lambda *rows: np.stack(rows), *each)

    def positions(model: str, field: str, count: int, wide: int) -> NDArray[np.float32]:
        ids = left.pop(f"{model}.embeddings.position_ids", None)  # written by older versions
        holds = ids is None or np.array_equal(np.ravel(ids), np.arange(count))
        require(holds, f"{model}.embeddings.position_ids", None, f"must be 0 to {count - 1}")
        return take(f"{model}.embeddings.position_embedding.weight", field, count, wide)

    vision, text, size = "vision_config", "text_config", (c.size // c.patch) ** 2
    kernel = ("vision_model.embeddings.patch_embedding.weight", f"{vision}.patch_size")
    patches = take(*kernel, c.width, 3, c.patch, c.patch)
    first, field = "vision_model.embeddings.class_embedding", f"{vision}.hidden_size"
    table, sizes = "text_model.embeddings.token_embedding.weight", f"{text}.vocab_size"
    pictures = {
        "patch_embedding": patches.transpose(2, 3, 1, 0).reshape(-1, c.width),
        "class_token": take(first, field, c.width),
        "positions": positions("vision_model", f"{vision}.image_size", size + 1, c.width),
        "first_norm": norm("vision_model.pre_layrnorm", field, c.width),
        "layers": layers("vision_model", vision, c.layers, c.width, c.heads),
        "final_norm": norm("vision_model.post_layernorm", field, c.width),
        "projection": take("visual_projection.weight", "projection_dim", c.embedding, c.width).T,
    }
    wide, longest = c.text_width, f"{text}.max_position_embeddings"
    words = {
        "embedding": take(table, sizes, pieces + 2, wide),
        "positions": positions("text_model", longest, c.text_tokens, wide),
        "layers": layers("text_model", text, c.text_layers, wide, c.text_heads),
        "final_norm": norm("text_model.final_layer_norm", f"{text}.hidden_size", wide),
        "projection": take("text_projection.weight", "projection_dim", c.embedding, wide).T,
    }
    named = {"image": pictures, "text": words, "log_scale": take("logit_scale", "a number")}
    require(not left, "tensor", min(left, default=""), "is no part of a CLIP; use its own file")
    form = jax.eval_shape(lambda: CLIP(c, pieces, rngs=nnx.Rngs(0)))
    return from_names(form, jax.tree.map(jnp.asarray, named))


def _check_pictures(folder: Path) -> None:
    """Raises ValueError where pictures are normalised in another way than ours."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return
    content = read_json(path)
    for name, ours in (("image_mean", MEAN), ("image_std", DEVIATION)):
        there = content.get(name, ours)
        holds = len(there) == 3 and np.allclose(there, ours, atol=1e-6)
        require(holds, f"{path.name} {name}", there, f"use a CLIP of OpenAI's pixels, {ours}")

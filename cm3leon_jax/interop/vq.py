"""Image tokenizers of others: taming-transformers' VQGAN and Gumbel, LlamaGen's VQ, diffusers'
VQModel, and the one inside Chameleon. All are the network of `models.vqgan` under other names.

A family says how it names our arrays; what the config makes (`jax.eval_shape`) is then exactly
what the file must hold. Its kernels are [outputs inputs y x], ours [y x inputs outputs].
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from cm3leon_jax import checkpoint, config
from cm3leon_jax.fields import require
from cm3leon_jax.interop.shards import Shape, Shards, read_json
from cm3leon_jax.models.vqgan import VQGAN

Arrays = dict[str, NDArray[Any]]
OWN = ("quantizer.credit", "quantizer.uses")  # moving averages of training, which nobody else keeps
SIZE = 256  # pixels a side where a file does not say: that of the published models
FIELDS = "the config's channels, multipliers, blocks and codes"


@dataclass(frozen=True)
class Row:
    """One array under its two names."""

    theirs: str
    ours: str
    shape: Shape  # ours

    @property
    def their_shape(self) -> Shape:
        """Shape in their file."""
        if len(self.shape) == 4 and re.search(r"\.to_(q|k|v|out\.0)\.", self.theirs):
            return self.shape[3], self.shape[2]
        if len(self.shape) == 4:
            return self.shape[3], self.shape[2], *self.shape[:2]
        if self.theirs.endswith("quantize.proj.weight"):
            return *self.shape[::-1], 1, 1
        return self.shape

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """Their numbers as ours."""
        if array.ndim == 4 and len(self.shape) == 2:
            return array[:, :, 0, 0].T
        if len(self.shape) == 4:
            return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T[None, None]
        return array

    def give(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `take`, for the families that are exported."""
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


@dataclass(frozen=True)
class Family:
    """How one library names the arrays, as patterns of our names and what to write instead."""

    names: tuple[tuple[str, str], ...]
    is_it: Callable[[Iterable[str]], bool]
    dropped: tuple[str, ...] = ()  # prefixes of what only its training needs
    normalize: bool = False
    level: str = ""  # its name of an encoder level, then {level}, then that of a block


ENDS = ((r"\.(kernel|scale)$", ".weight"), (r"quantizer\.codes$", "quantize.embedding.weight"))
PARTS = (
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"(attn[._]\w+|attn|mid\.\d)\.out\.", r"\1.proj_out."),
    (r"\.shortcut\.", ".nin_shortcut."),
)
TAMING = Family(
    (
        (r"encoder\.levels\.(\d+)\.blocks", r"encoder.down.\1.block"),
        (r"encoder\.levels\.(\d+)\.attentions", r"encoder.down.\1.attn"),
        (r"encoder\.downs\.(\d+)", r"encoder.down.\1.downsample.conv"),
        (r"decoder\.levels\.(\d+)\.blocks", r"decoder.up.-\1.block"),
        (r"decoder\.levels\.(\d+)\.attentions", r"decoder.up.-\1.attn"),
        (r"decoder\.ups\.(\d+)", r"decoder.up.-\1.upsample.conv"),
        (r"middle\.block(\d)", r"mid.block_\1"),
        (r"middle\.attention", "mid.attn_1"),
        (r"quantizer\.scores", "quantize.proj"),
        *PARTS,
        *ENDS,
    ),
    lambda names: any(name.startswith("encoder.down.") for name in names),
    dropped=("loss.",),
    level="encoder.down.{level}.block.",
)
LLAMAGEN = Family(
    (
        (r"levels\.(\d+)\.blocks", r"conv_blocks.\1.res"),
        (r"levels\.(\d+)\.attentions", r"conv_blocks.\1.attn"),
        (r"downs\.(\d+)", r"conv_blocks.\1.downsample.conv"),
        (r"ups\.(\d+)", r"conv_blocks.\1.upsample.conv"),
        (r"middle\.block1", "mid.0"),
        (r"middle\.attention", "mid.1"),
        (r"middle\.block2", "mid.2"),
        *PARTS,
        *ENDS,
    ),
    lambda names: any(name.startswith("encoder.conv_blocks.") for name in names),
    dropped=("quantize.codebook_used",),
    normalize=True,
    level="encoder.conv_blocks.{level}.res.",
)
DIFFUSERS = Family(
    (
        (r"encoder\.levels\.(\d+)\.blocks", r"encoder.down_blocks.\1.resnets"),
        (r"encoder\.levels\.(\d+)", r"encoder.down_blocks.\1"),
        (r"encoder\.downs\.(\d+)", r"encoder.down_blocks.\1.downsamplers.0.conv"),
        (r"decoder\.levels\.(\d+)\.blocks", r"decoder.up_blocks.\1.resnets"),
        (r"decoder\.levels\.(\d+)", r"decoder.up_blocks.\1"),
        (r"decoder\.ups\.(\d+)", r"decoder.up_blocks.\1.upsamplers.0.conv"),
        (r"middle\.block1", "mid_block.resnets.0"),
        (r"middle\.block2", "mid_block.resnets.1"),
        (r"middle\.attention", "mid_block.attentions.0"),
        (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"(attentions\.\d)\.out\.", r"\1.to_out.0."),
        (r"\.shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
        *ENDS,
    ),
    lambda names: any(name.startswith("encoder.down_blocks.") for name in names),
)
FAMILIES = {"taming": TAMING, "llamagen": LLAMAGEN, "diffusers": DIFFUSERS}


def rows(family: Family, c: config.ImageTokenizer, prefix: str = "") -> list[Row]:
    """Every array of the network of this config but `OWN`, with its name in the family."""
    last = len(c.multipliers) - 1

    def turn(found: re.Match[str]) -> str:
        return f".{last - int(found[1])}."  # taming counts its decoder's levels from the fine ones

    made = []
    for ours, shape in _shapes(c).items():
        if ours in OWN:
            continue
        theirs = ours
        for pattern, name in family.names:
            theirs = re.sub(pattern, name, theirs)
        if c.quantizer == "gumbel":
            theirs = theirs.replace("quantize.embedding", "quantize.embed")
        theirs = re.sub(r"\.-(\d+)\.", turn, theirs)
        made.append(Row(prefix + theirs, ours, shape))
    return made


def complete(arrays: Arrays, c: config.ImageTokenizer) -> dict[str, Any]:
    """Nested dict of a whole network, ready for `save_named`, from arrays by dotted names."""
    named: dict[str, Any] = {}
    own = {"quantizer.credit": np.ones, "quantizer.uses": np.zeros}
    for name, array in (arrays | {name: own[name](c.codes, np.float32) for name in OWN}).items():
        *parents, last = name.split(".")
        node = named
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return named


def find_family(names: Iterable[str]) -> str | None:
    """Which family a file's names are of, if any."""
    return next((key for key, family in FAMILIES.items() if family.is_it(names)), None)


def read_tokenizer(
    source: Path, size: int | None = None
) -> tuple[config.ImageTokenizer, dict[str, Any], dict[str, str]]:
    """Config, network and the files' sha256 of a safetensors file, or of a folder of diffusers.

    size: pixels a side of the pictures, where the file does not say; attention stands at sides of
    the grid, so that it must be that of training. Raises ValueError naming what does not fit.
    """
    shards = Shards.open(source)
    name = find_family(shards.tensors)
    rule = f"its tensors have names of none of {', '.join(FAMILIES)}; give one of those"
    require(name is not None, "convert", str(source), rule)
    assert name is not None
    family = FAMILIES[name]
    dropped = [tensor for tensor in shards.tensors if tensor.startswith(family.dropped or ("\0",))]
    kept = {name: t.shape for name, t in shards.tensors.items() if name not in dropped}
    is_diffusers = name == "diffusers"
    c = _from_json(read_json(_beside(source))) if is_diffusers else _from_shapes(family, kept, size)
    require(size in (None, c.size), "size", size, f"config.json says {c.size}: leave it out")
    table = {row.theirs: row for row in rows(family, c)}
    wanted = {theirs: (row.their_shape,) for theirs, row in table.items()}
    wanted |= {name: (shards.tensors[name].shape,) for name in dropped}
    shards.check(wanted, dict.fromkeys(wanted, FIELDS))
    arrays = {
        table[name].ours: table[name].take(array).astype(np.float32)
        for name, array in shards.stream()
        if name in table
    }
    return c, complete(arrays, c), shards.sha256


@cache  # tracing the network takes half a second
def _shapes(c: config.ImageTokenizer) -> dict[str, Shape]:
    """Shapes of our network by dotted names."""
    form = jax.eval_shape(lambda key: VQGAN(c, rngs=nnx.Rngs(key)), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.to_names(form))
    join = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    return {join(path): leaf.shape for path, leaf in leaves}


def _from_shapes(
    family: Family, shapes: Mapping[str, Shape], size: int | None
) -> config.ImageTokenizer:
    """The config that gives a file of taming or LlamaGen its shapes."""

    def shape(name: str) -> Shape:
        if name not in shapes:
            raise ValueError(f"tensor {name}: is missing; give the whole image tokenizer")
        return shapes[name]

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in shapes)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    start, block = (re.escape(part) for part in family.level.split("{level}"))
    levels, blocks = count(rf"{start}(\d+)\."), count(rf"{start}0{block}(\d+)\.")
    channels = shape("encoder.conv_in.weight")[0]
    outputs = [shape(f"{family.level}0.conv1.weight".format(level=i))[0] for i in range(levels)]
    rule = f"must be multiples of the first layer's {channels} channels"
    require(all(n % channels == 0 for n in outputs), "encoder channels", outputs, rule)
    side = size or SIZE
    attn = family.level.split("{level}")[0]
    attention = [i for i in range(levels) if f"{attn}{i}.attn.0.q.weight" in shapes]
    is_gumbel = "quantize.proj.weight" in shapes
    codes, width = shape(f"quantize.{'embed' if is_gumbel else 'embedding'}.weight")
    return config.ImageTokenizer(
        size=side,
        channels=channels,
        multipliers=tuple(n // channels for n in outputs),
        blocks=blocks,
        attention=tuple(side >> i for i in attention),
        latent=shape("encoder.conv_out.weight")[0],
        codes=codes,
        width=width,
        normalize=family.normalize,
        quantizer="gumbel" if is_gumbel else "gradient",
    )


def _from_json(c: Mapping[str, Any]) -> config.ImageTokenizer:
    """The config of diffusers' VQModel."""
    rules = {"_class_name": "VQModel", "act_fn": "silu", "norm_type": "group", "in_channels": 3}
    rules |= {"out_channels": 3, "mid_block_add_attention": True, "lookup_from_codebook": False}
    for name, value in rules.items():
        require(c.get(name, value) == value, name, c.get(name), f"only {value!r} is read")
    try:
        outputs, down, up = c["block_out_channels"], c["down_block_types"], c["up_block_types"]
        latent, side = c["latent_channels"], c["sample_size"]
        kinds = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
        attends = [kinds[kind] for kind in down]
        mirror = [{True: "AttnUpDecoderBlock2D", False: "UpDecoderBlock2D"}[a] for a in attends]
        require(list(up) == mirror[::-1], "up_block_types", up, f"only {mirror[::-1]} is read")
        rule = f"must be multiples of the first, {outputs[0]}"
        require(all(n % outputs[0] == 0 for n in outputs), "block_out_channels", outputs, rule)
        return config.ImageTokenizer(
            size=side,
            channels=outputs[0],
            multipliers=tuple(n // outputs[0] for n in outputs),
            blocks=c["layers_per_block"],
            attention=tuple(side >> i for i, attend in enumerate(attends) if attend),
            groups=c["norm_num_groups"],
            latent=latent,
            codes=c["num_vq_embeddings"],
            width=c.get("vq_embed_dim") or latent,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json: {error} is no field of a VQModel that is read") from error


def _beside(source: Path) -> Path:
    return (source if source.is_dir() else source.parent) / "config.json"

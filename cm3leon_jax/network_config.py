"""The networks of an experiment and how each of them is trained; `config` has the rest.

Every rule is checked at construction and every message names the field, its value, the rule and
the fix.
"""

import typing
from dataclasses import dataclass, field
from typing import Literal

from cm3leon_jax.fields import require, require_choice


@dataclass(frozen=True)
class Model:
    """The decoder-only transformer. Defaults are CM3Leon's (paper section 2.2, table 3).

    The id space is [specials | text pieces | image codes]; the paper's sizes fill 65,536.
    """

    layers: int = 24
    width: int = 1024
    heads: int = 16
    kv_heads: int = 0  # 0: as many as heads
    mlp: int = 4096
    context: int = 4096
    specials: int = 1024  # <pad> <eos> <unk> <break> <eoss>, the sentinels, reserved ids
    sentinels: int = 512
    text_pieces: int = 56_320
    image_codes: int = 8192
    image_tokens: int = 1024  # codes per image, a square raster
    documents: Literal["cm3leon", "chameleon"] = "cm3leon"  # how prompts are put: `tokens.document`
    activation: Literal["relu", "gelu", "swiglu"] = "gelu"  # not stated in the paper
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_affine: bool = False
    norm_placement: Literal["before", "after"] = "before"  # of the sub-layer, inside the residual
    qk_norm: bool = False
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10_000.0
    code_positions: bool = False  # adds to a code a learned vector of its place in its image
    code_features: int = 0  # width of the tokenizer's codebook vectors in code embeddings; 0: off
    tie_embeddings: bool = True  # as OPT; not stated in the paper
    init_std: float = 0.006
    position_std: float = 0.0002
    init_residual: Literal["zero", "scaled"] = "zero"  # outputs of attention and mlp
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the computation; parameters are float32
    # What the backward pass computes again: nothing, the cheap part (products stay, on the chip or,
    # with offload, in the host's memory), or whole layers.
    remat: Literal["none", "minimal", "offload", "full"] = "full"
    quantize: Literal["none", "int8"] = "none"  # of the layers' products in training, by Qwix
    loss_chunk: int = 512  # positions per step of the chunked cross-entropy

    def __post_init__(self) -> None:
        sizes = ("layers", "width", "heads", "mlp", "context", "image_tokens", "loss_chunk")
        for name in (*sizes, "sentinels", "image_codes", "init_std"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "must be > 0")
        rule = f"must be at least 5 + model.sentinels = {5 + self.sentinels}"
        require(self.specials >= 5 + self.sentinels, "model.specials", self.specials, rule)
        rule = "must be at least 17: the text tokenizer's own pieces, and one letter"
        require(self.text_pieces >= 17, "model.text_pieces", self.text_pieces, rule)
        kinds = ("activation", "norm", "norm_placement", "positions", "dtype", "remat", "quantize")
        for name in kinds:
            choices = typing.get_args(typing.get_type_hints(Model)[name])
            require_choice(f"model.{name}", getattr(self, name), choices)
        require_choice("model.init_residual", self.init_residual, ("zero", "scaled"))
        require_choice("model.documents", self.documents, ("cm3leon", "chameleon"))
        rule = f"needs a special behind the sentinels: model.specials > {5 + self.sentinels}"
        holds = self.documents == "cm3leon" or self.specials > 5 + self.sentinels
        require(holds, "model.documents", self.documents, rule)
        divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - self.heads))[:4]
        rule = f"must divide model.width={self.width}; use one of {sorted(nearest)}"
        require(self.width % self.heads == 0, "model.heads", self.heads, rule)
        rule = f"must be 0 or divide model.heads={self.heads}"
        divides = self.kv_heads == 0 or (self.kv_heads > 0 and self.heads % self.kv_heads == 0)
        require(divides, "model.kv_heads", self.kv_heads, rule)
        rule = "rotary positions need an even width / heads"
        even = self.positions != "rotary" or self.head_size % 2 == 0
        require(even, "model.positions", self.positions, rule)
        side = round(self.image_tokens**0.5)
        rule = f"an image is a square raster; use {side**2} or {(side + 1) ** 2}"
        require(side**2 == self.image_tokens, "model.image_tokens", self.image_tokens, rule)
        rule = "must leave room for <eos> text <break> image <eos>: context >= image_tokens + 8"
        require(self.context >= self.image_tokens + 8, "model.context", self.context, rule)

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def vocabulary(self) -> int:
        return self.specials + self.text_pieces + self.image_codes

    @property
    def parameters(self) -> int:
        """Number of trained parameters, from the shapes alone."""
        kv_width = (self.kv_heads or self.heads) * self.head_size
        attention = 2 * self.width**2 + 2 * self.width * kv_width
        mlp = (3 if self.activation == "swiglu" else 2) * self.width * self.mlp
        norms = 2 * self.width * (1 if self.norm == "rmsnorm" else 2) if self.norm_affine else 0
        qk_norm = (
            2 * self.head_size * (self.heads + (self.kv_heads or self.heads)) if self.qk_norm else 0
        )
        tables = self.vocabulary * self.width * (1 if self.tie_embeddings else 2)
        tables += self.context * self.width if self.positions == "learned" else 0
        tables += self.image_tokens * self.width if self.code_positions else 0
        tables += self.code_features * self.width
        return self.layers * (attention + mlp + norms + qk_norm) + tables + norms // 2

    def train_flops(self, length: int) -> float:
        """FLOPs per token of a training step on rows of `length`: forward, and twice that back.

        Six for each weight of a matrix product, the head among them, and 6 L D T for causal
        attention, which is half of the square. What remat computes again is not counted.
        """
        kv_width = (self.kv_heads or self.heads) * self.head_size
        mlp = (3 if self.activation == "swiglu" else 2) * self.width * self.mlp
        layer = 2 * self.width**2 + 2 * self.width * kv_width + mlp
        weights = self.layers * layer + self.vocabulary * self.width
        return 6.0 * weights + 6.0 * self.layers * self.width * length


@dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon, warmup, decay. Defaults: the nearest evidence (scaling-law paper, OPT)."""

    learning_rate: float = 6e-4
    warmup_steps: int = 1500
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    end_fraction: float = 0.1  # of the peak, reached at the last step
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global gradient norm; 0: off
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment
    skip_above: float = 0.0  # skips updates of a gradient norm above this times its mean; 0: none
    matrices: Literal["adam", "muon"] = "adam"  # what updates the matrices of the layers

    def __post_init__(self) -> None:
        rule = "must be > 0 and finite"
        holds = 0 < self.learning_rate < float("inf")
        require(holds, "optimizer.learning_rate", self.learning_rate, rule)
        require_choice("optimizer.matrices", self.matrices, ("adam", "muon"))
        require_choice("optimizer.schedule", self.schedule, ("linear", "cosine", "constant"))
        require_choice("optimizer.moment_dtype", self.moment_dtype, ("float32", "bfloat16"))
        for name in ("warmup_steps", "epsilon", "weight_decay", "clip"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), ">= 0")
        holds = self.skip_above == 0 or self.skip_above > 1
        require(holds, "optimizer.skip_above", self.skip_above, "must be 0 (off) or > 1")
        rule = "must be >= 0 and <= 1"
        require(0 <= self.end_fraction <= 1, "optimizer.end_fraction", self.end_fraction, rule)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, "must be >= 0 and < 1")


@dataclass(frozen=True)
class Train:
    """Length, batch and rhythm of one training run."""

    steps: int = 175_000
    batch: int = 1953  # rows (or images) per step, over all devices and accumulation steps
    accumulate: int = 1  # gradient accumulation steps
    seed: int = 0
    log_every: int = 10
    sample_every: int = 1000  # picture grids and held-out loss in TensorBoard
    save_every: int = 1000
    keep: int = 3  # checkpoints
    start_from: str = ""  # bundle or run whose parameters a new run starts with; empty: random
    hang_seconds: int = 1800  # without a finished step end a process that hangs; 0: wait for ever

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "keep"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be > 0")
        for name in ("sample_every", "save_every"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be > 0")
        for name in ("seed", "hang_seconds"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be >= 0")
        rule = f"must be a multiple of train.log_every={self.log_every}: a resumed log is whole"
        require(self.save_every % self.log_every == 0, "train.save_every", self.save_every, rule)
        rule = f"must be a multiple of train.accumulate={self.accumulate}"
        require(self.batch % self.accumulate == 0, "train.batch", self.batch, rule)


def _check_training(network: str, train: Train, optimizer: Optimizer) -> None:
    """Refuses what the stages of the other networks would pass over."""
    for name, value, usual in (
        ("train.accumulate", train.accumulate, 1),
        ("train.start_from", train.start_from, ""),
        ("optimizer.matrices", optimizer.matrices, "adam"),
    ):
        rule = f"only the transformer has it; use {usual!r}"
        require(value == usual, f"{network}.{name}", value, rule)


@dataclass(frozen=True)
class ImageTokenizer:
    """The VQGAN that turns images into codes, and how it is trained.

    The defaults are the shape of the Make-A-Scene descendant that Chameleon published (256 px,
    f=8 gives the paper's 1,024 tokens of 8,192 codes). Training values that the paper does not
    state are LlamaGen's and taming's and stay configuration.
    """

    size: int = 256  # pixels per side, square
    encoder: Literal["convolutional", "patch"] = "convolutional"  # patch: a code sees its own only
    patch: int = 1  # pixels per side that the first layer reads as channels; 1 = taming
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)  # per level; each further level halves the grid
    blocks: int = 2  # residual blocks per encoder level; the decoder has one more
    attention: tuple[int, ...] = ()  # grid sides at which blocks are followed by attention
    groups: int = 32  # of GroupNorm
    latent: int = 256  # channels between encoder/decoder and the 1x1 convolutions
    codes: int = 8192
    width: int = 256  # of a code
    normalize: bool = False  # codes and latents on the unit sphere
    # How codes move; gumbel: a layer scores them (read from others, not trained).
    quantizer: Literal["gradient", "ema", "gumbel"] = "gradient"
    decay: float = 0.98  # of the moving averages of code usage and, with "ema", of the codes
    restart: float = 0.03  # a code used less than this times the mean moves to a latent; 0: never
    bypass: float = 0.0  # share of the steps, from the first, in which fewer and fewer latents skip
    squared: float = 0.0  # loss weights: L2
    absolute: float = 1.0  # L1
    commitment: float = 0.25
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 20_000  # step
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            1e-4, warmup_steps=1000, schedule="cosine", end_fraction=0.01, beta2=0.95
        )
    )
    train: Train = field(default_factory=lambda: Train(steps=400_000, batch=128))

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.size // self.factor

    def __post_init__(self) -> None:
        def check(holds: bool, field: str, rule: str) -> None:
            require(holds, f"image_tokenizer.{field}", getattr(self, field), rule)

        positive = ("size", "patch", "channels", "blocks", "groups", "latent", "codes", "width")
        for name in (*positive, "discriminator_channels", "discriminator_layers"):
            check(getattr(self, name) >= 1, name, "must be >= 1")
        holds = len(self.multipliers) > 0 and min(self.multipliers) >= 1
        check(holds, "multipliers", "give one number >= 1 per level")
        rule = f"must be a multiple of patch * 2 ** (levels - 1) = {self.factor} pixels per token"
        check(self.size % self.factor == 0, "size", rule)
        for multiplier in self.multipliers:
            channels = self.channels * multiplier
            rule = f"must divide every level, also {channels}"
            check(channels % self.groups == 0, "groups", rule)
        sides = [self.size // self.patch >> level for level in range(len(self.multipliers))]
        check(set(self.attention) <= set(sides), "attention", f"must be among grid sides {sides}")
        require_choice("image_tokenizer.encoder", self.encoder, ("convolutional", "patch"))
        quantizers = ("gradient", "ema", "gumbel")
        require_choice("image_tokenizer.quantizer", self.quantizer, quantizers)
        for name in ("decay", "restart", "bypass"):
            check(0 <= getattr(self, name) < 1, name, "must be >= 0 and < 1")
        weights = ("squared", "absolute", "commitment", "perceptual", "adversarial")
        for name in (*weights, "adversarial_start"):
            check(getattr(self, name) >= 0, name, "must be >= 0")
        check(self.squared + self.absolute > 0, "absolute", "must be > 0 where squared is 0")
        _check_training("image_tokenizer", self.train, self.optimizer)


@dataclass(frozen=True)
class Retriever:
    """The two-tower text and image encoder that finds documents and ranks samples.

    The defaults are the shape of CLIP ViT-B/32, which the paper uses (section 2.1); the training
    values are CLIP's for a smaller batch.
    """

    size: int = 224  # pixels per side, square
    patch: int = 32  # pixels per side of one token
    width: int = 768
    layers: int = 12
    heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_tokens: int = 77  # longest text with its start and end; longer ones are cut
    embedding: int = 512  # numbers of a vector
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # OpenAI's; OpenCLIP's own networks
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the computation
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            5e-4, warmup_steps=2000, schedule="cosine", end_fraction=0.0, epsilon=1e-6
        )
    )
    train: Train = field(default_factory=lambda: Train(steps=50_000, batch=4096))

    def __post_init__(self) -> None:
        def check(holds: bool, field: str, rule: str) -> None:
            require(holds, f"retriever.{field}", getattr(self, field), rule)

        widths = ("width", "heads", "text_width", "text_heads", "embedding")
        for name in ("size", "patch", "layers", "text_layers", *widths):
            check(getattr(self, name) >= 1, name, "must be >= 1")
        check(self.size % self.patch == 0, "patch", f"must divide retriever.size={self.size}")
        for prefix in ("", "text_"):
            width = getattr(self, f"{prefix}width")
            rule = f"must divide retriever.{prefix}width={width}"
            check(width % getattr(self, f"{prefix}heads") == 0, f"{prefix}heads", rule)
        check(self.text_tokens >= 3, "text_tokens", "must hold a start, a piece and an end")
        require_choice("retriever.dtype", self.dtype, ("bfloat16", "float32"))
        require_choice("retriever.activation", self.activation, ("quick_gelu", "gelu"))
        _check_training("retriever", self.train, self.optimizer)


@dataclass(frozen=True)
class Upscaler:
    """The super-resolution stage, an RRDB network, and how it is trained.

    The defaults are the shape of RealESRGAN_x4plus and the crops, batch, rate and two phases of
    its paper (arXiv 2107.10833, section 4.1).
    """

    scale: int = 4
    channels: int = 64
    growth: int = 32  # channels that each convolution of a dense group adds
    blocks: int = 23
    crop: int = 256  # pixels per side of what it learns to draw
    sample: int = 3000  # pictures held in memory, each scale * image_tokenizer.size pixels wide
    # How they become small: by an antialiased bicubic resize alone, or as damaged pictures do.
    degradation: Literal["none", "first_order", "second_order"] = "second_order"
    perceptual: float = 0.0  # loss weights beside that of L1, which is 1
    adversarial: float = 0.0
    adversarial_start: int = 1_000_000  # step
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            2e-4, warmup_steps=0, schedule="constant", beta2=0.99, weight_decay=0.0
        )
    )
    train: Train = field(default_factory=lambda: Train(steps=1_400_000, batch=48))

    def __post_init__(self) -> None:
        def check(holds: bool, field: str, rule: str) -> None:
            require(holds, f"upscaler.{field}", getattr(self, field), rule)

        require_choice("upscaler.scale", self.scale, (4, 2))
        for name in ("channels", "growth", "blocks", "crop", "sample"):
            check(getattr(self, name) >= 1, name, "must be >= 1")
        for name in ("discriminator_channels", "discriminator_layers"):
            check(getattr(self, name) >= 1, name, "must be >= 1")
        check(self.channels >= 3, "channels", "must be >= 3: they begin as the colours")
        check(self.crop % 4 == 0, "crop", "must be a multiple of 4")
        kinds = ("none", "first_order", "second_order")
        require_choice("upscaler.degradation", self.degradation, kinds)
        for name in ("perceptual", "adversarial", "adversarial_start"):
            check(getattr(self, name) >= 0, name, "must be >= 0")
        _check_training("upscaler", self.train, self.optimizer)

"""Our transformer as a T5X model: `python -m t5x.train` trains, evaluates and decodes it.

T5X sees nested dicts of arrays under our names. Its modules come from the caller, so that nothing
here needs T5X but `build_model`, which gin calls.
B batch, T positions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cm3leon_jax.checkpoint import from_names, read_experiment, to_names
from cm3leon_jax.config import Experiment, Mesh
from cm3leon_jax.data.networks import open_image_tokenizer, open_text
from cm3leon_jax.decoding.drawing import Drawer
from cm3leon_jax.decoding.engine import Prompts, draw_codes, draw_text
from cm3leon_jax.decoding.logits import Guidance
from cm3leon_jax.decoding.prompts import UNKNOWN, prompt
from cm3leon_jax.fields import require, require_choice
from cm3leon_jax.models.losses import TokenLoss, row_losses
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, MASK_START, Vocabulary
from cm3leon_jax.training.optimizer import make_optimizer, make_schedule
from cm3leon_jax.training.step import token_loss

Batch = Mapping[str, jax.Array]

# Our logical axes in T5X's standard set; those that are not here are never split.
AXES = {
    "embed": "embed",
    "vocab": "vocab",
    "heads": "heads",
    "kv_heads": "heads",
    "head": "kv",
    "mlp": "mlp",
    "seq": "length",
    "layers": "layers",
}
KINDS = ("image", "text")


def network_form(c: Experiment) -> Transformer:
    """The network without its arrays."""
    return jax.eval_shape(lambda: Transformer(c.model, rngs=nnx.Rngs(0)))


def axis_names(form: Transformer) -> dict[str, Any]:
    """T5X's axis names of every parameter, nested as `to_names` nests the parameters.

    Raises ValueError for a parameter that does not say what its axes are.
    """
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(form, is_leaf=is_variable)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        axes = leaf.get_metadata().get("axes")
        *parents, last = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        require(axes is not None, "axes", "/".join((*parents, last)), "give the parameter axes")
        node = named
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = tuple(AXES.get(axis) if axis else None for axis in axes)
    return named


def model_class(models: Any, metrics: Any, converter: Any) -> Any:
    """The subclass of `models.BaseTransformerModel`.

    models: `t5x.models`; metrics: `clu.metrics`; converter: `seqio_features.feature_converter()`.
    """

    class CM3LeonModel(models.BaseTransformerModel):  # type: ignore[misc, name-defined]
        """See `__init__`; batches are those of the converter, all [B T]."""

        FEATURE_CONVERTER_CLS = converter

        def __init__(
            self,
            experiment: Experiment,
            optimizer_def: Any,
            vocabulary: Any,
            pieces: int,
            kind: str = "image",
            tokens: float | None = None,
            codebook: jax.Array | None = None,
        ) -> None:
            """pieces: of the text tokenizer. kind: what `predict_batch` draws, an image or a text.

            tokens: of a batch, which its summed loss is divided by; by default those of
            `train.batch` full rows. codebook: as in `Transformer`.
            """
            require_choice("kind", kind, KINDS)
            super().__init__(None, vocabulary, vocabulary, optimizer_def)
            self.experiment, self.pieces, self.kind = experiment, pieces, kind
            self.tokens = tokens or experiment.train.batch * experiment.data.row_length
            self.codebook, self.form = codebook, network_form(experiment)

        def network(self, params: Any) -> Transformer:
            return from_names(self.form, params)

        def get_initial_variables(
            self, rng: jax.Array, input_shapes: Any, input_types: Any = None
        ) -> Any:
            from flax.core import freeze
            from flax.linen.partitioning import AxisMetadata

            del input_shapes, input_types  # the parameters do not depend on them
            typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
            key = rng if typed else jax.random.wrap_key_data(rng)
            model = Transformer(self.experiment.model, rngs=nnx.Rngs(key), codebook=self.codebook)

            def describe(node: Any) -> Any:
                if isinstance(node, tuple):
                    return AxisMetadata(names=node)
                is_leaf = lambda child: isinstance(child, tuple)  # noqa: E731
                return {
                    f"{name}_axes" if is_leaf(child) else name: describe(child)
                    for name, child in node.items()
                }

            axes = describe(axis_names(self.form))
            return freeze({"params": to_names(model), "params_axes": axes})

        def loss_fn(self, params: Any, batch: Batch, dropout_rng: Any) -> tuple[jax.Array, Any]:
            """The loss of training, summed over tokens and divided by a constant.

            So gradients of microbatches add up to that of the batch. Nothing is dropped out.
            """
            sums = token_loss(self.experiment, self.network(params), dict(batch))
            total = sums.total + self.experiment.objective.z_loss * sums.z_total
            return total / self.tokens, _means(metrics, sums)

        def _compute_logits(self, params: Any, batch: Batch, dropout_rng: Any = None) -> jax.Array:
            """float32 [B T V]; `loss_fn` never holds so many at once."""
            model = self.network(params)
            hidden = model(*(batch[name] for name in INPUTS))
            head = model.head_table()
            return jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)

        def score_batch(
            self, params: Any, batch: Batch, return_intermediates: bool = False
        ) -> jax.Array:
            """Weighted log-likelihoods of the rows, [B]."""
            rule = "use False: the network keeps none"
            require(not return_intermediates, "return_intermediates", return_intermediates, rule)
            model = self.network(params)
            hidden = model(*(batch[name] for name in INPUTS))
            chunk = self.experiment.model.loss_chunk
            target = batch["targets"], batch["weights"]
            sums = row_losses(hidden, model.head_table(), *target, model.image_start, chunk)
            return -sums.total

        def predict_batch_with_aux(
            self,
            params: Any,
            batch: Batch,
            rng: jax.Array | None = None,
            *,
            num_decodes: int = 1,
            temperature: float | None = None,
            top_p: float | None = None,
            top_k: int | None = None,
            guidance: float | None = None,
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            """Joint ids drawn after each row's prompt, [B count] or [B num_decodes count].

            Of an image, all its codes; the prompt is what stands before the row's first code. Of a
            text, up to `decode.text_tokens` ids, zeros behind its end; the prompt ends in the row's
            last `<break>` or sentinel. Settings left out come from config `decode`; texts are not
            guided. aux: `prompt_tokens` [B].
            """
            c, model = self.experiment, self.network(params).for_decoding()
            drawer = Drawer(model, self.pieces, c.decode)
            rng = jax.random.key(0) if rng is None else rng
            rows = len(batch["tokens"]) * num_decodes
            keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(rows))
            if self.kind == "text":
                prompts = text_prompts(batch, c)
                sampling = drawer.text_sampling(temperature)
                given = model, prompts, keys, sampling, Guidance(), c.decode.text_tokens
                drawn = draw_text(*given, self.pieces, closings=(EOSS, EOS, BREAK))
            else:
                prompts = image_prompts(batch, c)
                scale = c.decode.guidance if guidance is None else guidance
                by = Guidance() if scale == 1 else Guidance(text=jnp.float32(scale))
                sampling = drawer.image_sampling(temperature, top_p, top_k)
                both = prompts if scale == 1 else with_unconditional(prompts, c)
                codes = draw_codes(model, both, keys, sampling, by, c.model.image_tokens)
                drawn = codes + model.image_start
            used = jnp.asarray(batch["tokens"].shape[1] - prompts.start)
            if num_decodes > 1:
                drawn = drawn.reshape(-1, num_decodes, drawn.shape[-1])
            return drawn, {"prompt_tokens": used}

    return CM3LeonModel


INPUTS = ("tokens", "segments", "positions", "codes_at")


def image_prompts(batch: Batch, c: Experiment) -> Prompts:
    """What stands before each row's first code; of a row without one, what leaves room for it."""
    tokens = batch["tokens"]
    is_code = tokens >= c.model.specials + c.model.text_pieces
    whole = (tokens > 0).sum(1)
    before = jnp.where(is_code.any(1), is_code.argmax(1), whole)
    return _cut(batch, jnp.minimum(before, c.model.context - c.model.image_tokens))


def text_prompts(batch: Batch, c: Experiment) -> Prompts:
    """Each row up to its last `<break>` or sentinel; one that has neither, whole."""
    tokens = batch["tokens"]
    is_sentinel = (tokens >= MASK_START) & (tokens < c.model.specials)
    ends = is_sentinel | (tokens == BREAK)
    length = tokens.shape[1]
    last = length - ends[:, ::-1].argmax(1)
    whole = (tokens > 0).sum(1)
    room = c.model.context - c.decode.text_tokens
    return _cut(batch, jnp.minimum(jnp.where(ends.any(1), last, whole), room))


def with_unconditional(prompts: Prompts, c: Experiment) -> Prompts:
    """Two streams: the prompts, and behind them the prompt that knows nothing of a text."""
    ids = prompt([UNKNOWN], Vocabulary.of(c.model))
    tokens = jnp.zeros_like(prompts.tokens).at[:, -len(ids) :].set(ids)
    start = jnp.full_like(prompts.start, tokens.shape[1] - len(ids))
    other = Prompts(tokens, jnp.full_like(prompts.codes_at, -1), start)  # type: ignore[arg-type]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), prompts, other)


def _cut(batch: Batch, count: jax.Array) -> Prompts:
    """The first `count` [B] ids of each row, moved to its end."""
    length = batch["tokens"].shape[1]
    at = jnp.arange(length) - (length - count)[:, None]

    def move(row: jax.Array, empty: int) -> jax.Array:
        taken = jnp.take_along_axis(row, jnp.maximum(at, 0), axis=1)
        return jnp.where(at >= 0, taken, empty)

    start = (length - count).astype(jnp.int32)
    return Prompts(move(batch["tokens"], 0), move(batch["codes_at"], -1), start)  # type: ignore[arg-type]


def _means(metrics: Any, sums: TokenLoss) -> dict[str, Any]:
    """Mean losses per token, exact over steps and microbatches whatever their weights are."""
    parts = {
        "loss": (sums.total, sums.weight),
        "text_loss": (sums.text_total, sums.text_weight),
        "image_loss": (sums.image_total, sums.image_weight),
        "z_loss": (sums.z_total, sums.weight),
    }
    return {name: metrics.Average(total=t, count=w) for name, (t, w) in parts.items()}


def build_model(workdir: str, task: str, kind: str = "image", tokens: float | None = None) -> Any:
    """What gin binds MODEL to: the experiment of a prepared work directory.

    task: the SeqIO task or mixture that is trained on, whose vocabulary T5X compares.
    """
    c, home = read_experiment(workdir), Path(workdir)
    rule = "use 0: T5X does not know how to split its state"
    require(not c.optimizer.skip_above, "optimizer.skip_above", c.optimizer.skip_above, rule)
    rule = "T5X does not know how to split its state; prepare with --config.optimizer.matrices=adam"
    require(c.optimizer.matrices == "adam", "optimizer.matrices", c.optimizer.matrices, rule)

    import seqio
    from clu import metrics
    from t5x import models, optimizers

    from cm3leon_jax.data.seqio_features import feature_converter

    codebook = None
    if c.model.code_features:
        mesh = make_mesh(Mesh(1, 1, 1), jax.local_devices())
        tokenizer = open_image_tokenizer(c, home / "image_tokenizer" / "network", mesh)
        codebook = jnp.asarray(np.asarray(tokenizer.codebook))
    features = seqio.get_mixture_or_task(task).output_features
    make: Callable[..., Any] = model_class(models, metrics, feature_converter())
    return make(
        c,
        optimizers.OptaxWrapper(make_optimizer(c.optimizer, c.train.steps)),
        features["targets"].vocabulary,
        open_text(home).pieces,
        kind,
        tokens,
        codebook,
    )


def learning_rate(workdir: str) -> Callable[[int], Any]:
    """The schedule that `build_model` puts into the optimizer, for T5X to log."""
    c = read_experiment(workdir)
    return make_schedule(c.optimizer, c.train.steps)

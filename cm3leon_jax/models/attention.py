"""Attention over packed rows: of training and of a prompt.

B batch, T query positions, S key positions, N heads, K key-value heads, H head size.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cm3leon_jax.sharding import compute_rules, spec

# Queries and keys of one splash block in bfloat16, by chip. Of 1024 and 2048 the greater that the
# fused backward pass compiles with at head sizes 64, 96 and 128; elsewhere 2048 needs more VMEM.
BLOCKS = {
    "TPU v4": 1024,
    "TPU v5 lite": 1024,  # v5e
    "TPU v5": 1024,  # v5p
    "TPU v6 lite": 2048,  # v6e
    "TPU7x": 1024,
}
Kernel = Literal["splash", "cudnn", "xla"]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    kernel: Kernel | None = None,
) -> jax.Array:
    """Causal attention within the segments of a packed row.

    query [B T N H], key and value [B T K H] with K dividing N, segments [B T]; returns [B T N H].
    Softmax in float32. A position sees itself always, so no row is without a key. The kernel is
    `choose_kernel`'s unless named. What the backward pass needs is named "context" for `remat`.
    """
    kernel = kernel or choose_kernel(query)
    run = _KERNELS[kernel]
    rules = compute_rules()
    if kernel != "xla" and rules is not None:
        # Kernels are opaque to the partitioner: each device runs its own rows and heads.
        heads = spec(("batch", None, "heads", None), rules)
        rows = spec(("batch", None), rules)
        run = jax.shard_map(
            run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    return run(query, key, value, segments)


def choose_kernel(query: jax.Array) -> Kernel:
    """The fastest kernel for query [B T N H] where it will run.

    That is the mesh's platform, not the process's: a compilation for a TPU that is not there sees
    the TPU's kernel. Shapes that a kernel does not take go to XLA.
    """
    device = _device()
    length, head = query.shape[1], query.shape[-1]
    # Splash works on whole tiles of 128 lanes, and a block may not reach over the row's end.
    if device.platform == "tpu" and length % 128 == 0:
        return "splash"
    # cuDNN's own limits. AMD's GPUs have the same platform, but no cuDNN.
    fits = query.dtype.itemsize == 2 and head % 8 == 0 and head <= 128 and length % 2 == 0
    if device.platform == "gpu" and device.device_kind.startswith("NVIDIA") and fits:
        return "cudnn"
    return "xla"


def _device() -> jax.Device | jax.sharding.AbstractDevice:
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def _xla(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    groups = query.shape[2] // key.shape[2]
    queries = query.reshape(*query.shape[:2], -1, groups, query.shape[-1]).transpose(0, 2, 3, 1, 4)
    context = _blockwise(queries, key.swapaxes(1, 2), value.swapaxes(1, 2), segments)
    return checkpoint_name(context.transpose(0, 3, 1, 2, 4).reshape(query.shape), "context")


@jax.custom_vjp
def _blockwise(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """query [B K G T H], G queries to a key head, key and value [B K T H]; returns query's shape.

    One block of queries at a time, over the keys up to the block's end: nearly half of the products
    lie above the diagonal and are left out, which halves the time of forward and backward on CPU
    against `jax.nn.dot_product_attention`. The backward pass makes the shares again from the log of
    each row's sum (FlashAttention, arXiv:2205.14135, appendix B.4), so nothing of size T x T is
    kept between the two; on CPU that is 5 to 10 % of a training step.
    """
    return _blockwise_forward(query, key, value, segments)[0]


def _blockwise_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    contexts, sums = [], []
    for start, end in _blocks(query):
        scores = _scores(query, key, segments, start, end)
        log_sum = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        shares = jnp.exp(scores - log_sum).astype(value.dtype)
        contexts.append(jnp.einsum("bkgts,bksh->bkgth", shares, value[:, :, :end]))
        sums.append(log_sum)
    context = jnp.concatenate(contexts, axis=3)
    return context, (query, key, value, segments, context, jnp.concatenate(sums, axis=3))


def _blockwise_backward(
    kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, segments, context, log_sums = kept
    # What every score of a row has in common: the softmax's gradient is shares * (d - common).
    common = (gradient * context).astype(jnp.float32).sum(axis=-1, keepdims=True)
    d_query, d_key, d_value = [], jnp.zeros_like(key), jnp.zeros_like(value)
    for start, end in _blocks(query):
        rows = (..., slice(start, end), slice(None))
        shares = jnp.exp(_scores(query, key, segments, start, end) - log_sums[rows])
        d_shares = jnp.einsum(
            "bkgth,bksh->bkgts",
            gradient[rows],
            value[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        d_scores = shares * (d_shares - common[rows]) * query.shape[-1] ** -0.5
        shares, d_scores = shares.astype(value.dtype), d_scores.astype(key.dtype)
        d_query.append(jnp.einsum("bkgts,bksh->bkgth", d_scores, key[:, :, :end]))
        of_keys = jnp.einsum("bkgts,bkgth->bksh", d_scores, query[rows])
        of_values = jnp.einsum("bkgts,bkgth->bksh", shares, gradient[rows])
        d_key = d_key.at[:, :, :end].add(of_keys)
        d_value = d_value.at[:, :, :end].add(of_values)
    return jnp.concatenate(d_query, axis=3), d_key, d_value, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(query: jax.Array) -> list[tuple[int, int]]:
    """Starts and ends of the blocks of queries: few, as each is compiled."""
    length = query.shape[3]
    size = max(128, -(-length // 8))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(
    query: jax.Array, key: jax.Array, segments: jax.Array, start: int, end: int
) -> jax.Array:
    """Masked scores [B K G end-start end] of one block, float32."""
    scores = jnp.einsum(
        "bkgth,bksh->bkgts",
        query[..., start:end, :],
        key[:, :, :end],
        preferred_element_type=jnp.float32,
    )
    seen = segments[:, start:end, None] == segments[:, None, :end]
    seen &= jnp.arange(start, end)[:, None] >= jnp.arange(end)
    scale = query.shape[-1] ** -0.5
    return jnp.where(seen[:, None, None], scores * scale, jnp.finfo(jnp.float32).min)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    # cuDNN takes segments only as an additive bias of [B 1 T S]; told that the rest is causal, it
    # leaves out the blocks above the diagonal.
    same = segments[:, None, :, None] == segments[:, None, None, :]
    context = jax.nn.dot_product_attention(
        query, key, value, mask=same, is_causal=True, implementation="cudnn"
    )
    return checkpoint_name(context, "context")


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    # Imported here: Pallas takes a second that only a TPU's compilation should pay.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    device = _device()
    length, heads, head = query.shape[1:]
    most = BLOCKS.get(device.device_kind, 512) * 2 // query.dtype.itemsize
    block = max(n for n in range(128, most + 1, 128) if length % n == 0)
    run = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="context",  # its output and log-sum: backward needs both
        interpret=device.platform != "tpu",
    )
    # Splash does not scale; in float32, as head_size**-0.5 itself is no bfloat16 number.
    query = (query * jnp.float32(head**-0.5)).astype(query.dtype)
    heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.vmap(run)(*heads_first, splash.SegmentIds(segments, segments)).swapaxes(1, 2)


_KERNELS: dict[Kernel, Callable[..., jax.Array]] = {
    "splash": _splash,
    "cudnn": _cudnn,
    "xla": _xla,
}

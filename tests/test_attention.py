"""Attention's kernels: equal to one another, and chosen by where the program will run."""

import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from cm3leon_jax import config
from cm3leon_jax.models.attention import attend, choose_kernel
from cm3leon_jax.sharding import make_mesh

B, T, N, H = 4, 640, 4, 16  # five blocks of 128: no greater one divides 640


def packed(kv_heads: int, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """Query, key, value and segments of rows with random documents and padding behind them."""
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (
        jax.random.normal(k, (B, T, n, H), dtype) for k, n in zip(keys, (N, kv_heads, kv_heads))
    )
    rng = np.random.default_rng(0)
    segments = np.zeros((B, T), np.int32)
    for row in segments:
        ends = np.sort(rng.choice(np.arange(1, T - 20), 5, replace=False))
        for number, (start, end) in enumerate(zip([0, *ends], ends), 1):
            row[start:end] = number
    return query, key, value, jnp.asarray(segments)


def of_the_library(query, key, value, segments):
    """JAX's own attention, told the whole mask."""
    seen = segments[:, :, None] == segments[:, None, :]
    seen &= jnp.tril(jnp.ones((T, T), bool))
    return jax.nn.dot_product_attention(query, key, value, mask=seen[:, None])


def value_and_gradients(run, rows: tuple[jax.Array, ...]):
    pull = jax.random.normal(jax.random.key(1), rows[0].shape)

    def loss(*rows: jax.Array):
        context = run(*rows)
        return (context * pull).sum(), context

    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    gradients, context = jax.jit(grad)(*rows)
    return context, *gradients


@cache
def wanted(kv_heads: int):
    return value_and_gradients(of_the_library, packed(kv_heads))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
@pytest.mark.parametrize("kernel", ["splash", "xla"])
def test_kernels_equal_jax_in_values_and_gradients(kernel, kv_heads, sizes):
    rows, run = packed(kv_heads), partial(attend, kernel=kernel)
    if sizes is None:
        found = value_and_gradients(run, rows)
    else:
        with jax.set_mesh(make_mesh(config.Mesh(*sizes))):
            found = value_and_gradients(run, rows)
    for ours, theirs in zip(found, wanted(kv_heads)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def on(platform: str, kind: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    names = ("data", "fsdp", "tensor")
    return AbstractMesh((1, 2, 2), names, (AxisType.Auto,) * 3, abstract_device=device)


@pytest.mark.parametrize(
    ("mesh", "length", "head", "dtype", "kernel"),
    [
        (on("tpu", "TPU v5 lite"), 4096, 128, "bfloat16", "splash"),
        (on("tpu", "TPU v4"), 4096, 96, "float32", "splash"),
        (on("tpu", "TPU v4"), 4100, 128, "bfloat16", "xla"),
        (on("gpu", "NVIDIA H100 80GB HBM3"), 4096, 128, "bfloat16", "cudnn"),
        (on("gpu", "NVIDIA H100 80GB HBM3"), 4096, 128, "float32", "xla"),
        (on("gpu", "NVIDIA H100 80GB HBM3"), 4096, 132, "bfloat16", "xla"),
        (on("gpu", "AMD Instinct MI300X"), 4096, 128, "bfloat16", "xla"),
        (on("cpu", "cpu"), 4096, 128, "bfloat16", "xla"),
        (None, 4096, 128, "bfloat16", "xla"),  # the process's own: CPU
    ],
)
def test_the_kernel_is_that_of_the_meshs_platform(mesh, length, head, dtype, kernel):
    query = jax.ShapeDtypeStruct((2, length, 4, head), dtype)
    if mesh is None:
        assert choose_kernel(query) == kernel
        return
    with jax.sharding.use_abstract_mesh(mesh):
        assert choose_kernel(query) == kernel


def test_cudnn_gets_segments_as_bias_and_the_causal_mask(monkeypatch):
    """Lowered for a GPU that is not there: only cuDNN's version number is made up."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    rows = packed(2, jnp.bfloat16)
    grad = jax.grad(lambda *rows: attend(*rows, kernel="cudnn").sum(), argnums=(0, 1, 2))
    lowered = jax.jit(grad).trace(*rows).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
    assert text.count("mask_type\\22: \\22CAUSAL") == 2
    assert f"tensor<{B}x1x{T}x{T}xbf16>" in text


def test_attention_compiles_to_splash_for_tpus():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    script = str(Path(__file__).with_name("attention_aot.py"))
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, script, "v5e:2x2", "v5p:2x2x1"]
    done = subprocess.run(run, env=os.environ | quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for calls in json.loads(done.stdout.splitlines()[-1]).values():
        assert calls == {"64": 2, "96": 2, "128": 2}  # one forward, one fused backward

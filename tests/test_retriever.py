"""The retriever's training: the same step on any mesh, pairs are learnt; and how it is scored."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cm3leon_jax import config
from cm3leon_jax.config import Optimizer, Retriever, Train
from cm3leon_jax.evaluation.retrieval import recall
from cm3leon_jax.models.clip import embed_pictures, embed_texts, text_batch
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training.retriever import init_state, make_train_step
from cm3leon_jax.training.step import compile_step, init_sharded

PIECES = 30
TINY = Retriever(
    size=16,
    patch=8,
    width=32,
    layers=1,
    heads=4,
    text_width=32,
    text_layers=1,
    text_heads=4,
    text_tokens=6,
    embedding=16,
    dtype="float32",
    # Adam divides by the root of tiny second moments: epsilon keeps rounding from being amplified.
    optimizer=Optimizer(1e-2, warmup_steps=5, schedule="cosine", epsilon=1e-3),
    train=Train(steps=60, batch=16),
)
FRESH = jax.jit(partial(init_state, TINY, PIECES))


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[i, *rng.integers(0, PIECES, rng.integers(4))] for i in range(16)]


@pytest.fixture(scope="module")
def batch(texts) -> dict[str, np.ndarray]:
    pictures = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    return {"images": pictures, "texts": text_batch(texts, TINY, PIECES)}


class Run:
    """Trains afresh on one batch as often as asked; compiles once per mesh."""

    def __init__(self, batch: dict[str, np.ndarray], sizes: config.Mesh):
        self.batch, self.mesh = batch, make_mesh(sizes)
        state = jax.eval_shape(FRESH, jax.random.key(0))
        self.at = shardings(state, self.mesh)
        self.step = compile_step(make_train_step(TINY), state, self.mesh)

    def __call__(self, steps: int, scale: float = 1 / 0.07):
        """The state after so many steps from this scale, and the metrics of each."""
        state, history = FRESH(jax.random.key(0)), []
        state.model.log_scale[...] = np.float32(np.log(scale))
        state = jax.device_put(state, self.at)
        with jax.set_mesh(self.mesh):
            for _ in range(steps):
                state, metrics = self.step(state, self.batch)
                history.append(metrics)
        return state, jax.device_get(history)


@pytest.fixture(scope="module")
def run(batch) -> Run:
    return Run(batch, config.Mesh(data=1, fsdp=1))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_sharded_training_equals_one_device(batch, run, sizes):
    single, wanted = run(3)
    sharded, found = Run(batch, config.Mesh(*sizes))(3)
    for ours, theirs in zip(found, wanted):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(sharded.model), jax.tree.leaves(single.model), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_parameters_and_moments_rest_where_their_axes_say():
    mesh = make_mesh(config.Mesh(2, 2, 2))
    state = init_sharded(partial(init_state, TINY, PIECES), jax.random.key(0), mesh)
    image, text = state.model.image, state.model.text
    for array, spec in (
        (image.layers.query_key_value, (None, "fsdp", "tensor", None)),
        (image.layers.out_bias, (None, "fsdp")),
        (image.layers.up_bias, (None, "tensor")),
        (image.class_token, ("fsdp",)),
        (text.layers.down, (None, "tensor", "fsdp")),
        (text.embedding, (None, "fsdp")),  # pieces + 2 rows divide by nothing
        (text.projection, ("fsdp", None)),
        (state.model.log_scale, ()),
    ):
        assert array[...].sharding.spec == PartitionSpec(*spec)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == (1, 32, 4, 24)]
    assert len(moments) == 2 * 2  # two averages, two towers
    assert all(tuple(x.sharding.spec) == (None, "fsdp", "tensor", None) for x in moments)


def test_sixteen_pairs_are_learnt(run, batch, texts):
    state, history = run(TINY.train.steps)
    assert int(state.step) == TINY.train.steps
    np.testing.assert_allclose(history[0]["scale"], 1 / 0.07, rtol=1e-5)
    assert history[0]["accuracy"] < 0.5
    assert history[-1]["accuracy"] == 1
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]
    assert history[-1]["pairs"] == 16
    found = recall(embed_pictures(state.model, batch["images"]), embed_texts(state.model, texts))
    assert found == {"image_to_text": 1.0, "text_to_image": 1.0}


def test_a_step_is_traced_once_and_keeps_the_form_of_the_state(batch):
    state = jax.eval_shape(partial(init_state, TINY, PIECES), jax.random.key(0))
    forms = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    after, _ = jax.eval_shape(make_train_step(TINY), state, forms)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def test_the_same_key_gives_the_same_result(run):
    jax.tree.map(np.testing.assert_array_equal, run(3), run(3))


def test_the_scale_stays_within_clips_limits(run):
    assert float(run(1, scale=0.01)[0].model.scale) == 1
    assert float(run(1, scale=1000)[0].model.scale) == pytest.approx(100)


def test_recall_counts_the_partners_among_the_best():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(50, 8))
    images = texts + rng.normal(size=(50, 8))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    for at in (1, 5):
        found = recall(images, texts, at)
        for name, queries, keys in (
            ("image_to_text", images, texts),
            ("text_to_image", texts, images),
        ):
            best = [np.argsort([-q @ k for k in keys])[:at] for q in queries]
            assert found[name] == pytest.approx(np.mean([i in b for i, b in enumerate(best)]))
    assert found["image_to_text"] != found["text_to_image"]


def test_ties_count_as_a_random_order_would_break_them():
    same = np.tile(np.float32([[0.6, 0.8]]), (20, 1))
    assert recall(same, same, 3) == pytest.approx({"image_to_text": 0.15, "text_to_image": 0.15})
    images = np.float32([[1, 0], [0, 1], [0, 1]])  # the second and third look alike
    assert recall(images, images) == pytest.approx({"image_to_text": 2 / 3, "text_to_image": 2 / 3})


def test_recall_refuses_what_does_not_pair():
    vectors = np.eye(4)
    with pytest.raises(ValueError, match="at=5"):
        recall(vectors, vectors, 5)
    with pytest.raises(ValueError, match=r"images \(4, 4\), texts \(3, 4\)"):
        recall(vectors, vectors[:3])

"""The retrieval gain: a difference of losses of the same tokens, by a second way of counting."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from cm3leon_jax import config
from cm3leon_jax.evaluation.gain import ROWS, main_losses, retrieval_gain
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.tokens.objective import code_places
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, Vocabulary


def make(c, count: int, retrieved: int) -> list[Document]:
    rng = np.random.default_rng(1)

    def one() -> list[Text | Image]:
        text = Text(rng.integers(0, c.model.text_pieces, rng.integers(1, 5)))
        return [text, Image(rng.integers(0, c.model.image_codes, c.model.image_tokens))]

    return [Document(one(), [Document(one()) for _ in range(retrieved)]) for _ in range(count)]


@pytest.fixture
def model(small) -> Transformer:
    return Transformer(small.model, rngs=nnx.Rngs(0))


def test_main_losses_are_those_of_the_main_tokens_alone(small):
    c = config.replace(small, {"model.code_positions": True})
    model = Transformer(c.model, rngs=nnx.Rngs(0))
    for document in make(small, 3, 2):
        ids = document.to_ids(Vocabulary.of(small.model)).astype(np.int32)
        tokens, targets = ids[None, :-1], ids[1:]
        places = code_places(ids, Vocabulary.of(c.model))[None, :-1]
        hidden = model(tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None], places)
        logits = (hidden @ model.head_table().T)[0]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        wanted = losses[document.main_start - 1 :].mean()
        np.testing.assert_allclose(main_losses(c, model, [document])[0], wanted, rtol=1e-5)


def test_more_documents_than_one_call_takes_change_nothing(small, model):
    documents = make(small, ROWS + 3, 1)
    together = main_losses(small, model, documents)
    apart = np.concatenate([main_losses(small, model, [document]) for document in documents])
    np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_the_gain_is_positive_for_a_model_that_copies_and_zero_for_one_that_cannot_look(small):
    rng = np.random.default_rng(0)
    documents = make(small, 20, 0)
    copied = [Document(d.segments, [Document(d.segments)]) for d in documents]
    model = Transformer(small.model, rngs=nnx.Rngs(0))
    blind = jax.tree.map(lambda x: x, model)
    blind.positions[...] = 0 * blind.positions[...]
    blind.layers.out[...] = 0 * blind.layers.out[...]  # attention adds nothing
    # The first token stands behind <eos> alone and behind <break> with others in front.
    blind.embedding[...] = blind.embedding[...].at[BREAK].set(blind.embedding[...][EOS])
    found = retrieval_gain(small, blind, copied)
    assert abs(found.gain) < 1e-5
    assert found.documents == 20

    optimizer = optax.adam(3e-3)
    moments = optimizer.init(model)
    vocabulary = Vocabulary.of(small.model)

    @jax.jit
    def learn(model, moments, ids):
        def loss(model):
            tokens = ids[:, :-1]
            ones = jax.numpy.ones_like(tokens)
            places = jax.numpy.broadcast_to(jax.numpy.arange(tokens.shape[1]), tokens.shape)
            logits = model(tokens, ones, places, -ones) @ model.head_table().T
            return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

        updates, moments_after = optimizer.update(jax.grad(loss)(model), moments, model)
        return optax.apply_updates(model, updates), moments_after

    for _ in range(300):  # pairs of one letter and its copy: the way to a low loss is to look back
        texts = rng.integers(0, 8, (32, 4))
        rows = [
            Document([Text(t)], [Document([Text(t)])]).to_ids(vocabulary).astype(np.int32)
            for t in texts
        ]
        model, moments = learn(model, moments, np.stack(rows))
    some = [Text(t) for t in rng.integers(0, 8, (16, 4))]
    looking = retrieval_gain(small, model, [Document([t], [Document([t])]) for t in some])
    assert looking.gain > 0.5
    assert looking.low <= looking.gain <= looking.high
    assert looking.gain == pytest.approx(looking.without_documents - looking.with_documents)


def test_documents_without_retrieved_ones_do_not_count(small, model):
    mixed = [*make(small, 3, 1), *make(small, 4, 0)]
    assert retrieval_gain(small, model, mixed).documents == 3
    with pytest.raises(ValueError, match="no document has a retrieved one"):
        retrieval_gain(small, model, make(small, 4, 0))

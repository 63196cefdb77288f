"""Batches are pure functions of their position: they repeat, seek, and lose nothing."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from conftest import make_documents

from cm3leon_jax import config
from cm3leon_jax.data.loader import image_batches, token_batches
from cm3leon_jax.tokens.objective import restore
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, Vocabulary


def stream(c: config.Experiment, count: int = 40):
    return token_batches(make_documents(c, count), c)


def examples(batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The rotated documents of a batch, put together again from tokens and targets."""
    found = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            at = batch["segments"][row] == segment
            found.append(np.append(batch["tokens"][row][at], batch["targets"][row][at][-1]))
    return found


def assert_same(a, b) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_seeking_gives_the_same_batches(small):
    first, second = stream(small), stream(small)
    batches, positions = [], []
    for batch in islice(first, 6):
        batches.append(batch)
        positions.append(first.position)
    second.seek(positions[2])
    for ours, theirs in zip(islice(second, 3), batches[3:]):
        assert_same(ours, theirs)


def test_every_document_is_read_once_an_epoch_and_masked_anew(small):
    c = config.replace(small, {"train.batch": 4})
    documents = {d.ids.tobytes() for d in make_documents(c)}
    epochs: list[Counter] = [Counter(), Counter()]
    rotations: dict[bytes, set[bytes]] = {}
    taken, loader = 0, stream(c)
    reads = iter(loader)
    while min(loader.position) * 4 < 2 * 40 + 8:
        before = loader.position
        batch = next(reads)
        read = iter(examples(batch))
        for row, (start, stop) in enumerate(zip(before, loader.position)):
            for k in range(start, stop):
                rotated = next(read)
                original = restore(rotated.astype(np.uint32), Vocabulary.of(c.model)).tobytes()
                epoch = (k * 4 + row) // 40
                if epoch < 2:
                    epochs[epoch][original] += 1
                rotations.setdefault(original, set()).add(rotated.tobytes())
                taken += 1
    for epoch in epochs:
        assert set(epoch) == documents
        assert set(epoch.values()) == {1}
    assert sum(len(forms) > 1 for forms in rotations.values()) > 10
    assert taken >= 80


def test_nothing_is_cut(small):
    c = config.replace(small, {"objective.rate": 2.0})
    for batch in islice(stream(c), 20):
        for ids in examples(batch):
            assert ids[0] == EOS
            assert ids[-1] in (EOS, EOSS)
            images = "".join("i" if Vocabulary.of(c.model).is_image(i) else "." for i in ids)
            assert images.count("i") == c.model.image_tokens
            assert np.sum(ids == BREAK) == 1


def test_rows_do_not_depend_on_the_rows_beside_them(small):
    usual, shifted = stream(small), stream(small)
    shifted.seek([7, *[0] * 7])
    ours, theirs = next(iter(usual)), next(iter(shifted))
    for name in ours:
        np.testing.assert_array_equal(ours[name][1:], theirs[name][1:])
    assert np.any(ours["tokens"][0] != theirs["tokens"][0])


def test_a_position_of_another_batch_size_is_refused(small):
    with pytest.raises(ValueError, match=r"resume with the train\.batch"):
        stream(small).seek([0, 0])


def test_no_documents_is_one_clear_line(small):
    with pytest.raises(ValueError, match="no training documents"):
        stream(small, 0)
    with pytest.raises(ValueError, match="no training images"):
        image_batches(np.zeros((0, 8, 8, 3), np.uint8), 2, 0)


def test_images_come_once_an_epoch_in_a_new_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    loader = image_batches(images, 5, seed=3)
    seen = [batch["images"][:, 0, 0, 0].tolist() for batch in islice(loader, 4)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert seen[0] + seen[1] != seen[2] + seen[3]
    again = image_batches(images, 5, seed=3)
    again.seek([10])
    assert next(iter(again))["images"][:, 0, 0, 0].tolist() == seen[2]

"""Batches are pure functions of their position: they repeat, seek, and lose nothing."""

import multiprocessing
import os
import select
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from conftest import SMALL, WORDS, make_examples, make_text

from cm3leon_jax import config
from cm3leon_jax.data.examples import Examples
from cm3leon_jax.data.loader import (
    SPREAD,
    Stream,
    fixed_batch,
    image_batches,
    join_positions,
    mix,
    pair_batches,
    token_batches,
)
from cm3leon_jax.data.shards import CodedRecord
from cm3leon_jax.tokens.document import Document
from cm3leon_jax.tokens.objective import restore, rng_for
from cm3leon_jax.tokens.packing import fill_row
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, Vocabulary


def stream(c: config.Experiment, count: int = 400, rows: range | None = None) -> Stream:
    return token_batches([(make_examples(c, count), 1.0)], make_text(), c, rows)


def rotated(batch: dict[str, np.ndarray], row: int) -> list[np.ndarray]:
    """The examples of a row, put together again from tokens and targets."""
    found = []
    for segment in range(1, batch["segments"][row].max() + 1):
        at = batch["segments"][row] == segment
        found.append(np.append(batch["tokens"][row][at], batch["targets"][row][at][-1]))
    return found


def original(ids: np.ndarray, c: config.Experiment) -> bytes:
    return restore(ids.astype(np.uint32), Vocabulary.of(c.model)).tobytes()


def document_ids(c: config.Experiment, count: int) -> set[bytes]:
    examples, rng = make_examples(c, count), rng_for(0, 0, 0)
    vocabulary = Vocabulary.of(c.model)
    return {examples.document(i, rng).to_ids(vocabulary).tobytes() for i in range(count)}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def run_hosts(c: config.Experiment, hosts: int, steps: int, position: list[int]):
    """What `hosts` hosts read together: batches, and the position behind each."""
    size = c.train.batch // hosts
    parts = [range(i * size, (i + 1) * size) for i in range(hosts)]
    loaders = [stream(c, rows=rows) for rows in parts]
    for loader in loaders:
        loader.seek(position)
    reads = [iter(loader) for loader in loaders]
    batches, positions = [], []
    for _ in range(steps):
        batch = [next(read) for read in reads]
        batches.append({name: np.concatenate([b[name] for b in batch]) for name in batch[0]})
        positions.append(join_positions((p, ld.position) for p, ld in zip(parts, loaders)))
    for read in reads:
        read.close()
    return batches, positions


def test_a_code_stands_in_its_image_where_the_batch_says(small):
    c = config.replace(small, {"objective.rate": 2.0, "objective.whole_segment": 0.0})
    batch, vocabulary, broken = next(iter(stream(c))), Vocabulary.of(c.model), 0
    for row in range(c.train.batch):
        for segment, ids in enumerate(rotated(batch, row), start=1):
            image = Document.from_ids(restore(ids, vocabulary), vocabulary).segments[1].codes
            at = batch["codes_at"][row][batch["segments"][row] == segment]
            is_code = vocabulary.is_image(ids[:-1])
            codes = vocabulary.codes(ids[:-1][is_code])
            assert [image[place] for place in at[is_code]] == codes.tolist()
            assert set(at[~is_code]) == {-1}
            broken += at[is_code].tolist() != list(range(len(image)))
    assert broken > 2
    assert set(batch["codes_at"][batch["segments"] == 0]) == {-1}


def test_no_example_is_made_twice(small, monkeypatch):
    made, make = [], Examples.example
    monkeypatch.setattr(
        Examples, "example", lambda self, i, rng: made.append(i) or make(self, i, rng)
    )
    read = iter(stream(small))
    for _ in range(4):  # of an epoch
        next(read)
    read.close()
    assert len(made) == len(set(made)) > 4 * small.train.batch


def test_seeking_gives_the_same_batches(small):
    first, second = stream(small), stream(small)
    batches, positions = [], []
    for batch in islice(first, 6):
        batches.append(batch)
        positions.append(first.position)
    second.seek(positions[2])
    for ours, theirs in zip(islice(second, 3), batches[3:]):
        assert_same(ours, theirs)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_what_one_reads(small, hosts):
    start = [0] * 8
    whole, positions = run_hosts(small, 1, 6, start)
    parts, theirs = run_hosts(small, hosts, 6, start)
    assert positions == theirs
    for ours, other in zip(whole, parts):
        assert_same(ours, other)
    for ours, other in zip(run_hosts(small, hosts, 3, positions[2])[0], whole[3:]):
        assert_same(ours, other)


def test_workers_make_the_same_batches(small):
    c = config.replace(small, {"train.batch": 5})  # one makes 3 rows, the other 2
    here, there = stream(c), stream(config.replace(c, {"data.workers": 2}))
    for loader in (here, there):
        loader.seek([0, 1, 2, 3, 4])
    theirs = iter(there)
    for ours, other in zip(islice(here, 6), theirs):
        assert_same(ours, other)
        assert here.position == there.position
    theirs.close()


def read_for_ever(pipe) -> None:
    """Reads with two workers and tells every batch and its position, until it is killed."""
    c = config.replace(config.Experiment(), SMALL | {"data.workers": 2})
    loader = stream(c)
    for batch in loader:
        children = [child.pid for child in multiprocessing.active_children()]
        pipe.send((batch, loader.position, children))


def test_killed_and_resumed_on_other_hosts_and_workers(small):
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=read_for_ever, args=(end,))
    process.start()
    told = [pipe.recv() for _ in range(4)]
    children = told[-1][2]
    assert len(children) == 2
    handles = [os.pidfd_open(child) for child in children]
    process.kill()
    process.join()
    for handle in handles:  # the workers go with it
        assert select.select([handle], [], [], 30)[0], "a worker has outlived its trainer"
        os.close(handle)

    batches, positions = run_hosts(small, 1, 8, [0] * 8)
    for (batch, position, _), ours, theirs in zip(told, batches, positions):
        assert_same(batch, ours)
        assert position == theirs
    for ours, theirs in zip(run_hosts(small, 4, 4, told[-1][1])[0], batches[4:]):
        assert_same(ours, theirs)


def test_every_document_is_read_once_an_epoch_and_masked_anew(small):
    c = config.replace(small, {"train.batch": 4})
    epochs: list[Counter] = [Counter(), Counter()]
    forms: dict[bytes, set[bytes]] = {}
    loader = stream(c, 40)
    reads = iter(loader)
    while min(loader.position) * 4 < 2 * 40 + 8:
        before = loader.position
        batch = next(reads)
        for row, (start, stop) in enumerate(zip(before, loader.position)):
            for k, ids in zip(range(start, stop), rotated(batch, row), strict=True):
                document, epoch = original(ids, c), (k * 4 + row) // 40
                if epoch < 2:
                    epochs[epoch][document] += 1
                forms.setdefault(document, set()).add(ids.tobytes())
    for epoch in epochs:
        assert set(epoch) == document_ids(c, 40)
        assert set(epoch.values()) == {1}
    assert list(epochs[0]) != list(epochs[1])  # another order
    assert sum(len(form) > 1 for form in forms.values()) > 10


def test_sources_are_read_by_their_rates_in_every_row(small):
    """Although one has long documents, of which a row holds fewer."""
    c = config.replace(small, {"train.batch": 4, "objective.rate": 0.0})
    rates, rng = (0.5, 0.3, 0.2), np.random.default_rng(0)
    sources = []
    for number, words in enumerate((1, 9, 5)):
        caption, count = " ".join(rng.choice(WORDS, words)), 700 + number
        records = [CodedRecord("same", (caption, np.full(4, number, np.int32)))] * count
        sources.append((Examples(records, make_text(), c), rates[number]))
    loader, read = token_batches(sources, make_text(), c), [Counter() for _ in range(4)]
    start = Vocabulary.of(c.model).image_start
    for batch in islice(loader, 400):
        for row in range(4):
            read[row].update(int(ids[-2]) - start for ids in rotated(batch, row))
    for counts in read:
        for number, rate in enumerate(rates):
            assert abs(counts[number] / counts.total() - rate) < 0.03
    again = token_batches(sources, make_text(), c)
    again.seek([100, 200, 300, 400])
    assert again.position == [100, 200, 300, 400]
    hosts = [token_batches(sources, make_text(), c, rows=range(i, i + 2)) for i in (0, 2)]
    for host in hosts:
        host.seek([100, 200, 300, 400])
    whole, parts = next(iter(again)), [next(iter(host)) for host in hosts]
    assert_same(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})


class Numbers:
    """A source whose examples are (name, index)."""

    def __init__(self, name: str, count: int):
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, rng: np.random.Generator) -> tuple[str, int]:
        return self.name, index


def test_a_mixture_reads_all_of_every_source_evenly():
    places = mix([Numbers("a", 200), Numbers("b", 100)], [2.0, 1.0], seed=0, batch=3)
    counts = Counter(places[place] for place in range(3 * SPREAD))
    for name, size in (("a", 200), ("b", 100)):
        seen = [counts[name, index] for index in range(size)]
        assert sum(seen) == 3 * SPREAD * size // 300
        assert max(seen) - min(seen) <= 1  # whole epochs and a part of one
    assert places[10**9] == places[10**9]


def test_nothing_is_cut(small):
    c = config.replace(small, {"objective.rate": 2.0})
    for batch in islice(stream(c), 20):
        for row in range(c.train.batch):
            for ids in rotated(batch, row):
                assert ids[0] == EOS
                assert ids[-1] in (EOS, EOSS)
                assert np.sum(Vocabulary.of(c.model).is_image(ids)) == c.model.image_tokens
                assert np.sum(ids == BREAK) == 1


def test_rows_do_not_depend_on_the_rows_beside_them(small):
    usual, shifted = stream(small), stream(small)
    shifted.seek([7, *[0] * 7])
    ours, theirs = next(iter(usual)), next(iter(shifted))
    for name in ours:
        np.testing.assert_array_equal(ours[name][1:], theirs[name][1:])
    assert np.any(ours["tokens"][0] != theirs["tokens"][0])


def test_a_fixed_batch_has_the_first_documents_in_order_and_none_twice(small):
    c = config.replace(small, {"train.batch": 2})
    examples, vocabulary = make_examples(c), Vocabulary.of(c.model)
    batch = fixed_batch(examples, c)
    found = [original(ids, c) for row in range(2) for ids in rotated(batch, row)]
    expected = [
        examples.document(i, rng_for(0, 0, 0)).to_ids(vocabulary).tobytes()
        for i in range(len(found))
    ]
    assert found == expected
    assert_same(batch, fixed_batch(examples, c))
    few = fixed_batch(make_examples(c, 1), c)
    assert len(rotated(few, 0)) == 1
    assert_same({name: values[1] for name, values in few.items()}, fill_row([], c.data.row_length))


def test_positions_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"resume with the train\.batch"):
        stream(small).seek([0, 0])
    assert join_positions([(range(2, 4), [7, 8]), (range(2), [5, 6])]) == [5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"rows \[0, 1, 3\]: give each row of the batch once"):
        join_positions([(range(2), [5, 6]), (range(3, 4), [7])])


def test_mistakes_are_one_clear_line(small):
    examples = make_examples(small)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"source 'documents': rate .*: must be > 0"):
            token_batches([(examples, 1.0), (examples, rate)], make_text(), small)
    with pytest.raises(ValueError, match=r"no sources to read; check data\.mixture"):
        token_batches([], make_text(), small)
    with pytest.raises(ValueError, match="no training images"):
        image_batches([np.zeros((0, 8, 8, 3), np.uint8)], 2, 0)
    with pytest.raises(ValueError, match=r"pairs of \[2, 3\] items: give as many texts as images"):
        pair_batches(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 4), np.int32), 2, 0)


def test_a_mistake_in_a_worker_process_is_told_here(small):
    c = config.replace(small, {"train.batch": 1, "data.workers": 3})  # more workers than rows
    long = [CodedRecord("long", ("facade " * 99, np.zeros(4, np.int32)))]
    loader = token_batches([(Examples(long, make_text(), c), 1.0)], make_text(), c)
    with pytest.raises(ValueError, match="document 'long'"):
        next(iter(loader))


def test_images_come_once_an_epoch_in_a_new_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    loader = image_batches([images], 5, seed=3)
    seen = [batch["images"][:, 0, 0, 0].tolist() for batch in islice(loader, 4)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert seen[0] + seen[1] != seen[2] + seen[3]
    again = image_batches([images], 5, seed=3)
    again.seek([10])
    assert next(iter(again))["images"][:, 0, 0, 0].tolist() == seen[2]


def test_groups_of_images_take_turns_whatever_their_sizes():
    groups = [np.full((n, 4, 4, 3), n, np.uint8) for n in (9, 2, 5)]
    batches = islice(image_batches(groups, 5, seed=3), 4)
    seen = np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches])
    assert seen.tolist() == [9, 2, 9, 5] * 5


def test_pairs_stay_pairs():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    texts = np.arange(10, dtype=np.int32)[:, None] * np.array([1, 100], np.int32)
    for batch in islice(pair_batches(images, texts, 4, seed=3), 5):
        assert batch["texts"].dtype == np.int32
        np.testing.assert_array_equal(batch["texts"][:, 0], batch["images"][:, 0, 0, 0])
        np.testing.assert_array_equal(batch["texts"][:, 1], 100 * batch["texts"][:, 0])

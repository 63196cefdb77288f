"""Examples: whole documents behind neighbours that are drawn anew, masked as the objective says."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import make_documents, make_text

from cm3leon_jax import config
from cm3leon_jax.checkpoint import write_experiment
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.data.shards import CodedRecord, Shards, write_shards
from cm3leon_jax.mapped import finish_mapped, write_mapped_part
from cm3leon_jax.tokens.document import Document, Image, spans
from cm3leon_jax.tokens.objective import provenance, restore, rng_for, statistics
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, Vocabulary

NEIGHBOUR = np.dtype([("row", "<i8"), ("score", "<f2"), ("by", "u1")])
ROWS = [[1, 2, 3, 4], [2, 2, -1, 5], [-1, -1, -1, -1], [9, -1, 8, -1]]
RETRIEVAL = {"retrieval.least": 0, "retrieval.most": 3, "data.row_length": 64}


@pytest.fixture
def joined(small) -> config.Experiment:
    """Up to three neighbours in front, in rows where they fit."""
    return config.replace(small, RETRIEVAL)


def neighbours(rows: list[list[int]]) -> np.ndarray:
    made = np.zeros((len(rows), len(rows[0])), NEIGHBOUR)
    made["row"] = rows
    return made


def make(c: config.Experiment, rows: list[list[int]] = ROWS, **arguments) -> Examples:
    """The first documents, with those rows of a larger memory as neighbours."""
    memory = make_documents(c)
    return Examples(memory[: len(rows)], make_text(), c, memory, neighbours(rows), **arguments)


def drawn(examples: Examples, index: int, seed: int) -> list[tuple[int, ...]]:
    """The images of the retrieved documents, which tell them apart."""
    document = examples.document(index, rng_for(seed, 0, index))
    return [image(found) for found in document.retrieved]


def image(document: Document) -> tuple[int, ...]:
    return next(s.codes for s in document.segments if isinstance(s, Image))


def test_neighbours_are_drawn_anew_without_repeats_from_the_valid_ones(joined):
    memory = [tuple(record.images[0].tolist()) for record in make_documents(joined)]
    examples = make(joined)
    for index, allowed in enumerate([{1, 2, 3, 4}, {2, 5}, set(), {8, 9}]):
        seen = set()
        for seed in range(60):
            rows = [memory.index(found) for found in drawn(examples, index, seed)]
            assert len(rows) == len(set(rows)) <= 3
            seen |= set(rows)
        assert seen == allowed
    assert drawn(examples, 0, 1) == drawn(examples, 0, 1)


def test_their_number_is_uniform(joined):
    roomy = {"retrieval.least": 1, "model.context": 512, "data.row_length": 512}
    examples = make(config.replace(joined, roomy))
    counts = Counter(len(drawn(examples, 0, seed)) for seed in range(1500))
    assert set(counts) == {1, 2, 3}
    for count in counts.values():  # four standard deviations
        assert abs(count - 500) < 4 * np.sqrt(1500 * (1 / 3) * (2 / 3))


def test_the_share_that_is_asked_for_stands_alone(joined):
    roomy = {"retrieval.least": 1, "retrieval.alone": 0.4, "data.row_length": 64}
    examples = make(config.replace(joined, roomy))
    alone = sum(not drawn(examples, 0, seed) for seed in range(1500))
    assert abs(alone - 600) < 4 * np.sqrt(1500 * 0.4 * 0.6)


def test_what_does_not_fit_is_dropped_and_nothing_is_cut(joined):
    c = config.replace(joined, {"retrieval.least": 3, "data.row_length": 40})
    rows = [[(i + k) % 40 for k in range(1, 5)] for i in range(40)]
    examples, vocabulary = make(c, rows), Vocabulary.of(c.model)
    alone = Examples(make_documents(c), make_text(), c)
    kept = Counter()
    for index in range(40):
        document = examples.document(index, rng_for(0, 0, index))
        assert document.segments == alone.document(index, rng_for(0, 0, index)).segments
        ids = document.to_ids(vocabulary)
        assert len(ids) <= 41
        found = spans(ids, vocabulary, c.model.image_tokens)  # refuses an image that was cut
        assert [span.kind for span in found] == ["text", "image"] * (len(document.retrieved) + 1)
        kept[len(document.retrieved)] += 1
        assert examples.example(index, rng_for(0, 0, index)).size <= 40
    assert len(kept) > 1
    assert max(kept) < 3


def test_a_document_that_does_not_fit_alone_is_named(small):
    long = CodedRecord("long", ("facade " * 99, np.zeros(4, np.int32)))
    examples = Examples([long], make_text(), small, name="talk")
    with pytest.raises(ValueError, match=r"source 'talk', document 'long': \d+ tokens, data\.row"):
        examples.example(0, rng_for(0, 0, 0))


def test_retrieved_documents_have_a_weight_of_their_own(joined):
    c = config.replace(joined, {"objective.retrieved_weight": 0.25, "retrieval.least": 1})
    still = make(config.replace(c, {"objective.rate": 0.0}))
    for seed in range(20):
        start = still.document(0, rng_for(seed, 0, 0)).main_start
        weights = still.example(0, rng_for(seed, 0, 0)).weights
        assert start > 1
        assert set(weights[:start]) == {0.25}
        assert set(weights[start:]) == {1.0}
    masked = make(config.replace(c, {"objective.rate": 3.0}))
    for seed in range(20):
        start = masked.document(0, rng_for(seed, 0, 0)).main_start
        example = masked.example(0, rng_for(seed, 0, 0))
        origin = provenance(example.ids, Vocabulary.of(c.model))
        assert set(example.weights[(origin >= 0) & (origin < start)]) == {0.25}
        assert set(example.weights[origin >= start]) == {1.0}


def masked_spans(rotated: np.ndarray, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """[start, stop) in the document of what stands behind the closing <eos>."""
    origin = provenance(rotated, vocabulary)
    closing = int(np.flatnonzero(rotated == EOS)[1])
    edges = [closing, *(closing + 1 + np.flatnonzero(origin[closing + 1 :] < 0)).tolist()]
    fills = [(a + 1, b) for a, b in pairwise(edges) if b > a + 1]
    return [(int(origin[a]), int(origin[b - 1]) + 1) for a, b in fills]


def test_joined_documents_are_masked_as_the_objective_expects(joined):
    c, count = config.replace(joined, {"retrieval.least": 2}), 3000
    examples, vocabulary = make(c, ROWS[:1]), Vocabulary.of(c.model)
    longest = c.data.row_length + 1
    documents = [examples.document(0, rng_for(1, 0, i)) for i in range(200)]
    expected = statistics(documents, vocabulary, c.objective, 50, max_length=longest)

    names = Counter()
    for i in range(count):
        rotated = examples.example(0, rng_for(2, 0, i)).ids
        chosen = masked_spans(rotated, vocabulary)
        places = spans(restore(rotated, vocabulary), vocabulary)
        names["no_mask"] += not chosen
        for kind in ("text", "image"):
            own = [(start, start + n) for k, start, n in places if k == kind]
            names[f"{kind}_masked"] += any(place in chosen for place in own)
            inside = [a <= start and stop <= b for start, stop in chosen for a, b in own]
            names[f"some_{kind}_masked"] += any(inside)
    assert 0.3 < expected["no_mask"] < 0.45  # Poisson(1): 0.37
    for name, share in expected.items():
        error = np.sqrt(share * (1 - share) * (1 / count + 1 / 10_000))
        assert abs(names[name] / count - share) < 4 * error, name


def test_the_main_document_follows_its_template_and_neighbours_are_as_read(joined):
    c = config.replace(joined, {"retrieval.least": 1})
    document = make(c, template="image_first").document(0, rng_for(0, 0, 0))
    assert [isinstance(s, Image) for s in document.segments] == [True, False]
    for found in document.retrieved:
        assert [isinstance(s, Image) for s in found.segments] == [False, True]


def write(c: config.Experiment, workdir, retriever: str = "r1", count: int = 400) -> Source:
    """A work directory of documents, 4 held out and their neighbours."""
    records, made_by = make_documents(c), {"retriever": "r1", "image_tokenizer": "i1"}
    meta = {"retriever": retriever, "memory": {"count": count}}
    write_shards(records, workdir / "documents", "train", made_by)
    write_shards(records[: len(ROWS)], workdir / "documents", "held_out", made_by)
    write_mapped_part(workdir / "neighbours", "held_out", 0, 1, neighbours(ROWS))
    finish_mapped(workdir / "neighbours", "held_out", 1, meta)
    return Source("pairs", workdir, "held_out")


def same(ours: Examples, theirs: Examples) -> bool:
    """Whether they give the same documents."""
    places = [(seed, 0, index) for seed in range(10) for index in range(len(ours))]
    found = ([of.document(p[2], rng_for(*p)) for p in places] for of in (ours, theirs))
    return next(found) == next(found)


def test_an_opened_source_equals_its_parts_and_may_be_sent_to_a_worker(joined, tmp_path):
    opened = Examples.open(write(joined, tmp_path), make_text(), joined)
    assert len(opened) == len(ROWS)
    assert same(opened, make(joined))
    assert same(pickle.loads(pickle.dumps(opened)), opened)


def test_a_worker_is_sent_the_place_of_the_data_not_the_data(joined, tmp_path):
    source = write(joined, tmp_path)
    sizes = []
    for rows in (ROWS, ROWS * 1000):
        write_mapped_part(tmp_path / "neighbours", "held_out", 0, 1, neighbours(rows))
        meta = {"retriever": "r1", "memory": {"count": 400}}
        finish_mapped(tmp_path / "neighbours", "held_out", 1, meta)
        records = make_documents(joined, len(rows))
        write_shards(records, tmp_path / "documents", "held_out", {"retriever": "r1"})
        sizes.append(len(pickle.dumps(Examples.open(source, make_text(), joined))))
    assert sizes[0] == sizes[1]


def test_documents_without_neighbours_stand_alone(joined, tmp_path):
    source = write(joined, tmp_path)
    alone = config.replace(joined, {"retrieval.most": 0})
    assert drawn(Examples.open(source, make_text(), alone), 0, 0) == []
    for path in (tmp_path / "neighbours").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="was not finished"):
        Examples.open(source, make_text(), joined)
    (tmp_path / "neighbours").rmdir()
    examples = Examples.open(source, make_text(), joined)
    assert all(drawn(examples, 0, seed) == [] for seed in range(20))


def test_sets_that_do_not_belong_together_are_refused(joined, tmp_path):
    source = write(joined, tmp_path, "r2")
    with pytest.raises(ValueError, match=r"retriever r2 among 400 .*of r1 and 400: run `cm3leon"):
        Examples.open(source, make_text(), joined)
    source = write(joined, tmp_path, count=399)
    with pytest.raises(ValueError, match=r"retriever r1 among 399 .*of r1 and 400: run `cm3leon"):
        Examples.open(source, make_text(), joined)
    with pytest.raises(ValueError, match="'documents': neighbours of 3 documents, there are 4"):
        Examples(
            Shards(tmp_path / "documents", "held_out"),
            make_text(),
            joined,
            [],
            neighbours(ROWS[:3]),
        )
    with pytest.raises(ValueError, match="there are no documents; check data"):
        Examples([], make_text(), joined)
    few = replace(joined, model=replace(joined.model, text_pieces=20))
    with pytest.raises(ValueError, match="train fewer pieces"):
        make(few)


def test_rows_shorter_than_the_documents_were_prepared_for_are_refused_at_once(joined, tmp_path):
    source = write(joined, tmp_path)
    write_experiment(tmp_path, joined)
    shorter = config.replace(joined, {"data.row_length": 48})
    for told in (source, replace(source, template="plain")):
        with pytest.raises(
            ValueError, match=r"data.row_length=48: .*documents was prepared with 64"
        ):
            Examples.open(told, make_text(), shorter)


def test_a_source_names_its_own_mistakes():
    with pytest.raises(ValueError, match=r"'a': split='test': use train or held_out"):
        Source("a", ".", "test")
    with pytest.raises(ValueError, match=r"'a': template='plane': use plain or image_first"):
        Source("a", ".", template="plane")


def test_documents_stand_behind_break_and_end_with_eos(joined):
    c = config.replace(joined, {"retrieval.least": 2, "retrieval.most": 2})
    document = make(c).document(0, rng_for(0, 0, 0))
    ids = document.to_ids(Vocabulary.of(c.model))
    assert (ids[0], ids[document.main_start - 1], ids[-1]) == (EOS, BREAK, EOS)
    assert np.sum(ids == BREAK) == 5


def test_answers_are_known_wherever_the_document_stands(joined):
    records = [
        replace(record, question="q?", answer=f"a{i}")
        for i, record in enumerate(make_documents(joined))
    ]
    roomy = {"model.context": 512, "data.row_length": 512}
    c, text = config.replace(joined, roomy), make_text()
    for template, wanted in (("question", " a0"), ("plain", None)):
        examples = Examples(records[:4], text, c, records, neighbours(ROWS), template)
        for seed in range(8):
            document, answers = examples.tell(0, rng_for(seed, 0, 0))
            ids, vocabulary = document.to_ids(Vocabulary.of(c.model)), Vocabulary.of(c.model)
            ((start, stop),) = answers
            if wanted is None:  # nothing is marked: the last segment
                assert ids[start:stop].tolist() == vocabulary.image_ids(image(document)).tolist()
                assert stop == len(ids) - 1
            else:
                assert text.decode(vocabulary.pieces(ids[start:stop])).strip() == wanted.strip()


def test_a_template_is_drawn_with_every_epoch(joined):
    records = [replace(record, question="q?", answer="a") for record in make_documents(joined)]
    examples = Examples(records, make_text(), joined, template="question")
    told = {examples.document(0, rng_for(0, epoch, 0)).segments[0].ids for epoch in range(40)}
    assert len(told) == 3


def test_a_source_is_told_by_the_task_it_was_prepared_for(joined, tmp_path):
    source = write(joined, tmp_path)
    write_experiment(tmp_path, config.replace(joined, {"data.task": "image_first"}))
    document = Examples.open(source, make_text(), joined).document(0, rng_for(0, 0, 0))
    assert isinstance(document.segments[0], Image)
    told = replace(source, template="plain")
    document = Examples.open(told, make_text(), joined).document(0, rng_for(0, 0, 0))
    assert not isinstance(document.segments[0], Image)

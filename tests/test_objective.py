"""Facts about CM3 rotation. Regressions of bugs in public code are marked 'public bug'."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm3leon_jax.config import Objective
from cm3leon_jax.tokens.document import Document, Image, Text, spans
from cm3leon_jax.tokens.objective import (
    code_places,
    draw_spans,
    provenance,
    relocate,
    restore,
    rng_for,
    rotate,
    statistics,
    token_weights,
)
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, Vocabulary

VOCABULARY = Vocabulary(specials=32, sentinels=20, text=30, images=10)
T, M0, M1 = VOCABULARY.text_start, 5, 6
texts = st.lists(st.integers(0, 29), min_size=1, max_size=6).map(Text)
images = st.integers(1, 20).map(lambda n: Image([k % 10 for k in range(n)]))
segments = st.lists(texts | images, min_size=1, max_size=5)
documents = st.builds(Document, segments, st.lists(segments.map(Document), max_size=2))
objectives = st.builds(
    Objective,
    rate=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    max_spans=st.integers(0, 20),
    whole_segment=st.sampled_from([0.0, 0.5, 1.0]),
)
seeds = st.integers(0, 2**32 - 1)
SINGLE = Document([Text([1])])


@settings(max_examples=1000, deadline=None)
@given(documents, objectives, seeds)
@example(SINGLE, Objective(rate=30.0, whole_segment=0.0), 0)
@example(SINGLE, Objective(rate=0.0), 0)
def test_restore_inverts_rotate(document, objective, seed):
    ids = document.to_ids(VOCABULARY)
    rotated = rotate(ids, VOCABULARY, rng_for(seed, 0, 0), objective)
    masks = int(VOCABULARY.is_mask(rotated).sum())
    assert rotated.dtype == np.uint32
    assert len(rotated) == len(ids) + 3 * masks // 2
    assert restore(rotated, VOCABULARY).tolist() == ids.tolist()


@settings(max_examples=500, deadline=None)
@given(documents, objectives, seeds)
def test_every_span_stays_inside_its_segment_and_none_touch(document, objective, seed):
    found = spans(document.to_ids(VOCABULARY), VOCABULARY)
    chosen = draw_spans(found, rng_for(seed, 0, 0), objective)
    assert len(chosen) <= objective.max_spans
    for start, stop in chosen:  # public bugs: start > end; a span that meets no segment unclipped
        assert start < stop
        assert any(s <= start and stop <= s + n for _, s, n in found)
    for (_, stop), (start, _) in itertools.pairwise(chosen):
        assert stop < start


@settings(max_examples=300, deadline=None)
@given(documents, objectives, seeds, st.integers(0, 12))
def test_max_length_drops_spans_and_cuts_nothing(document, objective, seed, room):
    ids = document.to_ids(VOCABULARY)
    limit = len(ids) + room
    rotated = rotate(ids, VOCABULARY, rng_for(seed, 0, 0), objective, limit)
    assert len(rotated) <= limit
    assert restore(rotated, VOCABULARY).tolist() == ids.tolist()


def test_layout_is_that_of_the_paper():
    ids = Document([Text([0, 1, 2]), Image([3, 4])]).to_ids(VOCABULARY)
    a, b, c, _, d, e = ids[1:-1].tolist()
    moved = relocate(ids, [(2, 4), (5, 7)], VOCABULARY)
    source = [EOS, a, M0, BREAK, M1, EOS]
    assert moved.tolist() == [*source, M0, b, c, EOSS, M1, d, e, EOSS]
    origin = [0, 1, -1, 4, -1, 7, -1, 2, 3, -1, -1, 5, 6, -1]
    assert provenance(moved, VOCABULARY).tolist() == origin


@settings(max_examples=500, deadline=None)
@given(documents, objectives, seeds)
def test_codes_keep_their_place_in_their_image_through_any_rotation(document, objective, seed):
    ids = document.to_ids(VOCABULARY)
    found = spans(ids, VOCABULARY)
    marks = np.zeros(len(ids), np.uint32)  # what is moved in the same way as the ids
    for kind, start, length in found:
        if kind == "image":
            marks[start : start + length] = 1000 + np.arange(length)
    chosen = draw_spans(found, rng_for(seed, 0, 0), objective)
    moved = relocate(marks, chosen, VOCABULARY).astype(np.int32)
    places = code_places(relocate(ids, chosen, VOCABULARY), VOCABULARY)
    assert places.tolist() == np.where(moved >= 1000, moved - 1000, -1).tolist()
    assert places.dtype == np.int32


def test_codes_behind_a_hole_and_in_its_fill_have_their_true_place():
    ids = Document([Text([0]), Image(range(5))], [Document([Image([7, 8])])]).to_ids(VOCABULARY)
    # <eos> 7 8 <break> 0 <break> 0 <mask:0> 3 4 <eos> <mask:0> 1 2 <eoss>
    places = code_places(relocate(ids, [(7, 9)], VOCABULARY), VOCABULARY)
    assert places.tolist() == [-1, 0, 1, -1, -1, -1, 0, -1, 3, 4, -1, -1, 1, 2, -1]


def test_no_span_leaves_the_document_as_it_is():
    """Public bug: a draw of zero spans crashed."""
    ids = Document([Text([1, 2]), Image([3])]).to_ids(VOCABULARY)
    rotated = rotate(ids, VOCABULARY, rng_for(0, 0, 0), Objective(rate=0.0))
    assert rotated.tolist() == ids.tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_documents_with_no_or_one_break_are_masked_whole(count):
    """Public bug: boundaries were lost in blocks with exactly one or no separator."""
    found = spans(Document([Text([1, 2])] * count).to_ids(VOCABULARY), VOCABULARY)
    whole = Objective(rate=5.0, whole_segment=1.0)
    drawn = {tuple(draw_spans(found, rng_for(seed, 0, 0), whole)) for seed in range(200)}
    places = [(1, 3), (4, 6)][:count]
    assert drawn == {(), *((place,) for place in places), tuple(places)}


def test_more_spans_than_fit_are_dropped():
    """Public bug: asserted when fewer than the wanted number fit."""
    found = spans(SINGLE.to_ids(VOCABULARY), VOCABULARY)
    drawn = [draw_spans(found, rng_for(s, 0, 0), Objective(rate=30.0)) for s in range(50)]
    assert all(chosen == [(1, 2)] for chosen in drawn)


def test_number_of_spans_follows_poisson_and_its_cap():
    found = spans(Document([Text(range(30))] * 20).to_ids(VOCABULARY), VOCABULARY)
    drawn = [draw_spans(found, rng_for(0, 0, i), Objective(max_spans=2)) for i in range(4000)]
    shares = np.bincount([len(chosen) for chosen in drawn], minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.368, 0.368, 0.264], atol=0.03)


def test_the_first_eos_is_never_masked_and_every_other_place_is():
    ids = Document([Text(range(6)), Image(range(4))]).to_ids(VOCABULARY)
    found = spans(ids, VOCABULARY)
    seen = np.zeros(len(ids), bool)
    for seed in range(500):
        for start, stop in draw_spans(found, rng_for(seed, 0, 0), Objective(whole_segment=0.0)):
            seen[start:stop] = True
    assert seen.tolist() == [id >= T for id in ids]


def test_every_epoch_masks_anew_and_every_run_repeats():
    ids = Document([Text(range(30))] * 4).to_ids(VOCABULARY)

    def row(*key: int) -> list[int]:
        return rotate(ids, VOCABULARY, rng_for(*key), Objective(rate=4.0)).tolist()

    assert row(7, 1, 2) == row(7, 1, 2)
    assert len({tuple(row(*key)) for key in [(7, 1, 2), (8, 1, 2), (7, 2, 2), (7, 1, 3)]}) == 4


def test_weights_follow_retrieved_tokens_to_their_new_place():
    document = Document([Text([4, 5])], [Document([Text([1, 2])])])
    ids = document.to_ids(VOCABULARY)
    moved = relocate(ids, [(2, 3), (4, 6)], VOCABULARY)
    objective = Objective(retrieved_weight=0.25, sentinel_weight=0.0)
    weights = token_weights(moved, VOCABULARY, objective, document.main_start)
    # <eos> 1 <mask:0> <break> <mask:1> <eos> <mask:0> 2 <eoss> <mask:1> 4 5 <eoss>
    r = 0.25
    assert weights.tolist() == [r, r, 0, r, 0, 1, 0, r, r, 0, 1, 1, 1]
    assert weights.dtype == np.float32
    assert token_weights(moved, VOCABULARY, Objective(), document.main_start).tolist() == [1.0] * 13


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([T, EOS], r"position 0: id 32 \(text 0\): a document opens with <eos>"),
        ([], "position 0: the ids end here: a document opens"),
        ([EOS, T], "position 2: the ids end here: a document closes with <eos>"),
        ([EOS, M1, EOS], r"position 1: id 6 \(<mask:1>\): only <break>, <mask:0> or <eos>"),
        ([EOS, M0, M0, EOS, M0, T, EOSS], "position 2: .*<mask:1>"),
        ([EOS, EOSS, EOS], "position 1"),
        ([EOS, M0, EOS], "position 3: the ids end here: the fill of <mask:0> opens here"),
        ([EOS, M0, EOS, T, M0, T, EOSS], "position 3: .*opens here"),
        ([EOS, M0, EOS, M1, T, EOSS], "position 3: .*opens here"),
        ([EOS, M0, EOS, M0, T], "position 5: the ids end here: <eoss> closes"),
        ([EOS, M0, EOS, M0, T, BREAK, T, EOSS], "position 5: .*<eoss> closes"),
        ([EOS, M0, EOS, M0, EOSS], "position 4: .*is empty"),
        ([EOS, T, EOS, T], "position 3: .*nothing stands behind"),
        ([EOS, M0, EOS, M0, T, EOSS, EOS], "position 6: .*nothing stands behind"),
        ([EOS, M0, M1, EOS, M0, T, EOSS], "position 7: .*<mask:1> opens here"),
        ([EOS, -1, EOS], r"position 1: id -1 \(outside"),
        ([EOS, 72, EOS], r"position 1: id 72 \(outside the vocabulary of 72\)"),
    ],
)
def test_malformed_rotations_are_refused_with_their_position(ids, message):
    with pytest.raises(ValueError, match=message):
        restore(ids, VOCABULARY)


def test_rotate_refuses_holes_and_documents_that_are_too_long():
    ids = Document([Text([1, -1])]).to_ids(VOCABULARY)
    with pytest.raises(ValueError, match=r"position 2: id 5 \(<mask:0>\): only a document without"):
        rotate(ids, VOCABULARY, rng_for(0, 0, 0), Objective())
    with pytest.raises(ValueError, match="document of 3 ids, max_length=2"):
        rotate(SINGLE.to_ids(VOCABULARY), VOCABULARY, rng_for(0, 0, 0), Objective(), max_length=2)


@pytest.mark.parametrize(
    ("pairs", "whole_segment", "text", "some_image", "image"),
    [  # 9-token captions, 1024-token images: the reference's simulated table, section 3.3. It draws
        # `whole_segment` once a row, we once a span, so its rows of 0.5 have fewer whole captions:
        # 0.20 of four pairs, 0.09 of one.
        (4, 0.0, 0.00, 0.63, 0.26),
        (4, 0.5, 0.23, 0.53, 0.33),
        (4, 1.0, 0.41, 0.40, 0.40),
        (1, 0.0, 0.00, 0.63, 0.00),
        (1, 0.5, 0.27, 0.54, 0.19),
    ],
)
def test_shares_of_masked_rows_match_the_reference(pairs, whole_segment, text, some_image, image):
    vocabulary = Vocabulary()
    document = Document([Text(range(9)), Image([0] * 1024)] * pairs)
    found = statistics([document], vocabulary, Objective(whole_segment=whole_segment), rounds=4000)
    expected = {
        "no_mask": 0.37,
        "text_masked": text,
        "some_image_masked": some_image,
        "image_masked": image,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.03)
    assert found["some_text_masked"] >= found["text_masked"]


def test_an_answer_is_masked_alone_in_the_share_that_is_asked_for():
    ids = Document([Text(range(6)), Image(range(4))]).to_ids(VOCABULARY)
    asked = Objective(rate=0.0, answer_last=0.7)
    made = [rotate(ids, VOCABULARY, rng_for(0, 0, i), asked, answers=[(3, 5)]) for i in range(600)]
    masked = relocate(ids, [(3, 5)], VOCABULARY).tolist()
    share = sum(row.tolist() == masked for row in made) / 600
    assert abs(share - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 600)
    assert all(row.tolist() in (masked, ids.tolist()) for row in made)


def test_an_answer_that_stands_last_is_left_there():
    ids = Document([Text(range(6)), Image(range(4))]).to_ids(VOCABULARY)
    last = Objective(rate=30.0, answer_last=1.0)
    assert (
        rotate(ids, VOCABULARY, rng_for(0, 0, 0), last, answers=[(8, 12)]).tolist() == ids.tolist()
    )


@settings(max_examples=200, deadline=None)
@given(documents, objectives, seeds, st.data())
def test_answers_weigh_what_closes_them_and_nothing_else_does(document, objective, seed, data):
    ids = document.to_ids(VOCABULARY)
    found = spans(ids, VOCABULARY)
    _, start, length = data.draw(st.sampled_from(found))
    answers = [(start, start + length)]
    only = Objective(
        rate=objective.rate,
        max_spans=objective.max_spans,
        whole_segment=1.0,
        answer_last=data.draw(st.sampled_from([0.0, 1.0])),
        answer_only=True,
        answer_length=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    rotated = rotate(ids, VOCABULARY, rng_for(seed, 0, 0), only, answers=answers)
    weights = token_weights(rotated, VOCABULARY, only, answers=answers)
    counted = rotated[weights > 0].tolist()
    closing = {EOS, BREAK, EOSS}
    assert [i for i in counted if i not in closing] == ids[start : start + length].tolist()
    assert 1 <= sum(i in closing for i in counted) <= 2  # moved away, its place closes as well
    assert len(set(weights[weights > 0].tolist())) == 1
    np.testing.assert_allclose(weights.sum(), len(counted) ** only.answer_length, rtol=1e-5)

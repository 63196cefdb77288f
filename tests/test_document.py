import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.tokens.document import MASK, Document, Image, Text, spans
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD, UNK, Vocabulary

VOCABULARY = Vocabulary(specials=64, sentinels=40, text=20, images=10)
TEXT, IMAGE, M0, M1 = VOCABULARY.text_start, VOCABULARY.image_start, 5, 6


def segments(holes: bool):
    low = MASK if holes else 0
    texts = st.lists(st.integers(low, 19), min_size=1, max_size=4).map(Text)
    images = st.lists(st.integers(low, 9), min_size=1, max_size=4).map(Image)
    # a segment of holes alone reads back as Text, so an image keeps one known code
    seen = images.filter(lambda image: any(code != MASK for code in image.codes))
    return st.lists(texts | seen, min_size=1, max_size=3)


def documents(holes: bool):
    plain = segments(holes).map(Document)
    return st.builds(Document, segments(holes), st.lists(plain, max_size=2))


@given(documents(holes=True))
def test_from_ids_inverts_to_ids(document):
    ids = document.to_ids(VOCABULARY)
    counts = [len(retrieved.segments) for retrieved in document.retrieved]
    assert ids.dtype == np.uint32
    assert Document.from_ids(ids, VOCABULARY, counts) == document


@given(documents(holes=False))
def test_main_document_starts_behind_the_retrieved_ones(document):
    ids, start = document.to_ids(VOCABULARY), document.main_start
    alone = Document(document.segments).to_ids(VOCABULARY)
    assert ids[start:].tolist() == alone[1:].tolist()


def test_template_is_that_of_the_paper():
    neighbour = Document([Text([1]), Image([2, 3])])
    document = Document([Text([4]), Image(np.array([5]))], [neighbour])
    expected = [EOS, TEXT + 1, BREAK, IMAGE + 2, IMAGE + 3, BREAK, TEXT + 4, BREAK, IMAGE + 5, EOS]
    assert document.to_ids(VOCABULARY).tolist() == expected


def test_holes_are_numbered_across_segments():
    document = Document([Text([MASK]), Image([1, MASK, 2])])
    ids = document.to_ids(VOCABULARY)
    assert ids.tolist() == [EOS, M0, BREAK, IMAGE + 1, M1, IMAGE + 2, EOS]
    assert Document.from_ids(ids, VOCABULARY) == document


def test_lone_sentinel_reads_back_as_text():
    ids = Document([Image([MASK])]).to_ids(VOCABULARY)
    assert Document.from_ids(ids, VOCABULARY) == Document([Text([MASK])])


def test_spans_name_every_segment():
    ids = Document([Text([1, 2]), Image([3, MASK, 4])], [Document([Text([5])])]).to_ids(VOCABULARY)
    assert spans(ids, VOCABULARY) == [("text", 1, 1), ("text", 3, 2), ("image", 6, 3)]


def test_equal_documents_are_one_key():
    assert (
        len({Document([Text([1])]), Document((Text(np.array([1])),)), Document([Image([1])])}) == 2
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([TEXT, TEXT, EOS], r"position 0: id 64 \(text 0\): a document opens with <eos>"),
        ([EOS, TEXT, TEXT], r"position 2: .* closes with <eos>"),
        ([EOS, EOS], "at least 3"),
        ([EOS, BREAK, TEXT, EOS], "position 1: .*empty segment"),
        ([EOS, TEXT, BREAK, EOS], "position 3: .*empty segment"),
        ([EOS, TEXT, EOS, TEXT, EOS], "position 2: .*restore"),
        ([EOS, TEXT, M0, IMAGE, EOS], r"position 3: id 84 \(image 0\): text and image in one"),
        ([EOS, IMAGE, TEXT, EOS], "position 2: .*text and image"),
        ([EOS, TEXT, PAD, EOS], r"position 2: id 0 \(<pad>\)"),
        ([EOS, UNK, EOS], r"position 1: id 2 \(<unk>\)"),
        ([EOS, EOSS, EOS], r"position 1: id 4 \(<eoss>\)"),
        ([EOS, 63, EOS], r"position 1: id 63 \(reserved\)"),
        ([EOS, 94, EOS], r"position 1: id 94 \(outside the vocabulary of 94\)"),
        ([EOS, -3, EOS], r"position 1: id -3 \(outside"),
        ([EOS, M1, EOS], r"position 1: id 6 \(<mask:1>\): sentinels stand in order"),
        ([EOS, M0, TEXT, M0, EOS], "position 3: .*in order"),
        ([[EOS, TEXT, EOS]], r"int64\[1, 3\]"),
    ],
)
def test_malformed_ids_are_refused_with_their_position(ids, message):
    with pytest.raises(ValueError, match=message):
        Document.from_ids(ids, VOCABULARY)


@pytest.mark.parametrize("retrieved", [(2,), (1, 1), (0,), (3,)])
def test_retrieved_counts_must_leave_a_main_document(retrieved):
    ids = Document([Text([1]), Text([2])]).to_ids(VOCABULARY)
    with pytest.raises(ValueError, match="leave a main document of 2 segments"):
        Document.from_ids(ids, VOCABULARY, retrieved)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Text([]), r"Text.ids has shape \[0\]"),
        (lambda: Image(np.zeros((2, 2), int)), r"Image.codes has shape \[2, 2\]: use a flat"),
        (lambda: Text([0.5]), "holds float64: use whole numbers"),
        (lambda: Image([-2]), "Image.codes holds -2"),
        (lambda: Document([]), "at least one segment"),
        (lambda: Document(["a cat"]), "holds 'a cat': use Text or Image"),
        (
            lambda: Document([Text([1])], [Document([Text([1])], [Document([Text([1])])])]),
            r"retrieved\[0\] has retrieved documents",
        ),
        (lambda: Document([Text([20])]).to_ids(VOCABULARY), "text piece 20"),
        (lambda: Document([Text([MASK] * 41)]).to_ids(VOCABULARY), "mask index=40"),
    ],
)
def test_impossible_documents_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_image_size_is_checked_where_asked():
    short, holed = Document([Image([1, 2, 3])]), Document([Image([1, MASK])])
    assert len(short.to_ids(VOCABULARY, image_tokens=3)) == 5
    assert len(holed.to_ids(VOCABULARY, image_tokens=4)) == 4
    with pytest.raises(ValueError, match="image of 3 codes: an image has 4 codes"):
        short.to_ids(VOCABULARY, image_tokens=4)
    with pytest.raises(ValueError, match="image at position 1 of 3 codes"):
        Document.from_ids(short.to_ids(VOCABULARY), VOCABULARY, image_tokens=4)

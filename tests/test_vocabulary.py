import numpy as np
import pytest

from cm3leon_jax.tokens.vocabulary import BREAK, EOS, EOSS, PAD, UNK, Vocabulary

SMALL = Vocabulary(specials=16, sentinels=8, text=20, images=10)


def test_paper_sizes_fill_65536_ids():
    vocabulary = Vocabulary()
    assert vocabulary.size == 65_536
    assert (vocabulary.text_start, vocabulary.image_start) == (1024, 57_344)


def test_control_ids_and_sentinels_stand_first():
    assert (PAD, EOS, UNK, BREAK, EOSS) == (0, 1, 2, 3, 4)
    assert [SMALL.mask(0), SMALL.mask(7)] == [5, 12]


def test_every_id_belongs_to_exactly_one_part():
    ids = np.arange(SMALL.size)
    parts = np.stack([ids < 5, SMALL.is_mask(ids), SMALL.is_text(ids), SMALL.is_image(ids)])
    reserved = [13, 14, 15]
    assert (parts.sum(0) == ~np.isin(ids, reserved)).all()
    assert SMALL.is_text(16)
    assert not SMALL.is_text(15)
    assert not SMALL.is_image(SMALL.size)


@pytest.mark.parametrize(
    ("to_ids", "back", "count"),
    [(SMALL.text_ids, SMALL.pieces, 20), (SMALL.image_ids, SMALL.codes, 10)],
)
def test_pieces_and_codes_come_back(to_ids, back, count):
    ids = to_ids(range(count))
    assert ids.dtype == np.uint32
    assert back(ids).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMALL.text_ids([3, 20]), "text piece 20: must lie between 0 and 19"),
        (lambda: SMALL.image_ids(-1), "image code -1: must lie between 0 and 9"),
        (lambda: SMALL.pieces([16, 36]), "text id 36: must lie between 16 and 35"),
        (lambda: SMALL.codes(np.array([35], np.uint32)), "image id 35"),
        (lambda: SMALL.mask(8), "mask index=8: vocabulary.sentinels=8"),
        (lambda: Vocabulary(specials=516), r"vocabulary.specials=516: must be >= 5 \+ sentinels"),
        (lambda: Vocabulary(images=0), "vocabulary.images=0: must be > 0"),
    ],
)
def test_errors_name_the_value_and_the_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_description_reads_like_the_paper():
    ids = [EOS, 16, 19, 5, BREAK, *range(36, 46), *range(36, 40), EOS, 5, 17, EOSS, 14]
    assert SMALL.describe(ids) == (
        "<eos> text[0 3] <mask:0> <break> image[0 1 2 3 4 5 6 7 8 9 0 1 ... 14 in all] <eos>"
        " <mask:0> text[1] <eoss> <reserved:14>"
    )
    assert (
        SMALL.describe([EOS, 16, EOS], decode=lambda pieces: f"p{pieces}") == "<eos> 'p[0]' <eos>"
    )
    assert SMALL.name(99) == "outside the vocabulary of 46"

import itertools
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3leon_jax.tokens.text import DIGITS, SPACE, TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

CAPTIONS = [
    f"a {size} {colour} {shape} above a {other} star"
    for size, colour, shape, other in itertools.product(
        ("small", "large"), ("red", "blue"), ("circle", "square"), ("green", "black")
    )
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, tmp_path_factory.mktemp("text") / "text.model", 128)


anything = st.text(st.characters(exclude_categories=["Cs"]))
captions = st.lists(st.sampled_from(["red", " ", "  ", "\n", "日", SPACE, *DIGITS])).map("".join)


@given(text=anything | captions)
@example(text="  two  spaces and a trailing one ")
@example(text=f"{SPACE} {SPACE}{DIGITS}")
@example(text="\x00\t\r\n\ufeff\ufffd<0x41>")
def test_every_string_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["<mask:0>", "<eos>", "<unk>", "<break>", "<eoss>", "<0x41>", "<s>"]
)
def test_text_that_looks_like_a_control_id_is_plain_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) >= len(text)
    assert 0 not in ids  # SentencePiece's own <unk>
    assert tokenizer.decode(ids) == text


def test_known_words_are_single_pieces(tokenizer):
    assert len(tokenizer.encode("a red circle above a green star")) == 7


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("pieces", [64, 128, 512])
def test_small_corpora_give_as_many_pieces_as_they_can(tmp_path, kind, pieces):
    tokenizer = TextTokenizer.train(CAPTIONS, tmp_path / "m", pieces, kind)
    assert 17 < tokenizer.pieces <= pieces
    assert tokenizer.decode(tokenizer.encode("a Größe\n")) == "a Größe\n"


def test_training_repeats_byte_for_byte_and_the_file_reads_back(tmp_path):
    first = TextTokenizer.train(iter(CAPTIONS), tmp_path / "new" / "a.model", 100)
    TextTokenizer.train(CAPTIONS, tmp_path / "b.model", 100)
    again = TextTokenizer.load(tmp_path / "new" / "a.model")
    assert (tmp_path / "b.model").read_bytes() == first.model == again.model
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.model"]


def test_sentences_with_newlines_tabs_and_signs_are_trained_on(tmp_path):
    sentences = [f"red\tcircle\nred\x00 {SPACE}{DIGITS[3]}"] * 3
    tokenizer = TextTokenizer.train(sentences, tmp_path / "m", 64)
    assert tokenizer.decode(tokenizer.encode(sentences[0])) == sentences[0]
    assert len(tokenizer.encode("red")) == 1


def test_half_a_character_decodes_to_the_replacement_sign(tokenizer):
    ids = tokenizer.encode("日")
    assert len(ids) == 6
    assert tokenizer.decode(ids[:4]) == "\ufffd"
    assert tokenizer.decode([*ids, ids[0]]) == "日\ufffd"


def test_a_copy_for_a_worker_process_is_equal(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a red cat") == tokenizer.encode("a red cat")


def test_bad_models_and_bad_sizes_give_one_clear_line(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"text model .*absent: No such file"):
        TextTokenizer.load(tmp_path / "absent")
    (tmp_path / "broken").write_bytes(b"a web page")
    with pytest.raises(ValueError, match=r"text model .*broken: not a SentencePiece model"):
        TextTokenizer.load(tmp_path / "broken")
    (tmp_path / "short").write_bytes(tokenizer.model[:100])
    with pytest.raises(ValueError, match=r"short: a SentencePiece model without pieces for bytes"):
        TextTokenizer.load(tmp_path / "short")
    with pytest.raises(ValueError, match=r"pieces=20: this corpus needs \d+ or more"):
        TextTokenizer.train(CAPTIONS, tmp_path / "m", 20)
    with pytest.raises(ValueError, match="pieces=64: there is no sentence to train on"):
        TextTokenizer.train([], tmp_path / "m", 64)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("id", [-1, 10_000])
def test_decode_refuses_ids_out_of_range(tokenizer, id):
    with pytest.raises(ValueError, match=f"text piece {id}: must lie between 0 and"):
        tokenizer.decode([id])


def test_pieces_must_fit_the_vocabulary(tokenizer):
    tokenizer.check_fits(Vocabulary(text=tokenizer.pieces))
    with pytest.raises(ValueError, match=f"has {tokenizer.pieces} pieces, the vocabulary 50"):
        tokenizer.check_fits(Vocabulary(text=50))

"""Those who watch get rows and pieces as they are drawn, and the same result as without."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL
from flax import nnx
from PIL import Image as Pillow

import cm3leon_jax as cm3
from cm3leon_jax import config
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.text import TextTokenizer

CHANGES = {"model.context": 96, "model.image_tokens": 16, "image_tokenizer.size": 16}
TEXTS = ["a red ring", "Question: what is it? Answer: Let's think step-by-step: So the answer is"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> cm3.Generator:
    c = config.replace(config.Experiment(), SMALL | {"model.text_pieces": 96} | CHANGES)
    path = tmp_path_factory.mktemp("text") / "text.model"
    text = TextTokenizer.train(TEXTS, path, pieces=c.model.text_pieces - 46)
    model = Transformer(c.model, rngs=nnx.Rngs(0))
    return cm3.Generator(c, text, model, VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1)))


@pytest.fixture
def heard() -> list[tuple]:
    return []


@pytest.fixture
def stream(heard):
    return lambda *told: heard.append(told)


def of(heard: list[tuple], index: int) -> list:
    return [what for number, what in heard if number == index]


def test_pictures_come_row_by_row_and_large_steps_draw_the_same(
    generator, heard, stream, monkeypatch
):
    asked = {"prompt": "a red ring", "n": 3, "seed": 2}
    monkeypatch.setattr("cm3leon_jax.decoding.batches.ROWS", 2)  # the last batch is filled up
    drawn = generator.images(**asked, stream=stream)
    plain = generator.images(**asked)
    for picture, same in zip(generator.images(**asked, speculative=True), plain, strict=True):
        np.testing.assert_array_equal(picture, same)
    assert len(heard) == 3 * 4
    for index, (picture, same) in enumerate(zip(drawn, plain)):
        rows = [np.asarray(part) for part in of(heard, index)]
        np.testing.assert_array_equal(picture, same)
        np.testing.assert_array_equal(picture, rows[-1])
        for row, part in enumerate(rows, start=1):
            grey = np.all(part == 128, axis=(1, 2))
            assert grey[4 * row :].all()
            assert not grey[: 4 * row].any()


def test_texts_come_piece_by_piece(generator, heard, stream):
    pictures = [Pillow.new("RGB", (16, 16), color) for color in ("red", "blue")]
    asked = {"image": pictures, "question": "what?", "explain": True, "temperature": 3.0}
    answers = generator.answer(**asked, stream=stream)
    assert answers == generator.answer(**asked)
    assert answers[0] != answers[1]
    for index, answer in enumerate(answers):
        texts = of(heard, index)
        assert texts[-1] == answer
        assert len(texts) > 2
        assert len(texts[0]) < len(answer)
        assert "So the answer is" not in texts[0]


def test_a_document_is_completed_as_one_watches(generator, heard, stream):
    given = generator.document("a red ring")
    asked = {"max_segments": 3, "temperature": 2.0, "seed": 4}
    whole = generator.complete(given, **asked, stream=stream)
    assert whole == generator.complete(given, **asked)
    numbers = [number for number, _ in heard]
    assert numbers == sorted(numbers)
    new = generator.parts(whole)[1:]
    assert {type(part) for part in new} == {str, Pillow.Image}
    for index, part in enumerate(new):
        last = of(heard, index)[-1]
        assert type(last) is type(part)
        np.testing.assert_array_equal(np.asarray(last), np.asarray(part))


def test_a_penalty_keeps_pieces_from_repeating(generator):
    picture = Pillow.new("RGB", (16, 16), "red")

    def pieces(penalty: float) -> list[int]:
        document = generator.document("a <mask>", picture)
        (fill,) = generator.drawer.fill([document], 0.0, 0, penalty)[0]
        return list(fill)

    free, penalized = pieces(1.0001), pieces(1e6)
    assert len(set(free)) < len(free)
    assert len(set(penalized)) == len(penalized) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_interval": (0.8, 0.1)}, r"guidance_interval=\(0.8, 0.1\): use two shares"),
        ({"guidance_interval": (0, 1.5)}, r"guidance_interval=\(0, 1.5\): use two shares"),
        ({"guidance_interval": 0.5}, "guidance_interval=0.5: use two shares of the image, 0 <= "),
        ({"guidance_interval": (0, 1), "contrastive": 2}, "use it or contrastive"),
        ({"speculative": True, "stream": print}, "speculative=True: use it without stream"),
    ],
)
def test_wrong_arguments_are_named(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator.images("a ring", **arguments)


def test_what_is_ranked_at_the_end_cannot_be_watched(generator):
    ranked = replace(generator, clip=object())
    with pytest.raises(ValueError, match=r"stream=.*: use it without candidates"):
        ranked.images("a ring", candidates=2, stream=print)


def test_a_penalty_below_one_is_refused(generator):
    with pytest.raises(ValueError, match=r"repetition_penalty=0.5: use 1 \(none\) or more"):
        generator.caption(Pillow.new("RGB", (16, 16)), repetition_penalty=0.5)

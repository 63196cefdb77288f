import re

import numpy as np
import pytest

from cm3leon_jax.data import emoji


@pytest.fixture(scope="module")
def records(font):
    return {record.id: record for record in emoji.records(32, font)}


@pytest.fixture(scope="module")
def edits(font):
    return list(emoji.skin_tone_edits(32, font))


def test_the_font_gives_thousands_of_emoji(records):
    assert 3500 < len(records) < 5000


def test_sequences_have_their_unicode_names(records):
    captions = {
        "emoji-1f600": "grinning face",
        "emoji-1f469-1f3fd-200d-1f680": "woman astronaut medium skin tone",
        "emoji-1f44d-1f3ff": "thumbs up dark skin tone",
        "emoji-1f1f3-1f1f4": "flag of norway",
        "emoji-1f3f4-e0067-e0062-e0077-e006c-e0073-e007f": "flag of wales",
    }
    assert {id: records[id].segments[0] for id in captions} == captions


def test_captions_are_plain_and_unlike(records):
    captions = [record.segments[0] for record in records.values()]
    assert len(set(captions)) == len(captions)
    assert not [caption for caption in captions if re.search(r"[_:\u2019]|\s\s|[A-Z]", caption)]


def test_images_are_unlike_and_on_white(records):
    images = np.stack([record.segments[1] for record in records.values()])
    assert images.shape[1:] == (32, 32, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] >= 250).all((1, 2)).mean() > 0.9
    assert images.min((1, 2, 3)).max() < 250, "nothing is drawn in a picture"


def test_colours_are_those_of_the_thing(records):
    y, x = 24, 16  # low in the middle: no eyes there
    yellow = records["emoji-1f600"].segments[1][y, x].astype(int)
    assert yellow[0] > 200
    assert yellow[2] < 120
    red = records["emoji-2764-fe0f"].segments[1][16, 16].astype(int)
    assert red[0] > 180
    assert red[1:].max() < 100


def test_sequences_newer_than_the_font_are_left_out(font, records):
    from PIL import ImageFont

    face = ImageFont.truetype(str(font), emoji.STRIKE)
    one = face.getlength("\U0001f600")
    for id in list(records)[::97]:
        sequence = "".join(chr(int(code, 16)) for code in id.split("-")[1:])
        assert face.getlength(sequence) == one


def test_the_same_records_come_at_any_size(records):
    larger = next(emoji.records(48))
    assert larger.id == next(iter(records))
    assert larger.segments[1].shape == (48, 48, 3)


def test_an_edit_ends_in_the_named_tone(records, edits):
    for edit in edits[::53]:
        family, change = edit.id.split("/")
        after = change.split("-to-")[1]
        tone = emoji.TONES[chr(int(after, 16))]
        assert edit.instruction == f"change the skin tone to {tone}"
        name = next(
            record.segments[0]
            for record in records.values()
            if np.array_equal(record.segments[1], edit.segments[1])
        )
        assert f" {tone} skin tone" in name
        assert family.startswith("emoji-")


def test_every_edit_changes_something(edits):
    assert len(edits) > 7000
    assert len({edit.id for edit in edits}) == len(edits)
    assert not any(np.array_equal(*edit.segments) for edit in edits)


def test_tones_of_a_family_come_from_every_start(edits):
    wave = [edit.id.split("/")[1] for edit in edits if edit.id.startswith("emoji-1f44b/")]
    assert len(wave) == 25  # 5 targets from the default and 4 others
    assert "default-to-1f3ff" in wave
    assert not [change for change in wave if change.endswith("default")]


def test_a_missing_font_names_the_package_and_the_option(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "FONT_FOLDERS", (tmp_path / "none", tmp_path))
    with pytest.raises(emoji.FontNotFound, match=r"fonts-noto-color-emoji.*--font"):
        next(emoji.records())
    with pytest.raises(emoji.FontNotFound, match=r"--font nowhere.ttf: no such file"):
        next(emoji.records(font="nowhere.ttf"))

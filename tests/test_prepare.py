"""Preparation: what is written is what each record gives, however it was cut into parts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RETRIEVER, SMALL
from flax import nnx
from PIL import Image

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data import prepare as room
from cm3leon_jax.data.prepare import embed, open_encoders, prepare
from cm3leon_jax.data.shards import Shards
from cm3leon_jax.data.structures import segmentation
from cm3leon_jax.mapped import Mapped
from cm3leon_jax.models.clip import CLIP, embed_pictures, embed_texts
from cm3leon_jax.models.image_codes import encode_pictures
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.text import TextTokenizer

COLOURS = ("red", "green", "blue", "black")


def write_folder(folder: Path, count: int = 40) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
        name = COLOURS[i % 4]
        licence = "CC0-1.0" if i % 2 else "CC-BY-4.0"
        lines.append({"id": f"p{i}", "image": f"{i}.png", "text": name, "license": licence})
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_networks(c: config.Experiment, workdir: Path) -> None:
    """Untrained, but finished as far as the preparation can see."""
    TextTokenizer.train(COLOURS, workdir / "text.model", pieces=c.model.text_pieces - 4)
    tokenizer = VQGAN(c.image_tokenizer, rngs=nnx.Rngs(1))
    checkpoint.save_network(workdir / "image_tokenizer" / "network", tokenizer)
    retriever = CLIP(c.retriever, c.model.text_pieces, rngs=nnx.Rngs(2))
    checkpoint.save_network(workdir / "retriever" / "network", retriever)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "pictures"
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory, experiment) -> Path:
    workdir = tmp_path_factory.mktemp("networks")
    write_networks(experiment, workdir)
    return workdir


@pytest.fixture(scope="module")
def experiment(source) -> config.Experiment:
    changes = {"data.source": str(source), "data.part": 16, "data.held_out": 0.2}
    return config.replace(config.Experiment(), SMALL | RETRIEVER | changes)


def copy_networks(networks: Path, workdir: Path) -> Path:
    workdir.mkdir(exist_ok=True)
    for name in ("text.model", "image_tokenizer", "retriever"):
        os.symlink(networks / name, workdir / name)
    return workdir


@pytest.fixture
def workdir(tmp_path, networks):
    return copy_networks(networks, tmp_path / "run")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, networks, experiment) -> Path:
    workdir = copy_networks(networks, tmp_path_factory.mktemp("prepared"))
    prepare(experiment, workdir)
    return workdir


def read_all(workdir: Path) -> dict[str, tuple]:
    """Everything that was prepared, by id."""
    found = {}
    for side in ("train", "held_out"):
        vectors = Mapped(workdir / "documents", f"{side}.vectors")
        for i, record in enumerate(Shards(workdir / "documents", side)):
            found[record.id] = (
                side,
                record.texts,
                [codes.tolist() for codes in record.images],
                record.license,
                vectors[[i]].tobytes(),
            )
    return found


def test_every_record_is_there_once_with_its_text_codes_and_licence(prepared, source, experiment):
    found = read_all(prepared)
    assert sorted(found) == sorted(f"p{i}" for i in range(40))
    assert {side for side, *_ in found.values()} == {"train", "held_out"}
    tokenizer = open_encoders(experiment, prepared).image_tokenizer
    for i in (0, 17, 39):
        pixels = np.asarray(Image.open(source / f"{i}.png"))[None]
        _, texts, codes, licence, _ = found[f"p{i}"]
        assert texts == [COLOURS[i % 4]]
        assert codes == encode_pictures(tokenizer, pixels).tolist()
        assert licence == ("CC0-1.0" if i % 2 else "CC-BY-4.0")
    licenses = json.loads((prepared / "documents" / "licenses.json").read_text())
    assert licenses == {"CC0-1.0": 20, "CC-BY-4.0": 20}


def test_vectors_are_the_mean_of_text_and_image_and_queries_leave_tokens_out(prepared, experiment):
    encoders = open_encoders(experiment, prepared)
    clip = encoders.retriever
    folder = Path(experiment.data.source)
    shards, vectors = (
        Shards(prepared / "documents", "train"),
        Mapped(prepared / "documents", "train.vectors"),
    )
    assert vectors.shape == (len(shards), 3, experiment.retriever.embedding)
    for i in (0, len(shards) - 1):
        record = shards[i]
        pixels = np.asarray(Image.open(folder / f"{record.id[1:]}.png"))[None]
        text = embed_texts(clip, [encoders.text.encode(record.texts[0])])[0]
        image = embed_pictures(clip, pixels)[0]
        mean = (text + image) / np.linalg.norm(text + image)
        np.testing.assert_allclose(vectors[[i]][0, 0], mean, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors[:].astype(float), axis=2), 1, atol=2e-3)
    whole = replace(experiment, retrieval=replace(experiment.retrieval, query_dropout=0.0))
    part = room.sources.plan(whole.data, 8)[0]
    examples = list(room.open_examples(whole, encoders.text, part, room.Skipped()))
    kept, dropped = (embed(c, encoders, examples) for c in (whole, experiment))
    np.testing.assert_array_equal(kept[:, 0], dropped[:, 0])
    assert np.any(kept[:, 2] != dropped[:, 2])


def test_the_parts_do_not_change_what_is_prepared(prepared, workdir, experiment):
    other = replace(experiment, data=replace(experiment.data, part=7))
    prepare(other, workdir)
    assert len(list((workdir / "documents").glob("part-*.json"))) == 6
    assert read_all(workdir) == read_all(prepared)


def test_workers_do_not_change_what_is_prepared(prepared, workdir, experiment):
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    prepare(experiment, workdir, options)
    assert read_all(workdir) == read_all(prepared)


def test_a_stopped_preparation_goes_on_and_makes_no_part_twice(
    prepared, workdir, experiment, monkeypatch
):
    parts = room.sources.plan(experiment.data, 8)
    room.prepare_part(experiment, workdir, len(parts), parts[1])
    whole = next((workdir / "documents").glob("train-00001-*"))
    before = whole.stat().st_mtime_ns
    (workdir / "documents" / "train-00002-of-00003.array_record").write_bytes(b"half")  # cut off
    with pytest.raises(FileNotFoundError, match="not finished"):
        Shards(workdir / "documents", "train")
    prepare(experiment, workdir)
    assert whole.stat().st_mtime_ns == before
    assert read_all(workdir) == read_all(prepared)
    monkeypatch.setattr(room, "prepare_part", None)
    prepare(experiment, workdir)  # all is there: nothing is done


def test_documents_of_another_licence_are_counted_apart(workdir, experiment):
    chosen = replace(experiment.data, allow_licenses=("CC0-1.0",))
    prepare(replace(experiment, data=chosen), workdir)
    assert {licence for _, _, _, licence, _ in read_all(workdir).values()} == {"CC0-1.0"}
    assert (workdir / "documents" / "skipped.txt").read_text() == ""


def test_what_cannot_be_used_is_listed_with_its_line(tmp_path, workdir, experiment):
    folder = tmp_path / "mine"
    write_folder(folder)
    (folder / "20.png").write_bytes((folder / "20.png").read_bytes()[:50])
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[30] = json.dumps({"id": "p30", "image": "30.png", "text": "red " * 60})
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    data = replace(experiment.data, source=str(folder), max_bad_fraction=0.1)
    prepare(replace(experiment, data=data), workdir)
    listed = (workdir / "documents" / "skipped.txt").read_text().splitlines()
    assert len(listed) == 2
    assert listed[0].startswith("a.jsonl:21: ")
    assert listed[1].startswith("a.jsonl:31: ")
    assert "tokens, data.row_length=48: shorten it" in listed[1]
    assert not {"p20", "p30"} & set(read_all(workdir))


def test_too_many_bad_records_stop_the_preparation(tmp_path, workdir, experiment):
    folder = tmp_path / "mine"
    write_folder(folder)
    for i in range(5):
        (folder / f"{i}.png").write_bytes(b"no picture")
    data = replace(experiment.data, source=str(folder))
    with pytest.raises(ValueError, match="5 of 40 records are bad"):
        prepare(replace(experiment, data=data), workdir)
    assert not (workdir / "documents" / "skipped.txt").exists()


def test_one_id_in_two_parts_is_named(tmp_path, workdir, experiment, capsys):
    folder = tmp_path / "mine"
    write_folder(folder)
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[39] = lines[39].replace('"p39"', '"p1"')
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    data = replace(experiment.data, source=str(folder), max_bad_fraction=0.1)
    room.check_records(replace(experiment, data=data))
    assert "a.jsonl:40: duplicate id 'p1', which will stop" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 ids come twice, first 'p1'; give every record"):
        prepare(replace(experiment, data=data), workdir)


def test_a_task_adds_its_map_and_answers_travel(tmp_path, networks, experiment):
    folder = tmp_path / "mine"
    write_folder(folder, 8)
    lines = (folder / "a.jsonl").read_text().splitlines()
    asked = {"question": "what?", "answer": "red", "answers": ["red", "green"]}
    asked["boxes"] = [["b", [0, 0, 4, 8]], ["thin", [0, 0, 0.5, 8]]]
    lines[1] = json.dumps(json.loads(lines[1]) | asked)
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    workdir = copy_networks(networks, tmp_path / "run")
    changes = {"data.source": str(folder), "data.task": "segmentation", "retrieval.most": 0}
    long = {"data.row_length": 128, "model.context": 128}  # the template is spelt in bytes here
    c = config.replace(experiment, changes | long)
    prepare(c, workdir)
    sides = ("train", "held_out")
    records = {r.id: r for side in sides for r in Shards(workdir / "documents", side)}
    assert len(records) == 8
    found = records["p1"]
    pixels = np.asarray(Image.open(folder / "1.png"))
    wanted = encode_pictures(
        open_encoders(c, workdir).image_tokenizer, np.stack([segmentation(pixels), pixels])
    )
    np.testing.assert_array_equal(found.images, wanted)
    assert (found.answers, found.boxes) == (("red", "green"), (("b", (0, 0, 4, 8)),))


def test_secrets_are_refused_as_pipeline_options(workdir, experiment):
    with pytest.raises(ValueError, match="--pipeline_options s3_secret_access_key: secrets belong"):
        prepare(experiment, workdir, ["--s3_secret_access_key=1234"])


def test_without_retrieval_no_retriever_is_needed(tmp_path, networks, experiment):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("text.model", "image_tokenizer"):
        os.symlink(networks / name, workdir / name)
    with pytest.raises(ValueError, match="run: cm3leon train --stage retriever --workdir"):
        prepare(experiment, workdir)
    alone = replace(experiment, retrieval=config.Retrieval())
    prepare(alone, workdir)
    assert Shards(workdir / "documents", "train").made_by.keys() == {"image_tokenizer"}
    with pytest.raises(ValueError, match="was prepared without retrieval: remove it and run"):
        prepare(experiment, workdir)

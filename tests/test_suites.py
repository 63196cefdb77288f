"""Suites on an untrained bundle: files, protocols, resumption, bad input, comparisons."""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from cm3leon_jax import arguments, config
from cm3leon_jax.cli import main
from cm3leon_jax.evaluation import parts, suites
from cm3leon_jax.evaluation.clip_score import Encoders
from cm3leon_jax.evaluation.fid import Statistics, frechet_distance
from cm3leon_jax.evaluation.inputs import read_pictures
from cm3leon_jax.evaluation.results import evaluate_suites, list_suites, show
from cm3leon_jax.evaluation.suites import Settings

WORDS = ("ace", "bead", "cab", "dad", "egg", "fad", "gag", "hedge", "ice")


class Painter:
    """What suites ask of a generator, without a network: pictures and texts made of what is asked,
    so that a sample is the same alone and among others."""

    experiment = config.replace(
        config.Experiment(),
        {"image_tokenizer.size": 8, "image_tokenizer.patch": 4, "model.image_tokens": 4}
        | {"image_tokenizer.multipliers": [1], "data.source": "elsewhere"},
    )
    clip = clip_tokenizer = memory = None
    int8, identity = False, "painter"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.documents: list[int] = []

    def images(self, prompts, seed, documents, candidates):
        self.asked += prompts
        draws = [np.random.default_rng([seed, zlib.crc32(p.encode())]) for p in prompts]
        return [Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for rng in draws]

    def caption(self, pictures, style, documents, seed):
        return [f"a {WORDS[int(picture[0, 0, 0]) % 8]}" for picture in pictures]

    def answer(self, pictures, questions, explain, documents, seed):
        self.documents.append(documents)
        if "a hedge" in questions:
            raise ValueError("a prompt of 90 tokens exceeds model.context=64")
        return ["The red." for _ in questions]


class Colours:
    """A feature network in small: mean and deviation of each colour."""

    name = "colours"

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        flat = pictures.reshape(len(pictures), -1, 3).astype(np.float32)
        return np.concatenate([flat.mean(1), flat.std(1)], axis=1)


@pytest.fixture
def generator() -> Painter:
    return Painter()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures with two captions each; one file is no picture."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(9):
        Pillow.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(folder / f"{i}.png")
        texts = [f"a {WORDS[i]}", f"one {WORDS[i]}"]
        lines += [json.dumps({"image": f"{i}.png", "text": text}) for text in texts]
    (folder / "8.png").write_bytes(b"no picture")
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def questions(source: Path, tmp_path_factory) -> Path:
    """VQA 2's files: ten questions, one without answers, one about a picture that is not there."""
    folder = tmp_path_factory.mktemp("vqa")
    (folder / "train2014").mkdir()
    for image in range(9):
        name = f"COCO_train2014_{image:012d}.jpg"
        (folder / "train2014" / name).write_bytes((source / f"{image}.png").read_bytes())
    people = [{"answer": text} for text in ["red"] * 7 + ["blue"] * 3]
    asked = [
        {"image_id": i, "question_id": i, "question": f"a {word}"} for i, word in enumerate(WORDS)
    ]
    asked += [{"image_id": image, "question_id": image, "question": "?"} for image in (3, 77)]
    asked[-2]["question_id"] = 9
    answers = [{"question_id": n, "answers": [] if n == 9 else people} for n in (*range(10), 77)]
    name = "v2_{}mscoco_train2014_{}.json"
    (folder / name.format("OpenEnded_", "questions")).write_text(json.dumps({"questions": asked}))
    (folder / name.format("", "annotations")).write_text(json.dumps({"annotations": answers}))
    return folder


@pytest.fixture
def settings(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(parts, "PART", 4)
    monkeypatch.setattr(parts.in_parts, "__defaults__", ("json", 4))
    texts = {f"{first} {word}": i for i, word in enumerate(WORDS) for first in ("a", "one")}
    clip = Encoders(
        "colours",
        lambda pictures: np.eye(9, dtype=np.float32)[pictures[:, 0, 0, 0] % 9],
        lambda said: np.eye(9, dtype=np.float32)[[texts[text] for text in said]],
    )
    data = config.Data(source=str(source), max_bad_fraction=0.2)
    return Settings(tmp_path / "out", data, "all", network=Colours(), encoders=clip)  # type: ignore[arg-type]


def test_the_command_line_knows_all_suites(generator, settings):
    assert tuple(suites.SUITES) == arguments.SUITES
    assert list_suites(generator, settings) == ["coco_fid", "captions"]


def test_pictures_are_drawn_scored_and_drawn_again_only_where_a_kill_has_left_none(
    generator, settings
):
    results = evaluate_suites(generator, ["coco_fid"], settings)
    out = settings.out / "coco_fid"
    suite = results["suites"]["coco_fid"]
    assert suite["protocol"]["count"] == 8
    assert suite["bad"] == 1
    assert "coco_fid: data.jsonl:17: not a picture" in (settings.out / "bad.txt").read_text()
    drawn = sorted((out / "drawn").glob("*.png"))
    real = sorted((out / "pictures").glob("*.png"))
    assert (len(drawn), len(real)) == (8, 8)
    sides = [Statistics.of(Colours()(read_pictures(files, 8))) for files in (drawn, real)]
    assert suite["scores"]["fid"] == pytest.approx(frechet_distance(*sides), rel=1e-5)
    assert 0 <= suite["scores"]["clip_score"] <= 100
    before = {path.name: path.read_bytes() for path in drawn}

    for killed in ("drawing/00001.json", "clip/00001.npy", "features/00001.npy"):
        (out / killed).unlink()
    drawn[-1].unlink()
    generator.asked.clear()
    assert evaluate_suites(generator, ["coco_fid"], settings) == results
    assert len(generator.asked) == 4
    assert {path.name: path.read_bytes() for path in drawn} == before


def test_processes_share_the_parts_and_wait_for_one_another(tmp_path, monkeypatch):
    made, waited = [], []
    monkeypatch.setattr(parts.processes, "count", lambda: 2)
    monkeypatch.setattr(parts, "wait_for", waited.extend)
    for process in (1, 0):
        monkeypatch.setattr(parts.jax, "process_index", lambda process=process: process)
        paths = parts.in_parts(tmp_path, 10, lambda rows: made.append(rows) or [*rows], size=4)
    assert made == [range(4, 8), range(0, 4), range(8, 10)]
    assert waited == [*paths, *paths]
    assert parts.read_lists(paths) == [*range(10)]


def test_fid_of_pictures_with_themselves_is_zero_from_a_folder_and_from_its_statistics(
    generator, settings, tmp_path
):
    evaluate_suites(generator, ["coco_fid"], settings)
    made = settings.out / "coco_fid"
    for number, reference in enumerate((made / "drawn", made / "reference.npz")):
        again = Settings(**vars(settings) | {"out": tmp_path / f"{number}", "reference": reference})
        found = evaluate_suites(generator, ["coco_fid"], again)["suites"]["coco_fid"]
        first = json.loads((settings.out / "results.json").read_text())["suites"]["coco_fid"]
        wanted = 0 if number == 0 else first["scores"]["fid"]
        assert found["scores"]["fid"] == pytest.approx(wanted, abs=1e-3)
        assert ("kid" in found["scores"]) == (number == 0)


def test_captions_and_answers_are_scored_and_reported(generator, settings, questions):
    captions = evaluate_suites(generator, ["captions"], settings)["suites"]["captions"]
    assert captions["scores"]["count"] == 8
    assert {"cider", "bleu_4", "rouge_l"} <= captions["scores"].keys()
    items = json.loads((settings.out / "captions" / "items.json").read_text())["items"]
    assert sorted(len(item["texts"]) for item in items) == [2] * 8
    page = (settings.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8

    data = config.Data(source=str(questions), task="vqa2", max_bad_fraction=0.4)
    asked = replace(settings, data=data, out=settings.out / "questions")
    assert list_suites(generator, asked) == ["vqa"]  # its records have no captions
    vqa = evaluate_suites(generator, ["vqa"], asked)["suites"]["vqa"]
    assert vqa["scores"]["vqa_accuracy_count"] == 8
    assert vqa["scores"]["vqa_accuracy"] == 7 / 8
    assert (vqa["scores"]["empty"], vqa["scores"]["refused"], vqa["bad"]) == (1, 1, 4)
    bad = (asked.out / "bad.txt").read_text()
    assert "coco/7: a hedge: a prompt of 90 tokens exceeds" in bad
    assert "not a picture" in bad
    assert "question 9: all 0 answers are empty" in bad
    assert "COCO_train2014_000000000077.jpg" in bad
    assert "![vqa](vqa.png)" in (asked.out / "report.md").read_text()
    assert ({*generator.documents}, vqa["protocol"]["decode"]["documents"]) == ({0}, 0)


def test_answers_are_asked_for_behind_the_documents_that_are_written_down(
    generator, settings, questions
):
    generator.memory = object()
    some = {"decode.documents": 2, "retrieval.most": 2}
    generator.experiment = config.replace(Painter.experiment, some)
    data = config.Data(source=str(questions), task="vqa2", max_bad_fraction=0.4)
    for given, wanted in ((None, 0), (1, 1)):
        generator.documents.clear()
        asked = replace(settings, data=data, documents=given, out=settings.out / f"{given}")
        protocol = evaluate_suites(generator, ["vqa"], asked)["suites"]["vqa"]["protocol"]
        assert ({*generator.documents}, protocol["decode"]["documents"]) == ({wanted}, wanted)


def test_suites_of_several_calls_stand_side_by_side_each_as_soon_as_it_is_done(generator, settings):
    def read() -> dict:
        return json.loads((settings.out / "results.json").read_text())

    with pytest.raises(ValueError, match="use a source with pictures"):  # it has no questions
        evaluate_suites(generator, ["captions", "vqa"], settings)
    first = read()
    assert {*first["suites"]} == {"captions"}
    found = evaluate_suites(generator, ["coco_fid"], settings)
    assert {*found["suites"]} == {"coco_fid"}
    assert read() == found | {"suites": found["suites"] | first["suites"]}
    for name in ("report.md", "report.html", "bad.txt"):
        text = (settings.out / name).read_text()
        assert "captions" in text
        assert "coco_fid" in text
    assert (settings.out / "report.html").read_text().count("data:image/png;base64,") == 16


def test_captions_are_not_written_where_nothing_can_score_them(generator, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ValueError, match=r"captions need pycocoevalcap: pip install"):
        evaluate_suites(generator, ["coco_fid", "captions"], settings)
    assert not settings.out.exists()


@pytest.mark.parametrize(
    "change", ["decode.temperature", "allow_licenses", "max_bad_fraction", "reference", "identity"]
)
def test_parts_of_another_command_are_not_taken(generator, settings, change, tmp_path):
    reference = tmp_path / "real"
    reference.mkdir()
    for i in range(2):
        Pillow.new("RGB", (8, 8), (i, 9, 9)).save(reference / f"{i}.png")
    settings = replace(settings, reference=reference)
    evaluate_suites(generator, ["captions"], settings)
    changes = {"allow_licenses": ("CC0-1.0",), "max_bad_fraction": 0.3}
    if change == "decode.temperature":
        generator.experiment = config.replace(generator.experiment, {change: 0.5})
    elif change == "reference":
        Pillow.new("RGB", (8, 8)).save(reference / "0.png")
    elif change == "identity":
        change = "bundle"
        generator.identity = "another"
    else:
        settings = replace(settings, data=replace(settings.data, **{change: changes[change]}))
    with pytest.raises(ValueError, match=rf"{change}=.*settings.json has"):
        evaluate_suites(generator, ["captions"], settings)


def test_results_of_other_protocols_are_not_compared(generator, settings, tmp_path):
    one = evaluate_suites(generator, ["captions"], settings)
    path = settings.out / "results.json"
    assert "cider" in show(one, path)
    assert show(one, path).splitlines()[1].endswith("0.0000")
    fewer = replace(settings, count=3, out=tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"dataset_hash='.*': .*results.json has"):
        evaluate_suites(generator, ["captions"], fewer, against=path)
    assert not (fewer.out / "captions" / "captions").exists()  # nothing was written by then
    with pytest.raises(ValueError, match=r"against=.*: use results with one of \['coco_fid'\]"):
        evaluate_suites(generator, ["coco_fid"], settings, against=path)
    assert generator.asked == []
    with pytest.raises(ValueError, match=r"count=3: .*settings.json has 512"):
        evaluate_suites(generator, ["captions"], replace(settings, count=3))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"against=.*use a results.json"):
        evaluate_suites(generator, ["captions"], settings, against=tmp_path / "x.json")


def test_what_is_measured_otherwise_is_reported_and_not_compared(generator, settings, tmp_path):
    evaluate_suites(generator, ["coco_fid"], settings)
    path = settings.out / "results.json"
    other = replace(settings, encoders=settings.encoders._replace(name="x"), out=tmp_path / "other")
    with pytest.raises(ValueError, match=r"measure\.clip='x': .*results.json has 'colours'"):
        evaluate_suites(generator, ["coco_fid"], other, against=path)
    assert "clip_score" in (other.out / "report.md").read_text()
    assert "coco_fid" in json.loads((other.out / "results.json").read_text())["suites"]


def test_too_many_bad_records_stop_an_evaluation(generator, settings):
    strict = replace(settings, data=config.Data(source=settings.data.source))
    with pytest.raises(ValueError, match=r"records are bad"):
        evaluate_suites(generator, ["captions"], strict)


def test_the_command_prints_scores_and_refuses_other_protocols(
    generator, settings, monkeypatch, capsys
):
    monkeypatch.setattr("cm3leon_jax.decoding.generator.load", lambda bundle: generator)
    command = ["evaluate", "bundle", "--suite", "captions", "--split", "all"]
    command += ["--data", settings.data.source, "--max_bad_fraction", "0.2", "--out"]
    first, second = settings.out / "first", settings.out / "second"
    assert main([*command, str(first)]) == 0
    assert "captions  rouge_l  " in capsys.readouterr().out
    results = str(first / "results.json")
    assert main([*command, str(second), "--against", results]) == 0
    assert capsys.readouterr().out.count("0.0000\n") >= 6
    assert main([*command, str(settings.out / "third"), "--seed", "1", "--against", results]) == 2
    assert "has" in capsys.readouterr().err
    assert main(command[:-1]) == 2
    assert "--suite: name a folder" in capsys.readouterr().err
    missing = ["--inception", str(first / "none.pth")]
    assert main([*command, str(first), *missing]) == 2
    assert "no such file" in capsys.readouterr().err

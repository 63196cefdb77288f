"""`cm3leon sample --requests`: a file of them, its bad lines, and a job that is resumed."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_generator import SIZE, FakeGenerator, enter, paint, pixels, serve
from PIL import Image

from cm3leon_jax.cli import main
from cm3leon_jax.sampling import jobs


@pytest.fixture
def fake(small, monkeypatch) -> FakeGenerator:
    return serve(small, monkeypatch)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return enter(tmp_path, monkeypatch)


def write_job(*lines) -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path("job.jsonl").write_text("\n".join(texts) + "\n")


def run_job(*more: str) -> int:
    return main(["sample", "bundle", "--requests", "job.jsonl", "--out", "out", *more])


def results(name: str = "out/results.jsonl") -> dict[str, dict]:
    lines = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def files(pattern: str = "*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").glob(pattern)}


def test_a_job_answers_every_line(fake, folder, capsys):
    write_job(
        {"id": "a1", "task": "images", "prompt": "a ring", "n": 4, "seed": 3},
        "",
        {"id": "b", "task": "caption", "image": "seven.png"},
        {"id": "c.d-e_f", "prompt": "a square", "temperature": 0.5},
        {"id": "e", "task": "boxes", "prompt": "x", "boxes": [["ring", [0, 0, 4, 4]]]},
        {"id": "f", "task": "answer", "image": "seven.png", "question": "what?"},
    )
    assert run_job("--guidance", "2", "--style", "long") == 0
    assert "out: 5 requests answered, 0 before\n" in capsys.readouterr().out
    found = results()
    assert found["b"]["text"] == "long 7 größer"
    assert found["f"]["text"] == "what? 7 False 0"
    assert found["a1"]["request"]["guidance"] == 2
    assert found["a1"]["pictures"] == ["a1-0.png", "a1-1.png", "a1-2.png", "a1-3.png"]
    assert found["c.d-e_f"]["pictures"] == ["c.d-e_f-0.png"]
    drawn = paint("a ring", 2, (2.0, 1.0, 0.75, 0, 0, None, None, False), 3)
    np.testing.assert_array_equal(pixels("out/a1-2.png"), np.asarray(drawn))
    told = Image.open("out/a1-2.png").text
    assert (told["id"], told["number"], told["seed"]) == ("a1", "2", "3")
    assert told["prompt"] == "a ring"
    assert set(files()) == {"results.jsonl", "skipped.txt", "e-0.png", *found["a1"]["pictures"],
                            "c.d-e_f-0.png"}  # fmt: skip
    assert files("skipped.txt") == {"skipped.txt": b""}


def test_neighbours_of_equal_options_go_together(fake, folder):
    write_job(
        *({"id": f"a{i}", "prompt": f"ring {i}", "n": 2} for i in range(20)),
        *({"id": f"b{i}", "prompt": f"ring {i}", "n": 2, "seed": 1} for i in range(3)),
        *({"id": f"c{i}", "task": "caption", "image": "seven.png"} for i in range(3)),
        {"id": "d", "prompt": "ring", "candidates": 4},
    )
    assert run_job() == 0
    sizes = [len(call[1]) if call[0] == "images" else call[1] for call in fake.calls]
    assert sizes == [16, 4, 3, 3, 1]
    assert results()["d"]["scores"] == [0.25]
    options = (3.0, 1.0, 0.75, 0, 0, None, None, False)
    for i in (0, 15, 16, 19):
        np.testing.assert_array_equal(
            pixels(f"out/a{i}-1.png"), np.asarray(paint(f"ring {i}", 1, options, 0))
        )


BAD = [
    ("{broken", "broken JSON"),
    ("[" * 100_000, "broken JSON"),
    ("[1]", "line=[1]: use an object"),
    ({"prompt": "x"}, "id=None"),
    ({"id": "good", "prompt": "x"}, "id='good': use every id once"),
    ({"id": "../x", "prompt": "x"}, "id='../x': use up to 100 letters"),
    ({"id": "a/b", "prompt": "x"}, "id='a/b'"),
    ({"id": ".x", "prompt": "x"}, "id='.x'"),
    ({"id": "x\n", "prompt": "x"}, "id='x\\n'"),
    ({"id": "y" * 101, "prompt": "x"}, "id='yyy"),
    ({"id": 7, "prompt": "x"}, "id=7"),
    ({"id": "b1", "task": "sing", "prompt": "x"}, "task='sing': use one of 'images'"),
    ({"id": "b2", "task": ["images"], "prompt": "x"}, "task=['images']"),
    ({"id": "b3", "prompt": "x", "guidence": 2}, "guidence=2: task images takes no guidence"),
    ({"id": "b4", "prompt": "x", "n": 2.0}, "n=2.0: use a whole number"),
    ({"id": "b5", "prompt": "x", "n": True}, "n=True: use a whole number"),
    ({"id": "b6", "prompt": "x", "top_p": "1"}, "top_p='1': use a number"),
    ({"id": "b7", "prompt": "x", "mixed": 1}, "mixed=1: use true or false"),
    ({"id": "i", "prompt": "x", "guidance_interval": 0.5}, "=0.5: use [from, to], two shares"),
    ({"id": "b8", "prompt": ["x"]}, "prompt=['x'] is not text"),
    ({"id": "b9", "prompt": "\ud800"}, "half a surrogate"),
    ({"id": "ba", "prompt": "x", "n": 0}, "n=0: use at least 1"),
    ({"id": "bb", "task": "caption", "image": "none.png"}, "image='none.png'"),
    ({"id": "bc", "task": "caption", "image": "bad.png"}, "image='bad.png': not a picture"),
    ({"id": "bd", "task": "caption", "image": "a\0b"}, "image='a\\x00b'"),
    ({"id": "be", "task": "boxes", "prompt": "x", "boxes": [["a", [1, 2, 3]]]}, "boxes=[["),
    ({"id": "bf", "task": "caption"}, "image=None"),
    ({"id": "bg", "prompt": "x", "guidance": float("nan")}, "guidance=nan: use a number"),
    ({"id": "bh", "prompt": "refused"}, "no refused prompt"),
]


def test_bad_lines_are_listed_and_harm_no_others(fake, folder, capsys):
    Path("bad.png").write_bytes(b"no picture")
    good = {"id": "good", "prompt": "a ring"}
    last = [{"id": "z", "prompt": "z"}, {"id": "zz", "task": "caption", "image": "seven.png"}]
    write_job(good, *(line for line, _ in BAD), *last)
    assert run_job() == 0
    listed = Path("out/skipped.txt").read_text().splitlines()
    assert len(listed) == len(BAD)
    for number, (line, (_, reason)) in enumerate(zip(listed, BAD), start=2):
        assert line.startswith(f"job.jsonl:{number}: ")
        assert reason in line
    assert set(results()) == {"good", "z", "zz"}
    printed = capsys.readouterr().out
    assert f"3 requests answered, 0 before, {len(BAD)} bad, listed in out/skipped" in printed


def test_a_job_of_bad_lines_only_is_an_error(fake, folder, capsys):
    write_job("{broken", {"id": "b", "task": "caption", "image": "none.png"})
    assert run_job() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "all 2 requests are bad" in error
    assert "job.jsonl:1: broken JSON" in error


LINES = [{"id": f"r{i}", "prompt": f"ring {i}", "n": 2, "seed": i // 2} for i in range(7)]


def test_a_killed_job_goes_on_and_ends_like_one_that_was_not(fake, folder, monkeypatch):
    write_job(*LINES)
    assert run_job() == 0
    whole = files()
    for path in Path("out").iterdir():
        path.unlink()

    drawn, real = [], jobs.write_png

    def killed(path, image, about):
        drawn.append(path)
        if len(drawn) == 6:  # the second picture of the third request
            raise KeyboardInterrupt
        real(path, image, about)

    monkeypatch.setattr(jobs, "write_png", killed)
    assert run_job() == 130
    assert set(results()) == {"r0", "r1"}
    assert not Path("out/skipped.txt").exists()
    with Path("out/results.jsonl").open("ab") as file:
        file.write(b'{"id": "r2", "pict')  # as a kill leaves it
    fake.calls.clear()
    monkeypatch.setattr(jobs, "write_png", real)
    assert run_job() == 0
    assert fake.calls[0] == ("images", ["ring 2", "ring 3"], 2, 1)
    assert files() == whole
    fake.calls.clear()
    assert run_job() == 0
    assert fake.calls == []
    assert files() == whole


def test_an_answered_id_with_other_fields_is_bad_and_another_bundle_an_error(fake, folder, capsys):
    write_job(*LINES)
    assert run_job() == 0
    write_job(*LINES[:3], {**LINES[3], "seed": 9}, *LINES[4:])
    assert run_job() == 0
    assert "job.jsonl:4: id='r3': use another id" in Path("out/skipped.txt").read_text()
    fake.identity = "f" * 16
    assert run_job() == 2
    assert "use another folder than out" in capsys.readouterr().err


def test_requests_come_from_standard_input(fake, folder, monkeypatch):
    class Input:
        buffer = io.BytesIO("\n".join(map(json.dumps, LINES)).encode())

    monkeypatch.setattr(sys, "stdin", Input)
    assert main(["sample", "b", "--requests", "-", "--out", "out"]) == 0
    assert set(results()) == {line["id"] for line in LINES}


def test_pictures_lie_beside_the_requests_and_options_stand_in(fake, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    lines = [{"id": "a", "question": "what?"}, {"id": "b", "question": "x", "image": "eight.png"}]
    write_job(*lines)
    Image.new("RGB", (9, 9), (8, 8, 8)).save("eight.png")
    monkeypatch.chdir("elsewhere")
    Image.open("../seven.png").save("seven.png")
    options = ["--task", "answer", "--image", "seven.png", "--seed", "4", "--out", "out"]
    assert main(["sample", "b", "--requests", "../job.jsonl", *options]) == 0
    texts = {id: line["text"] for id, line in results().items()}
    assert texts == {"a": "what? 7 False 4", "b": "x 8 False 4"}


def test_pictures_are_enlarged_where_that_is_asked_for_and_told(fake, folder):
    write_job({"id": "a", "prompt": "a ring", "n": 2, "upscale": True}, {"id": "b", "prompt": "a"})
    assert run_job() == 0
    assert "upscaler=None" in Path("out/skipped.txt").read_text()
    assert set(files("*.png")) == {"b-0.png"}
    fake.upscaler, fake.identity = "an upscaler", "f" * 16  # now it is another bundle
    assert run_job() == 2
    assert main(["sample", "b", "--requests", "job.jsonl", "--out", "new"]) == 0
    sizes = {path.name: Image.open(path).size[0] for path in Path("new").glob("*.png")}
    assert sizes == {"a-0.png": 4 * SIZE, "a-1.png": 4 * SIZE, "b-0.png": SIZE}
    assert Image.open("new/a-1.png").text["upscale"] == "true"
    assert results("new/results.jsonl")["a"]["request"]["upscale"] is True

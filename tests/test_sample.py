"""`cm3leon sample`: every task, one request or a file of them, resumed, and what pictures tell."""

import io
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax import config
from cm3leon_jax.arguments import parse
from cm3leon_jax.cli import main
from cm3leon_jax.sampling import jobs

SIZE = 8


def paint(*about) -> Image.Image:
    """A picture that depends on everything that it was asked for."""
    rng = np.random.default_rng(zlib.crc32(repr(about).encode()))
    return Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))


class FakeGenerator:
    """Stands in for a Generator: answers at once, and keeps what it was asked."""

    def __init__(self, experiment: config.Experiment):
        self.experiment, self.memory, self.upscaler = experiment, None, None
        self.transformer = {"weight": np.ones((3, 4))}
        self.image_tokenizer = {"weight": np.zeros((2, 100))}
        self.calls: list[tuple] = []

    def images(self, prompt, n=1, *, guidance=None, contrastive=None, temperature=None, top_p=None,
               top_k=None, documents=None, candidates=None, mixed=False, return_scores=False,
               guidance_interval=None, speculative=False, stream=None, seed=0):  # fmt: skip
        self.calls.append(("images", list(prompt), n, seed))
        if n < 1 or "refused" in prompt:
            raise ValueError(f"n={n}: use at least 1, and no refused prompt")
        assert (guidance is None) == (contrastive is not None and not mixed)
        options = (guidance, temperature, top_p, top_k, documents, contrastive, candidates, mixed)
        self.fast = (guidance_interval, speculative)
        drawn = [paint(one, number, options, seed) for one in prompt for number in range(n)]
        return [(image, 0.25) for image in drawn] if return_scores else drawn

    def require_upscaler(self):
        if self.upscaler is None:
            raise ValueError("upscaler=None")

    def upscale(self, image):
        return [picture.resize((4 * SIZE, 4 * SIZE)) for picture in image]

    def caption(self, image, *, style="short", documents=None, temperature=None,
                repetition_penalty=None, stream=None, seed=0):  # fmt: skip
        assert repetition_penalty == 1
        self.calls.append(("caption", len(image), style, documents, temperature, seed))
        return [f"{style} {int(pixels[0, 0, 0])} größer" for pixels in image]

    def answer(self, image, question, *, explain=False, temperature=None, repetition_penalty=None,
               documents=0, stream=None, seed=0):  # fmt: skip
        return [f"{q} {int(i[0, 0, 0])} {explain} {seed}" for i, q in zip(image, question)]

    def edit(self, image, instruction, *, guidance_image=1.5, guidance_text=7.5, temperature=None,
             top_p=None, top_k=None, documents=0, seed=0):  # fmt: skip
        options = (guidance_image, guidance_text, temperature, top_p, top_k, seed)
        return [paint(i.sum(), asked, *options) for i, asked in zip(image, instruction)]

    def from_structure(self, map_image, kind, prompt, *, guidance=3.0, temperature=None,
                       top_p=None, top_k=None, documents=0, seed=0):  # fmt: skip
        options = (kind, guidance, temperature, top_p, top_k, seed)
        return [paint(i.sum(), asked, *options) for i, asked in zip(map_image, prompt)]

    def from_boxes(self, caption, boxes, *, guidance=3.0, temperature=None, top_p=None, top_k=None,
                   documents=0, seed=0):  # fmt: skip
        self.calls.append(("boxes", caption, boxes, guidance, temperature, top_p, top_k, seed))
        return paint(caption, boxes, seed)


@pytest.fixture
def fake(small, monkeypatch) -> FakeGenerator:
    generator = FakeGenerator(config.replace(small, {"decode.top_p": 0.75}))
    monkeypatch.setattr("cm3leon_jax.decoding.generator.load", lambda bundle: generator)
    return generator


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a picture whose every value is 7."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (12, 10), (7, 7, 7)).save("seven.png")
    return tmp_path


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


def pixels(source) -> np.ndarray:
    return np.asarray(Image.open(source))


def test_pictures_lie_in_a_grid_that_tells_how_it_was_drawn(fake, folder):
    assert main(["sample", "b", "ein großer Ring", "--n", "3", "--guidance", "2", "--seed", "5",
                 "--out", "g.png"]) == 0  # fmt: skip
    image = Image.open("g.png")
    assert image.size == (3 * SIZE + 4, SIZE)
    about = dict(image.text)
    assert len(about.pop("bundle")) == 16
    assert about == {
        "Software": "cm3leon_jax 0.1.0", "task": "images", "prompt": "ein großer Ring", "n": "3",
        "guidance": "2.0", "temperature": "1.0", "top_p": "0.75", "top_k": "0", "documents": "0",
        "mixed": "false", "speculative": "false", "seed": "5",
    }  # fmt: skip


def test_what_a_picture_tells_draws_it_again(fake, folder):
    assert main(["sample", "b", "a ring", "--contrastive", "4", "--top_k", "9", "--candidates", "6",
                 "--mixed", "--seed", "2", "--out", "a.png"]) == 0  # fmt: skip
    told = dict(Image.open("a.png").text)
    again = ["sample", "b", told["prompt"], "--task", told["task"], "--mixed", "--out", "b.png"]
    for name in ("guidance", "temperature", "top_p", "top_k", "documents", "contrastive",
                 "candidates", "n", "seed"):  # fmt: skip
        again += [f"--{name}", told[name]]
    assert told["mixed"] == "true"
    assert told["scores"] == "[0.25]"
    assert main(again) == 0
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_cd_k_alone_has_no_guidance_and_no_cut(fake, folder):
    assert main(["sample", "b", "a ring", "--contrastive", "4"]) == 0
    told = Image.open("grid.png").text
    assert "guidance" not in told
    assert (told["contrastive"], told["top_p"], told["top_k"]) == ("4", "1.0", "0")


def test_an_interval_and_large_steps_are_asked_for_and_told(fake, folder):
    assert main(["sample", "b", "a ring", "--guidance_interval", "0.1", "0.8",
                 "--speculative"]) == 0  # fmt: skip
    assert fake.fast == ([0.1, 0.8], True)
    told = Image.open("grid.png").text
    assert (told["guidance_interval"], told["speculative"]) == ("[0.1, 0.8]", "true")


def test_pictures_are_enlarged_where_that_is_asked_for_and_told(fake, folder):
    write_job({"id": "a", "prompt": "a ring", "n": 2, "upscale": True}, {"id": "b", "prompt": "a"})
    assert run_job() == 0
    assert "upscaler=None" in Path("out/skipped.txt").read_text()
    assert set(files("*.png")) == {"b-0.png"}
    fake.upscaler = {"weight": np.ones((2, 3))}  # now it is another bundle
    assert run_job() == 2
    assert main(["sample", "b", "--requests", "job.jsonl", "--out", "new"]) == 0
    sizes = {path.name: Image.open(path).size[0] for path in Path("new").glob("*.png")}
    assert sizes == {"a-0.png": 4 * SIZE, "a-1.png": 4 * SIZE, "b-0.png": SIZE}
    assert Image.open("new/a-1.png").text["upscale"] == "true"
    assert results("new/results.jsonl")["a"]["request"]["upscale"] is True


def test_another_bundle_is_told_apart(fake, folder):
    assert main(["sample", "b", "a ring", "--out", "a.png"]) == 0
    fake.transformer["weight"] = fake.transformer["weight"] * 1.5
    assert main(["sample", "b", "a ring", "--out", "b.png"]) == 0
    assert Image.open("a.png").text["bundle"] != Image.open("b.png").text["bundle"]


def test_the_prompt_may_stand_behind_options(fake, folder):
    assert main(["sample", "b", "--n", "2", "a ring"]) == 0
    assert fake.calls == [("images", ["a ring"], 2, 0)]
    assert Path("grid.png").exists()
    with pytest.raises(SystemExit):
        parse(None, ["sample", "b", "a ring", "another"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--task", "caption", "--image", "seven.png"], "short 7 größer"),
        (["--task", "caption", "--image", "seven.png", "--style", "long"], "long 7 größer"),
        (["--task", "answer", "what?", "--image", "seven.png"], "what? 7 False 0"),
        (["--task", "answer", "--question", "what?", "--image", "seven.png", "--explain", "--seed",
          "3"], "what? 7 True 3"),
    ],
)  # fmt: skip
def test_texts_are_printed(fake, folder, capsys, arguments, text):
    assert main(["sample", "b", *arguments]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert not Path("grid.png").exists()


def test_edits_structures_and_boxes_are_drawn(fake, folder):
    seven = np.full((SIZE, SIZE, 3), 7, np.uint8).sum()
    image = ["--image", "seven.png"]
    edit = ["--task", "edit", "make it red", *image, "--guidance_image", "2.5"]
    assert main(["sample", "b", *edit]) == 0
    drawn = paint(seven, "make it red", 2.5, 7.5, 1.0, 0.75, 0, 0)
    np.testing.assert_array_equal(pixels("grid.png"), np.asarray(drawn))
    told = Image.open("grid.png").text
    wanted = ("seven.png", "2.5", "7.5")
    assert (told["image"], told["guidance_image"], told["guidance_text"]) == wanted

    edges = ["--task", "structure", "a ring", *image, "--kind", "edges", "--seed", "4"]
    assert main(["sample", "b", *edges]) == 0
    drawn = paint(seven, "a ring", "edges", 3.0, 1.0, 0.75, 0, 4)
    np.testing.assert_array_equal(pixels("grid.png"), np.asarray(drawn))

    boxes = ["--box", "ring: a red one:0,0,4,4.5", "--box", "square:4,4,8,8"]
    assert main(["sample", "b", "two things", "--task", "boxes", *boxes]) == 0
    wanted = [("ring: a red one", (0, 0, 4, 4.5)), ("square", (4, 4, 8, 8))]
    assert fake.calls[-1] == ("boxes", "two things", wanted, 3.0, 1.0, 0.75, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompt=None: use some prompt, which task images needs"),
        (["  "], "prompt is empty"),
        (["a ring", "--style", "long"], "style='long': task images takes no style; use prompt, n"),
        (["a ring", "--explain"], "explain=True: task images takes no explain"),
        (["a", "--task", "caption", "--image", "seven.png"], "task caption takes no prompt"),
        (["--task", "caption"], "image=None: use some image"),
        (["--task", "caption", "--image", "seven.png", "--upscale"], "takes no upscale"),
        (["a ring", "--upscale"], "upscaler=None"),
        (["--task", "caption", "--image", "none.png"], "image='none.png': "),
        (["--task", "caption", "--image", "bad.png"], "image='bad.png': not a picture"),
        (["--task", "caption", "--image", "seven.png", "--out", "x.png"], "prints its text"),
        (["--task", "answer", "a", "--question", "b", "--image", "x"], "takes no prompt"),
        (["a", "--task", "edit", "--image", "seven.png", "--n", "2"], "task edit takes no n"),
        (["a", "--task", "boxes"], "boxes=None"),
        (["a", "--task", "boxes", "--box", "ring:1,2,3"], "box='ring:1,2,3': use name:x0"),
        (["a", "--task", "boxes", "--box", "1,2,3,4"], "use name:x0,y0,x1,y1"),
        (["a", "--task", "boxes", "--box", "ring:1,2,3,nan"], "use name:x0,y0,x1,y1"),
        (["a", "--temperature", "inf"], "temperature=inf: use a number"),
        (["a", "--n", "0"], "n=0: use at least 1"),
        (["a", "--out", "x.jpg"], "--out x.jpg: name a .png file"),
        (["a", "--distributed"], "use it with --requests"),
        (["--requests", "job.jsonl"], "--out None: name a folder"),
        (["--requests", "job.jsonl", "--out", "seven.png"], "--out seven.png: name a folder"),
        (["--requests", "none.jsonl", "--out", "out"], "none.jsonl"),
        (["--requests", "empty.jsonl", "--out", "out"], "use a file with one request a line"),
        (["--requests", "-", "--out", "out", "--distributed"], "use a file, which every process"),
    ],
)
def test_a_bad_command_is_one_line_and_exit_code_2(fake, folder, capsys, arguments, message):
    Path("bad.png").write_bytes(b"no picture")
    Path("empty.jsonl").write_text("\n  \n")
    assert main(["sample", "b", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


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
    fake.transformer["weight"] = fake.transformer["weight"] + 1
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

"""`cm3leon sample`: one request of every task, and what pictures tell of how they were drawn."""

from pathlib import Path

import numpy as np
import pytest
from fake_generator import SIZE, FakeGenerator, enter, paint, pixels, serve
from PIL import Image

from cm3leon_jax.arguments import parse
from cm3leon_jax.cli import main


@pytest.fixture
def fake(small, monkeypatch) -> FakeGenerator:
    return serve(small, monkeypatch)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return enter(tmp_path, monkeypatch)


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


def test_another_bundle_is_told_apart(fake, folder):
    assert main(["sample", "b", "a ring", "--out", "a.png"]) == 0
    fake.identity = "f" * 16
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

"""The front door: archive and wheel, the notebook run by the wheel, and every documented command.

The notebook is run once; what it leaves is the work that the commands of the pages then go on with.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import installed
import nbformat
import numpy as np
import pytest
from annotated import write_coco
from documented import PAGES, ROOT, blocks, commands
from PIL import Image

import cm3leon_jax as cm3
from cm3leon_jax import recipes
from cm3leon_jax.arguments import parse
from cm3leon_jax.cli import main
from cm3leon_jax.data.scene_text import parse_caption
from cm3leon_jax.data.scenes import render
from cm3leon_jax.training.metrics import read_metrics

BRIEF = {
    "data.count": 400,
    "image_tokenizer.channels": 16,
    "image_tokenizer.groups": 4,
    "image_tokenizer.latent": 16,
    "image_tokenizer.train.steps": 20,
    "image_tokenizer.train.sample_every": 20,
    "image_tokenizer.train.save_every": 20,
    "retriever.layers": 1,
    "retriever.text_layers": 1,
    "retriever.train.steps": 20,
    "retriever.train.batch": 16,
    "retriever.train.sample_every": 20,
    "retriever.train.save_every": 20,
    "model.layers": 1,
    "model.width": 32,
    "model.mlp": 32,
    "train.steps": 20,
    "train.batch": 4,
    "train.sample_every": 20,
    "train.save_every": 20,
}


def brief(name: str, **more) -> list[str]:
    overrides = BRIEF | more
    return ["--config", name, *(f"--config.{field}={value}" for field, value in overrides.items())]


FEW = {"data.held_out": 0.2, "decode.text_tokens": 8}
SCENES = brief("tiny", **FEW, **{"data.tasks": ("edit", "question")})
FOLDER = brief("tiny_folder", **FEW)

# Commands that are not run here, by how they begin, and why. Their arguments are read all the same.
NOT_RUN = {
    "make quickstart": "the notebook runs this, in small",
    "make test": "runs this",
    "make bench": "a measurement",
    "cm3leon quickstart": "the notebook runs this, in small",
    "cm3leon plan": "compiles for minutes: test_plan.py plans what is smaller",
    "cm3leon prepare --workdir /": "a cluster that runs Beam",
    "cm3leon prepare --task vqa2": "a person downloads this: test_datasets.py reads it in small",
    "cm3leon train --gin_file": "tunes a model of 350M: test_recipes.py runs one in small",
    "cm3leon train --config tiny --config.data.mixture": "test_tasks.py reads such mixtures",
    "cm3leon prepare --config tiny --data emoji": "needs the font: test_emoji.py",
    "cm3leon retrieve --workdir runs/emoji": "the same",
    "cm3leon train --workdir W --coordinator": "two processes: test_resume.py",
    "cm3leon evaluate BUNDLE --suite coco_fid": "weights of Inception: test_suites.py",
    "cm3leon evaluate BUNDLE --suite captions --data karpathy": "a person downloads this",
    "cm3leon evaluate BUNDLE --suite vqa": "a person downloads this: test_suites.py",
    "cm3leon evaluate BUNDLE --suite all": "two of the others: test_suites.py",
    "cm3leon evaluate runs/quickstart/bundle --suite scenes": "minutes: test_suites.py",
    "cm3leon convert --from_torch": "a person downloads this: test_image_tokenizers.py",
    "cm3leon convert vqgan.safetensors": "the same",
    "cm3leon convert RealESRGAN": "a person downloads this: test_upscaler_import.py",
    "cm3leon convert clip-vit": "a person downloads this: test_clip_in_bundles.py",
    "cm3leon train --stage upscaler": "needs the font: test_upscaler.py",
    "cm3leon sample runs/emoji/bundle": "the same",
    "cm3leon demo": "serves until Ctrl-C: test_demo.py",
}
PYTHON_NOT_RUN = {
    "mixtures.md": "test_mixtures.py declares and reads such mixtures",
    "upscaler.md": "needs the font: test_upscaler.py",
}
# What makes a documented command short, by how it begins.
IN_SMALL = {
    "cm3leon tokenizer text --config": FOLDER[2:],
    "cm3leon tokenizer text --gin_file": [x.replace("--config", "--gin") for x in FOLDER[2:]],
    "cm3leon evaluate runs/mine/bundle": ["--count", "4", "--images", "images"],
    "cm3leon evaluate BUNDLE": ["--count", "2"],
    "cm3leon prepare --check --task": ["--max_bad_fraction", "0.9"],
}
WRITTEN = [(page.name, command) for page in PAGES for command in commands(page)]
PYTHON = [(page.name, text) for page in PAGES for text in blocks(page, "python")]


def beginning(command, table):
    return next((value for start, value in table.items() if command.startswith(start)), None)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive and the wheel."""
    return installed.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def read(built, tmp_path_factory):
    """The folder that the notebook has worked in, and the notebook with its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    settings = {"CM3LEON_WHEEL": str(built[1])}
    settings |= {"CM3LEON_QUICKSTART": shlex.join(SCENES), "CM3LEON_MINE": shlex.join(FOLDER[2:])}
    return folder, installed.run_notebook(folder, **settings)


@pytest.fixture(scope="module")
def home(read):
    """The same folder with all that the pages name; whoever asks for it works there."""
    folder, _ = read
    (folder / "runs").mkdir()
    places = {"runs/quickstart": "run", "runs/mine": "mine", "W": "mine", "BUNDLE": "run/bundle"}
    for name, target in (places | {"chameleon-7b": "chameleon-tiny"}).items():
        (folder / name).symlink_to(folder / target)
    scene = render(parse_caption("a small red ring top left on white"))
    (folder / "pictures").mkdir()
    for name in ("x.png", "edges.png", "pictures/x.png"):
        Image.fromarray(scene).save(folder / name)
    record = {"image": "x.png", "text": "a ring", "boxes": [["ring", [2, 2, 14, 14]]]}
    (folder / "pictures" / "data.jsonl").write_text(json.dumps(record))
    (folder / "job.jsonl").write_text('{"id": "a", "prompt": "a red ring", "n": 2}\n')
    write_coco(folder / "coco")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_the_archive_has_every_file_of_the_checkout(built):
    with tarfile.open(built[0]) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert installed.tracked() - there == set()


def test_versions_of_wheel_package_and_changelog_are_one(built):
    assert built[1].name.startswith(f"cm3leon_jax-{cm3.__version__}-")
    assert f"\n## {cm3.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_an_installed_wheel_finds_its_recipes_from_any_folder(read, tmp_path):
    """The package as `pip install` lays it out: recipes inside, no checkout around it."""
    folder, _ = read
    code = (
        "import cm3leon_jax, gin; from cm3leon_jax import recipes; print(cm3leon_jax.__file__);"
        "print(recipes.find('tiny', 'configs'), recipes.find('models/350m.gin', 'gin'));"
        "assert recipes.from_gin(['models/350m.gin']) == recipes.from_config('350m')"
    )
    command, around = [sys.executable, "-c", code], installed.environment(folder)
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env=around
    )
    found = [Path(path).is_relative_to(folder / "site") for path in done.stdout.split()]
    assert found == [True] * 3
    assert (folder / "site" / "cm3leon_jax" / "py.typed").exists()


def test_the_committed_notebook_has_no_outputs():
    cells = nbformat.read(installed.NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}


def test_the_notebook_stops_at_once_where_there_is_nothing_to_install(tmp_path, monkeypatch):
    cells = nbformat.read(installed.NOTEBOOK, as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    monkeypatch.delenv("CM3LEON_WHEEL", raising=False)
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    with pytest.raises(SystemExit, match=r"SOURCE='\.\.': set it to a clone, a wheel or a git"):
        exec(first, {})
    (tmp_path / "setup.py").touch()
    exec(first, {})


def test_the_notebook_shows_pictures_of_every_task_and_no_command_fails(read):
    folder, book = read
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    shown = [output for output in outputs if "image/png" in output.get("data", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert len(shown) >= 11
    assert not re.search("^(cm3leon: |Traceback)", printed, re.M), printed[-3000:]
    assert printed.count("loss ") >= 3  # of the step on eight devices
    assert "P('tensor', 'fsdp')" in printed
    for bundle in ("run/bundle", "mine/bundle", "chameleon"):
        assert (folder / bundle / "card.md").exists()


def test_quickstart_leaves_bundle_results_and_report(home):
    run = home / "run"
    results = json.loads((run / "results.json").read_text())
    scores = results["held_out"]
    assert results["documents"]["train"] + results["documents"]["held_out"] == 400
    assert 0 <= scores["images"]["exact"]["mean"] <= scores["images"]["exact"]["high"] <= 1
    assert {"reconstructions", "images", "captions", "reconstruction_psnr"} <= set(scores)
    bundle = {path.name for path in (run / "bundle").iterdir()}
    networks = {"transformer", "image_tokenizer", "clip"}
    assert bundle == {"card.md", "config.json", "text.model", "memory", *networks}
    assert set(results["held_out_by_documents"]) == {"0", "1", "2"}
    gain = results["retrieval_gain"]
    assert gain["low"] <= gain["gain"] <= gain["high"]
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 40
    assert "polyline" in page
    assert 'src="http' not in page
    assert "cm3leon train --workdir run-again/pretraining" in page
    assert "--workdir run-again/tasks/edit" in page
    assert "--config.train.steps=20" in page
    assert "Edits: asked, answered, true" in page
    assert list((run / "transformer" / "tensorboard").iterdir())


def test_the_bundle_is_the_one_that_was_tuned_on_tasks(home):
    run = home / "run"
    results = json.loads((run / "results.json").read_text())
    assert set(results["tasks"]) == {"composition", "captions", "questions", "edits"}
    assert all(0 <= score["mean"] <= 1 <= score["count"] for score in results["tasks"].values())
    assert (run / "tasks" / "edit" / "documents" / "skipped.txt").exists()
    assert not (run / "tasks" / "question").exists()  # told of the run's own documents
    first, second = (
        read_metrics(run / name) for name in ("pretraining/transformer", "transformer")
    )
    assert first["loss"][-1][0] == 20
    assert second["loss"][-1][0] == 5 * 20
    assert second["loss"][0][1] < first["loss"][0][1]  # it goes on from there
    memory = {path.name for path in (run / "bundle" / "memory").iterdir()}
    assert memory == {path.name for path in (run / "pretraining/bundle/memory").iterdir()}


def test_done_stages_are_not_done_again_and_sampling_may_change(home, monkeypatch, capsys):
    def stop(bundle):
        raise ValueError(f"{bundle}: all stages are behind us")

    monkeypatch.setattr("cm3leon_jax.quickstart.load", stop)
    before = {path: path.stat().st_mtime_ns for path in (home / "run" / "bundle").rglob("*")}
    arguments = ["quickstart", "--workdir", "run", *SCENES]
    for change in ([], ["--config.decode.temperature=0.5"]):
        assert main([*arguments, *change]) == 2
        assert "run/bundle: all stages are behind us" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert main([*arguments, "--config.train.seed=5"]) == 2  # what a result was made from
    assert "train.seed=0, now it is 5" in capsys.readouterr().err


@pytest.mark.parametrize(("page", "command"), WRITTEN, ids=lambda value: value[:60])
def test_the_arguments_of_a_documented_command_are_read(page, command):
    program, *arguments = shlex.split(command)
    if program == "make":
        target = re.compile(f"^{arguments[0]}:", re.M)
        assert target.search((ROOT / "Makefile").read_text())
    elif "--help" not in arguments:
        _, rest = recipes.from_arguments(arguments)
        parse(None, [word for word in rest if word not in ("&", "...")])


def test_every_reason_not_to_run_a_command_is_needed():
    unused = {*NOT_RUN, *IN_SMALL}
    unused -= {start for start in unused for _, c in WRITTEN if c.startswith(start)}
    assert unused == set()


def test_documented_commands_run(home, capsys):
    wanted = [c for _, c in WRITTEN if beginning(c, NOT_RUN) is None and "--help" not in c]
    for command in dict.fromkeys(wanted):
        arguments = [*shlex.split(command)[1:], *(beginning(command, IN_SMALL) or [])]
        code = main(arguments)
        assert code == 0, f"{command}: {capsys.readouterr().err}"
    assert len(list((home / "answers").glob("*.png"))) == 2
    assert Image.open(home / "grid.png").text["Software"] == f"cm3leon_jax {cm3.__version__}"
    for part in ("real", "reconstructed", "drawn"):
        assert len(list((home / "images" / part).glob("*.png"))) == 4
    assert (home / "runs/a/text.model").read_bytes() == (home / "runs/b/text.model").read_bytes()
    assert (home / "for_transformers" / "config.json").exists()


@pytest.mark.parametrize("page", sorted({name for name, _ in PYTHON} - {*PYTHON_NOT_RUN}))
def test_documented_python_runs(home, page):
    names = {"picture": home / "x.png"}
    for text in (text for name, text in PYTHON if name == page):
        exec(compile(text, page, "exec"), names)


def test_links_of_the_pages_lead_somewhere():
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for link in {*re.findall(r"\]\(([^)#:]+)\)", page.read_text())}:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_linked_from_the_first():
    first = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in first] == []


def test_a_folder_with_bad_pictures_is_counted_and_listed(home, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(60):
        Image.fromarray(np.full((40, 48, 3), 4 * i, np.uint8)).save(folder / f"{i}.png")
    records = [{"image": f"{i}.png", "text": "a", "license": "CC0-1.0"} for i in range(60)]
    (folder / "3.png").write_bytes(b"")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
    lines = "\n".join([*map(json.dumps, records), "{broken"])
    (folder / "data.jsonl").write_text(f"{lines}\n")
    options = ["--data", str(folder), "--workdir", str(tmp_path / "run"), *FOLDER]
    assert main(["quickstart", *options]) == 2
    assert "3 of 61 records are bad" in capsys.readouterr().err
    assert main(["prepare", "--check", *options]) == 2
    printed = capsys.readouterr().out
    assert "data.jsonl:4: " in printed
    assert "data.jsonl:61: broken JSON" in printed
    start = f"--config.train.start_from={home / 'mine'}"
    assert main(["prepare", *options, start, "--max_bad_fraction", "0.1"]) == 0
    listed = (tmp_path / "run" / "documents" / "skipped.txt").read_text()
    assert "data.jsonl:4: " in listed
    assert "data.jsonl:6: " in listed
    assert "data.jsonl:61: broken JSON" in listed
    licenses = json.loads((tmp_path / "run" / "documents" / "licenses.json").read_text())
    assert licenses == {"CC0-1.0": 58}

"""Mixtures of tasks: SeqIO and our loader read one declaration, at the same rates."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from declaring import LENGTHS, declare, documents_of, prepare, prepare_both, read

import gin
from cm3leon_jax import recipes
from cm3leon_jax.data.examples import Source
from cm3leon_jax.data.tasks import add_mixture, add_task, resolve

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
seqio = pytest.importorskip("seqio")

HEAD = "from __gin__ import dynamic_registration\nfrom cm3leon_jax.data import tasks\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_both(tmp_path_factory.mktemp("home") / "runs")


@pytest.fixture
def runs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return declare(prepared, monkeypatch)


def bind(folder: Path, text: str) -> str:
    (folder / "mine.gin").write_text(text)
    return str(folder / "mine.gin")


@pytest.mark.parametrize(
    ("tasks", "rules", "expected"),
    [
        ({"scenes": 3, "emoji": 1.0}, {}, [0.25, 0.75]),
        (["scenes", "emoji"], {}, [12 / 42, 30 / 42]),
        (["scenes", "emoji"], {"cap": 20}, [12 / 32, 20 / 32]),
        (["scenes", "emoji"], {"cap": 27, "temperature": 0.5}, [144 / 873, 729 / 873]),
        ({"inner": 1.0, "emoji": 3.0}, {}, [(3 / 5 + 3) / 4, 2 / 5 / 4]),
        (["scenes", "emoji"], {"temperature": 1e9, "up": 1.5}, [15 / 35, 20 / 35]),
        ({"scenes": 1.0, "emoji": 3.0}, {"up": 2.0, "down": 0.7}, [0.5, 0.5]),
        ({"scenes": 9.0, "emoji": 1.0}, {"down": 0.7}, [0.2, 0.8]),
    ],
)
def test_our_loader_reads_the_rates_that_seqio_computes(runs, tmp_path, tasks, rules, expected):
    add_mixture("inner", {"scenes": 2.0, "emoji": 3.0})
    mixture = seqio.MixtureRegistry.get(add_mixture("blend", tasks, **rules))
    found = resolve("declared:blend", tmp_path)
    names = [source.name for source, _ in found]
    assert names == [task.name for task in mixture.tasks] == ["emoji", "scenes"]
    rates = np.array([mixture.get_rate(task) for task in mixture.tasks])
    np.testing.assert_allclose([rate for _, rate in found], rates / rates.sum(), rtol=1e-12)
    np.testing.assert_allclose([rate for _, rate in found], expected, rtol=1e-12)


def test_a_task_without_a_mixture_and_rates_of_zero(runs, tmp_path):
    add_mixture("half", {"scenes": 1.0, "emoji": 0.0})
    scenes = Source("scenes", str(runs / "quickstart"), "held_out")
    for name in ("scenes", "half"):
        assert resolve(f"declared:{name}", tmp_path, "held_out") == [(scenes, 1.0)]


def test_work_directories_are_listed_without_seqio(runs, tmp_path):
    listed = f"{runs}/quickstart:image_first=3, {runs}/emoji=1"
    assert resolve(listed, tmp_path, "held_out") == [
        (
            Source(
                f"{runs}/quickstart:image_first", f"{runs}/quickstart", "held_out", "image_first"
            ),
            0.75,
        ),
        (Source(f"{runs}/emoji", f"{runs}/emoji", "held_out"), 0.25),
    ]
    with pytest.raises(ValueError, match=r"'runs/a=x': use DIRECTORY\[:TEMPLATE\]=RATE"):
        resolve("runs/a=x,runs/b=1", tmp_path)


def test_seqio_mixes_at_these_rates(runs):
    add_mixture("blend", {"scenes": 3, "emoji": 1})
    found = documents_of(read("blend", num_epochs=10), runs / "emoji")
    emoji = documents_of(read("emoji"), runs / "emoji")
    assert len(found) > 300
    assert abs(np.mean([document in emoji for document in found]) - 1 / 4) < 0.08  # 3 deviations


def test_the_shipped_mixture_reads_through_our_gin(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    found = resolve("mixtures/pretrain.gin", "runs/mixed")
    assert found == [
        (Source("emoji", "runs/emoji"), pytest.approx(12 / 42)),
        (Source("scenes", "runs/quickstart"), pytest.approx(30 / 42)),
    ]
    assert gin.config_str() == ""
    assert resolve("mixtures/pretrain", "runs/mixed") == found  # declaring again replaces


def test_the_mixture_of_the_paper_reads_through_our_gin(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = recipes.find("mixtures/instruct.gin", "gin").read_text()
    paper = {name: int(count) for name, count in re.findall(r"@(\w+)/.*: ([\d_]+),", text)}
    assert sum(paper.values()) == 11_406_000  # table 5
    (tmp_path / "runs" / "instruct").mkdir(parents=True)
    for name in paper:
        directory = tmp_path / "runs" / "instruct" / name
        directory.symlink_to(runs / ("emoji" if name == "scienceqa" else "quickstart"))
    found = {source.name: share for source, share in resolve("mixtures/instruct.gin", "runs/x")}
    whole = 19 * 30 + 12
    natural = {name: (12 if name == "scienceqa" else 30) / whole for name in paper}
    assert sum(found.values()) == pytest.approx(1)
    assert all(0.3 - 1e-9 <= found[name] / natural[name] <= 3 + 1e-9 for name in paper)
    assert found["vqa2"] / found["depth"] == pytest.approx(1.3)  # within the bounds, as the paper
    assert found["scienceqa"] == pytest.approx(0.3 * 12 / whole)


def test_gin_takes_rates_and_mixtures_of_mixtures(runs, tmp_path):
    text = f"""{HEAD}
a/tasks.add_task.name = "a"
a/tasks.add_task.workdir = "{runs}/quickstart"
b/tasks.add_task.name = "b"
b/tasks.add_task.workdir = "{runs}/emoji"
b/tasks.add_task.template = "image_first"
inner/tasks.add_mixture.name = "both"
inner/tasks.add_mixture.tasks = [@a/tasks.add_task(), @b/tasks.add_task()]
tasks.add_mixture.name = "outer"
tasks.add_mixture.tasks = {{@inner/tasks.add_mixture(): 0.42, @a/tasks.add_task(): 0.58}}
"""
    found = resolve(bind(tmp_path, text), tmp_path)
    assert found == [
        (Source("a", f"{runs}/quickstart"), pytest.approx(0.88)),
        (Source("b", f"{runs}/emoji", "train", "image_first"), pytest.approx(0.12)),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('a/tasks.add_task.nme = "a"', "mine.gin:3: Configurable"),
        ('a/tasks.add_tsk.name = "a"', "mine.gin:3: Couldn't resolve selector tasks.add_tsk"),
        ('a/tasks.add_task.name = "a"', "no tasks.add_mixture is bound: bind its name and tasks"),
        ('tasks.add_mixture.name = "m"', "missing 1 required positional argument: 'tasks'"),
        ("tasks.add_mixture.tasks = [@a/tasks.add_task()]", "mine.gin: a: add_task() missing 2"),
    ],
)
def test_gin_errors_are_one_line_with_the_place(tmp_path, lines, message):
    with pytest.raises(ValueError, match=r"mine\.gin") as caught:
        resolve(bind(tmp_path, HEAD + lines + "\n"), tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert gin.config_str() == ""


def test_wrong_declarations_say_what_is_known(runs, tmp_path):
    with pytest.raises(ValueError, match="no task 'scene'; did you mean scenes"):
        add_mixture("m", {"scene": 1.0})
    with pytest.raises(ValueError, match="no task or mixture 'emojy'; did you mean emoji"):
        resolve("declared:emojy", tmp_path)
    with pytest.raises(ValueError, match=r"No module named 'moduel'.*PYTHONPATH"):
        resolve("moduel:emoji", tmp_path)
    with pytest.raises(ValueError, match="template='plane': use plain or"):
        add_task("t", runs / "emoji", template="plane")
    with pytest.raises(ValueError, match="rates are final"):
        add_mixture("m", {"scenes": 1.0}, cap=3)
    with pytest.raises(ValueError, match="one of them above 0"):
        add_mixture("m", {"scenes": -1.0})
    with pytest.raises(ValueError, match="use up >= 1 >= down >= 0"):
        add_mixture("m", ["scenes"], up=0.5)
    with pytest.raises(ValueError, match="leave out 'emoji'"):
        add_mixture("m", {"scenes": 1.0, "emoji": 0.0}, up=3.0)
    with pytest.raises(ValueError, match="cap=-1"):
        add_mixture("m", ["scenes"], cap=-1)
    add_mixture("inner", {"scenes": 1.0})
    with pytest.raises(ValueError, match="'inner' is a mixture: only tasks are counted"):
        add_mixture("m", ["inner", "scenes"])


def test_codes_of_two_image_tokenizers_are_not_mixed(runs, tmp_path):
    add_task("other", prepare(runs / "other", made_by="two"))
    add_mixture("odd", {"scenes": 1.0, "other": 1.0})
    with pytest.raises(ValueError, match=r"image tokenizer two, .*quickstart with one"):
        resolve("declared:odd", tmp_path)
    mixture = seqio.MixtureRegistry.get("odd")
    with pytest.raises(ValueError, match=r"must use the same vocabulary.* image tokenizer two"):
        mixture.get_dataset(LENGTHS, "train")
    prepare(tmp_path, made_by="three")  # now the run itself has documents
    with pytest.raises(ValueError, match=r"image tokenizer three, .* with one"):
        resolve("declared:scenes", tmp_path)

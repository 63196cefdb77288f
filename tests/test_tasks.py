"""SeqIO declares what is trained on: it and our loader read one declaration and the same rows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL

import gin
from cm3leon_jax import checkpoint, config, recipes
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.data.seqio_features import FEATURES, encode_weights, feature_converter
from cm3leon_jax.data.shards import CodedRecord, write_shards
from cm3leon_jax.data.tasks import add_mixture, add_task, resolve
from cm3leon_jax.mapped import finish_mapped, write_mapped_part
from cm3leon_jax.retrieval.strategy import NEIGHBOUR
from cm3leon_jax.tokens.objective import code_places, restore, rng_for, token_weights
from cm3leon_jax.tokens.packing import Example, fill_row, take_fitting
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("a red cat", "two dogs", "the sea", "a green tree on a hill", "one bird", "é", "sun")
ROW = 64
LENGTHS = dict.fromkeys(FEATURES, ROW)
CHANGES = {
    "data.row_length": ROW,
    "objective.rate": 2.0,
    "objective.retrieved_weight": 0.1,
    "objective.sentinel_weight": 0.0,
    "retrieval.most": 2,
}
HEAD = "from __gin__ import dynamic_registration\nfrom cm3leon_jax.data import tasks\n"


def prepare(folder: Path, count: int = 30, made_by: str = "one", **changes: Any) -> Path:
    """A prepared work directory: captioned pictures with neighbours, 5 of them held out."""
    c = config.replace(config.Experiment(), SMALL | CHANGES | changes)
    rng = np.random.default_rng(count)
    checkpoint.write_experiment(folder, c)
    TextTokenizer.train(WORDS[:5], folder / "text.model", 40)
    for split, size in (("train", count), ("held_out", 5)):
        codes = rng.integers(0, c.model.image_codes, (size, c.model.image_tokens), np.int32)
        records = [
            CodedRecord(f"{split}-{i}", (f"{WORDS[i % len(WORDS)]} {i}", image))
            for i, image in enumerate(codes)
        ]
        write_shards(records, folder / "documents", split, {"image_tokenizer": made_by})
        found = np.zeros((size, 4), NEIGHBOUR)
        found["row"] = rng.integers(0, count, (size, 4))
        write_mapped_part(folder / "neighbours", split, 0, 1, found)
        finish_mapped(folder / "neighbours", split, 1, {})
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared work directories, of 30 and of 12 documents to train on."""
    runs = tmp_path_factory.mktemp("home") / "runs"
    prepare(runs / "quickstart")
    prepare(runs / "emoji", count=12)
    (runs / "declared.py").write_text("# declared by the tests themselves\n")
    return runs


@pytest.fixture
def runs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, declared as the tasks "scenes" and "emoji" for whom asks the module `declared`."""
    monkeypatch.syspath_prepend(prepared)
    add_task("scenes", prepared / "quickstart")
    add_task("emoji", prepared / "emoji", template="image_first")
    return prepared


def read(name: str, split: str = "train", **options: Any) -> list[Example]:
    """The examples of a task in order, put together again from SeqIO's features."""
    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(LENGTHS, split, **{"shuffle": False, "seed": 0, **options})
    return [
        Example(
            np.append(features["tokens"][:1], features["targets"]),
            np.append(np.float32(1), decode(features["weight_codes"])),
            np.append(features["places"] - 2, -1),  # no document ends with a code
        )
        for features in dataset.as_numpy_iterator()
    ]


def decode(codes: np.ndarray) -> np.ndarray:
    return (codes - 1).view(np.float32)


def ids_of(examples: Iterable[Example]) -> list[list[int]]:
    return [example.ids.tolist() for example in examples]


def documents_of(examples: Iterable[Example], folder: Path) -> list[list[int]]:
    vocabulary = Vocabulary.of(checkpoint.read_experiment(folder).model)
    return [restore(example.ids, vocabulary).tolist() for example in examples]


def convert(examples: list[Example], **options: Any) -> list[dict[str, np.ndarray]]:
    """Rows that SeqIO makes of the examples with our converter."""

    def features() -> Iterator[dict[str, np.ndarray]]:
        for example in examples:
            arrays = example.ids[:-1], example.ids[1:], encode_weights(example.weights[1:])
            yield dict(zip(FEATURES, (*arrays, example.codes_at[:-1] + 2), strict=True))

    form = {name: tf.TensorSpec([None], tf.int32) for name in FEATURES}
    dataset = tf.data.Dataset.from_generator(features, output_signature=form)
    return list(feature_converter()(**options)(dataset, LENGTHS).as_numpy_iterator())


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs):
        assert row.keys() == other.keys()
        for name in row:
            np.testing.assert_array_equal(row[name], other[name], err_msg=name)
            assert row[name].dtype == other[name].dtype


def declare(folder: Path, text: str) -> str:
    (folder / "mine.gin").write_text(text)
    return str(folder / "mine.gin")


def test_a_task_has_our_splits_and_counts(runs):
    task = seqio.TaskRegistry.get("scenes")
    assert set(task.splits) == {"train", "validation"}
    assert [task.num_input_examples(split) for split in ("train", "validation")] == [30, 5]
    assert len(read("scenes", "validation")) == 5


def test_without_drawing_seqio_reads_exactly_the_examples_of_our_loader(runs):
    still = {"objective.rate": 0.0, "retrieval.most": 0}
    folder = prepare(runs / "still", **still)
    c, text = checkpoint.read_experiment(folder), TextTokenizer.load(folder / "text.model")
    ours = Examples.open(Source("still", folder), text, c)
    expected = [ours.example(i, rng_for(0, 0, i)) for i in range(len(ours))]
    found = read(add_task("still", folder))
    assert ids_of(found) == ids_of(expected)
    for example, other in zip(found, expected):
        np.testing.assert_array_equal(example.weights[1:], other.weights[1:])
        np.testing.assert_array_equal(example.codes_at, other.codes_at)


def test_examples_are_masked_documents_behind_their_neighbours_with_exact_weights(runs):
    folder = runs / "quickstart"
    c, text = checkpoint.read_experiment(folder), TextTokenizer.load(folder / "text.model")
    ours, vocabulary = Examples.open(Source("scenes", folder), text, c), Vocabulary.of(c.model)
    seen: set[float] = set()
    for index, example in enumerate(read("scenes")):
        document = ours.document(index, rng_for(c.train.seed, 0, index))
        assert restore(example.ids, vocabulary).tolist() == document.to_ids(vocabulary).tolist()
        weights = token_weights(example.ids, vocabulary, c.objective, document.main_start)
        np.testing.assert_array_equal(example.weights[1:], weights[1:])
        np.testing.assert_array_equal(example.codes_at, code_places(example.ids, vocabulary))
        seen.update(weights[1:].tolist())
    assert seen == {0.0, float(np.float32(0.1)), 1.0}


def test_equal_seeds_repeat_and_another_epoch_masks_the_same_documents_anew(runs):
    both, folder = read("scenes", num_epochs=2), runs / "quickstart"
    assert ids_of(both) == ids_of(read("scenes", num_epochs=2))
    first, second = both[:30], both[30:]
    assert documents_of(first, folder) == documents_of(second, folder)
    for others in (second, read("scenes", seed=1)):
        assert documents_of(others, folder) == documents_of(first, folder)
        same = sum(a == b for a, b in zip(ids_of(first), ids_of(others)))
        assert same < 15


def test_shuffling_and_sharding_lose_nothing(runs):
    folder = runs / "quickstart"
    plain = documents_of(read("scenes"), folder)
    shuffled = documents_of(read("scenes", shuffle=True), folder)
    assert sorted(shuffled) == sorted(plain)
    assert shuffled != plain
    shards = [read("scenes", shard_info=seqio.ShardInfo(i, 4)) for i in range(4)]
    assert [documents_of(shard, folder) for shard in shards] == [plain[i::4] for i in range(4)]


def test_seqio_packs_the_rows_that_our_packing_fills():
    rng = np.random.default_rng(0)
    values = np.array([0, 0.1, 1, 1e-30, 3e38], np.float32)
    examples = [
        Example(
            rng.integers(1, 128, size, np.int32),
            rng.choice(values, size),
            rng.integers(-1, 5, size, np.int32),
        )
        for size in rng.integers(2, ROW // 2, 2 * ROW + 10)
    ]
    expected = []
    for start in range(0, len(examples), ROW):  # as many SeqIO packs at a time
        coming = examples[start : start + ROW]
        while coming:
            taken = take_fitting(coming, ROW)
            expected.append(fill_row(taken, ROW))
            coming = coming[len(taken) :]
    assert_same(convert(examples, pack=True, use_custom_packing_ops=False), expected)
    alone = [fill_row([example], ROW) for example in examples]
    assert_same(convert(examples, pack=False), alone)


def test_the_converter_refuses_lengths_that_differ():
    dataset = tf.data.Dataset.from_tensors({n: tf.ones([4], tf.int32) for n in FEATURES})
    with pytest.raises(ValueError, match="use one length for all"):
        feature_converter()()(dataset, LENGTHS | {"targets": 32})


def test_rows_too_short_for_a_document_are_refused_not_cut(runs):
    task = seqio.TaskRegistry.get("scenes")
    dataset = task.get_dataset(dict.fromkeys(FEATURES, 12), shuffle=False, seed=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"document of .* max_length=13"):
        list(dataset)


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
    found = resolve(declare(tmp_path, text), tmp_path)
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
        resolve(declare(tmp_path, HEAD + lines + "\n"), tmp_path)
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


def test_a_directory_that_is_not_prepared_names_the_command(runs, tmp_path):
    checkpoint.write_experiment(tmp_path / "empty", config.Experiment())
    (tmp_path / "empty" / "text.model").write_bytes((runs / "emoji" / "text.model").read_bytes())
    with pytest.raises(ValueError, match=r"task 'e': .*run: cm3leon prepare --workdir"):
        add_task("e", tmp_path / "empty")


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


def test_tasks_of_one_run_share_its_language(runs):
    run = runs / "quickstart"
    task = seqio.TaskRegistry.get(add_task("told", runs / "emoji", run=run))
    feature = task.output_features["tokens"]
    assert feature == seqio.TaskRegistry.get("scenes").output_features["tokens"]
    assert (
        feature.vocabulary.vocab_size == Vocabulary.of(checkpoint.read_experiment(run).model).size
    )


def test_a_name_that_somebody_else_has_is_not_replaced(runs):
    theirs = seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"])
    seqio.TaskRegistry.add("theirs", theirs, output_features={})
    with pytest.raises(ValueError, match="duplicate"):
        add_task("theirs", runs / "emoji")
    with pytest.raises(ValueError, match="'theirs' has no prepared documents"):
        resolve("declared:theirs", runs)


def test_tasks_cached_offline_are_the_same(runs, tmp_path, monkeypatch):
    still = prepare(runs / "cached", **{"objective.rate": 0.0})
    module = f"from cm3leon_jax.data.tasks import add_task\nadd_task('cached', {str(still)!r})\n"
    (tmp_path / "my_tasks.py").write_text(module)
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--tasks=cached"]
    command += ["--module_import=my_tasks", f"--output_cache_dir={tmp_path}", "--min_shards=1"]
    command += ["--pipeline_options=--runner=DirectRunner"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)

    def sort(examples: list[Example]) -> list[tuple[list[int], list[float]]]:
        return sorted((e.ids.tolist(), e.weights.tolist()) for e in examples)

    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [])
    add_task("cached", still)
    with pytest.raises(AssertionError, match="does not exist in any of the task cache"):
        read("cached", use_cached=True)
    seqio.add_global_cache_dirs([str(tmp_path)])
    for split in ("train", "validation"):
        assert sort(read("cached", split, use_cached=True)) == sort(read("cached", split))


def test_declaring_is_all_that_loads_tensorflow(runs):
    code = f"""
import sys
from cm3leon_jax.data import tasks
(source, weight), = tasks.resolve("", {str(runs / "emoji")!r})
assert (source.name, source.split, weight) == ("emoji", "train", 1.0)
assert not {{"tensorflow", "seqio", "gin"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

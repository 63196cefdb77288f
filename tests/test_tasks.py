"""SeqIO declares what is trained on: it and our loader read the same rows."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from declaring import LENGTHS, ROW, declare, documents_of, prepare, prepare_both, read

from cm3leon_jax import checkpoint, config
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.data.seqio_features import FEATURES, encode_weights, feature_converter
from cm3leon_jax.data.tasks import add_task, resolve
from cm3leon_jax.tokens.objective import code_places, restore, rng_for, token_weights
from cm3leon_jax.tokens.packing import Example, fill_row, take_fitting
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.vocabulary import Vocabulary

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_both(tmp_path_factory.mktemp("home") / "runs")


@pytest.fixture
def runs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return declare(prepared, monkeypatch)


def ids_of(examples: Iterable[Example]) -> list[list[int]]:
    return [example.ids.tolist() for example in examples]


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


def test_a_directory_that_is_not_prepared_names_the_command(runs, tmp_path):
    checkpoint.write_experiment(tmp_path / "empty", config.Experiment())
    (tmp_path / "empty" / "text.model").write_bytes((runs / "emoji" / "text.model").read_bytes())
    with pytest.raises(ValueError, match=r"task 'e': .*run: cm3leon prepare --workdir"):
        add_task("e", tmp_path / "empty")


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

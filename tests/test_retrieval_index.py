"""Search: FAISS and the mesh against brute force, choice of an index, and the program for a TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax import config
from cm3leon_jax.retrieval import mesh_search
from cm3leon_jax.retrieval.index import Kind, build_faiss, choose_kind, load_faiss
from cm3leon_jax.retrieval.mesh_search import LANES, MeshSearch, search_program, split
from cm3leon_jax.sharding import make_mesh

MESHES = [(8, 1, 1), (2, 2, 2), (1, 3, 2)]


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def small_integers(count: int, width: int, seed: int) -> np.ndarray:
    """Their products are exact in float32 in whatever order, and many are equal."""
    x = np.random.default_rng(seed).integers(-2, 3, (count, width))
    return x.astype(np.float32)


def brute_force(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple:
    """All products, sorted: greatest first, then lower row; -inf and -1 where rows run out."""
    scores = queries @ vectors.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(scores, rows, axis=1)
    more = ((0, 0), (0, count - rows.shape[1]))
    return np.pad(scores, more, constant_values=-np.inf), np.pad(rows, more, constant_values=-1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of rows a device and several batches of queries."""
    monkeypatch.setattr(mesh_search, "SCORED", {"cpu": (32, 256)})


@pytest.fixture
def own_cores():
    """FAISS on the cores of this process: its threads wait for one another in busy loops."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("count", [1, 3, 16])
def test_mesh_search_equals_brute_force_with_ties_and_uneven_rows(small_blocks, sizes, count):
    vectors, queries = small_integers(5003, 12, 0), small_integers(75, 12, 1)
    search = MeshSearch(vectors, make_mesh(config.Mesh(*sizes)))
    scores, rows = search.search(queries, count)
    wanted = brute_force(queries, vectors, count)
    np.testing.assert_array_equal(scores, wanted[0])
    np.testing.assert_array_equal(rows, wanted[1])
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


def test_mesh_search_finds_the_rows_of_brute_force_in_unit_vectors():
    vectors, queries = unit_vectors(20_000, 64, 0), unit_vectors(50, 64, 1)
    scores, rows = MeshSearch(vectors, make_mesh(config.Mesh())).search(queries, 16)
    wanted = brute_force(queries, vectors, 16)
    np.testing.assert_array_equal(rows, wanted[1])
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 9, 40])
def test_mesh_search_returns_no_padding_where_rows_run_out(rows):
    vectors = -np.abs(unit_vectors(rows, 8, 0))  # every real score is below a padding row's zero
    queries = np.abs(unit_vectors(5, 8, 1))
    scores, found = MeshSearch(vectors, make_mesh(config.Mesh())).search(queries, 64)
    wanted = brute_force(queries, vectors, 64)
    np.testing.assert_array_equal(found, wanted[1])
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-5)


def test_one_program_serves_all_batches_of_queries(small_blocks):
    search = MeshSearch(small_integers(3000, 12, 0), make_mesh(config.Mesh()))
    search_program.cache_clear()
    search.search(small_integers(200, 12, 1), 4)
    program = search_program(search.mesh, search.count, search.block, 4, search.recall)
    assert search_program.cache_info().misses == 1
    assert program._cache_size() == 1


def test_approximate_search_is_nearly_the_exact_one(small_blocks):
    vectors, queries = unit_vectors(5000, 16, 0), unit_vectors(40, 16, 1)
    search = MeshSearch(vectors, make_mesh(config.Mesh()), recall=0.9)
    rows = search.search(queries, 10)[1]
    assert recall(rows, brute_force(queries, vectors, 10)[1]) >= 0.9
    assert search.form == "recall 0.9"


@given(
    rows=st.integers(1, 10**9), devices=st.integers(1, 1024), block=st.sampled_from([4096, 32768])
)
def test_split_holds_all_rows_in_whole_blocks_with_little_padding(rows, devices, block):
    per_device, size = split(rows, devices, block)
    assert per_device % size == 0
    assert size % LANES == 0
    assert size <= block
    blocks = per_device // size
    assert 0 <= per_device * devices - rows < blocks * devices * LANES


def test_faiss_flat_has_recall_one():
    vectors, queries = unit_vectors(70_000, 16, 0), unit_vectors(20, 16, 1)  # two blocks
    search = build_faiss(vectors, Kind())
    assert search.form == "exact"
    scores, rows = search.search(queries, 10)
    wanted = brute_force(queries, vectors, 10)
    np.testing.assert_array_equal(rows, wanted[1])
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-5)


def test_faiss_says_where_rows_run_out():
    scores, rows = build_faiss(unit_vectors(3, 8, 0), Kind()).search(unit_vectors(2, 8, 1), 5)
    assert (rows[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()


def test_quantized_index_fits_its_budget_and_finds_most(tmp_path, own_cores):
    centres = unit_vectors(500, 32, 2)
    vectors = centres[np.arange(12_000) % 500] + 0.3 * unit_vectors(12_000, 32, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kind = choose_kind(*vectors.shape, budget=400_000)
    search = build_faiss(vectors, kind)
    search.save(tmp_path, "train", {"retriever": "abc"})
    assert (tmp_path / "train.faiss").stat().st_size <= 400_000
    queries = vectors[::100]
    candidates = search.search(queries, 64)[1]
    nearest = brute_force(queries, vectors, 4)[1]
    share = np.mean([np.isin(n, c).mean() for n, c in zip(nearest, candidates)])
    assert share >= 0.9


@pytest.mark.parametrize(
    ("count", "width", "budget", "kind"),
    [
        (100_000, 512, 205_000_000, Kind()),  # exactly 204,800,000 bytes
        (100_000, 512, 204_799_999, Kind(1024, 256, 64)),
        (100_000, 512, 10_000_000, Kind(1024, 64, 64)),
        (340_000_000, 512, 30 * 10**9, Kind(65536, 64, 4096)),
        (20_000, 64, 1_000_000, Kind(512, 32, 32)),
    ],
)
def test_index_is_the_most_exact_that_fits(count, width, budget, kind):
    assert choose_kind(count, width, budget) == kind
    assert kind.bytes(count, width) <= budget


@pytest.mark.parametrize(("count", "budget"), [(100_000, 1_000_000), (500, 100_000)])
def test_budget_too_small_for_any_index_is_refused(count, budget):
    with pytest.raises(ValueError, match=f"budget={budget:,} bytes: .* give more memory"):
        choose_kind(count, 512, budget)


def test_saved_index_answers_as_before_and_names_what_made_it(tmp_path):
    vectors, queries = unit_vectors(300, 8, 0), unit_vectors(7, 8, 1)
    search = build_faiss(vectors, Kind())
    search.save(tmp_path, "train", {"retriever": "abc"})
    again = load_faiss(tmp_path, "train", {"retriever": "abc"}, 300)
    for ours, wanted in zip(again.search(queries, 5), search.search(queries, 5)):
        np.testing.assert_array_equal(ours, wanted)
    with pytest.raises(ValueError, match="made with retriever abc, wanted is xyz"):
        load_faiss(tmp_path, "train", {"retriever": "xyz"}, 300)
    with pytest.raises(ValueError, match="holds 300 vectors, the memory 301"):
        load_faiss(tmp_path, "train", {"retriever": "abc"}, 301)
    (tmp_path / "train.faiss.json").unlink()
    with pytest.raises(FileNotFoundError, match="was not finished"):
        load_faiss(tmp_path, "train", {"retriever": "abc"}, 300)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("make", [lambda v: MeshSearch(v, make_mesh(config.Mesh())),
                                  lambda v: build_faiss(v, Kind())])  # fmt: skip
def test_queries_of_another_width_are_refused(make):
    search = make(unit_vectors(30, 8, 0))
    with pytest.raises(ValueError, match=r"queries are \[2, 9\]: give \[Q 8\]"):
        search.search(unit_vectors(2, 9, 1), 5)
    with pytest.raises(ValueError, match="count=0"):
        search.search(unit_vectors(2, 8, 1), 0)


def test_search_of_a_pods_share_of_340_million_compiles_for_a_tpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
    run = [sys.executable, str(Path(__file__).with_name("search_aot.py")), "v5e:4x4", "256"]
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(run, env=os.environ | quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    exact, approximate = json.loads(done.stdout.splitlines()[-1]).values()
    shard = 340_000_000 / 256 * 512 * 2
    assert shard <= exact["arguments"] <= 1.01 * shard
    assert sum(exact.values()) < 16e9  # a v5e chip's memory
    scores = 4096 * 32_768 * 4
    assert exact["temporary"] < 1.2 * scores  # one block of scores, never all
    assert approximate["temporary"] < 0.2 * scores  # not even a block


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found)]))

"""The join: rules kept on real sets, resumed as if never stopped, the same whatever the parts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK_FLAGS

from cm3leon_jax import config
from cm3leon_jax.mapped import Mapped, finish_mapped, part_path, write_mapped_part
from cm3leon_jax.retrieval import join as join_module
from cm3leon_jax.retrieval.index import Kind, build_faiss
from cm3leon_jax.retrieval.join import explain, join, summarize
from cm3leon_jax.retrieval.memory import Documents, Memory
from cm3leon_jax.retrieval.mesh_search import MeshSearch
from cm3leon_jax.sharding import make_mesh

RULES = config.Retrieval(most=2, candidates=24, max_score=0.95, max_similarity=0.9)
WIDTH = 16


def make_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Documents in groups; every tenth repeats the one before it, every seventh lacks one kind."""
    rng = np.random.default_rng(seed)
    themes = rng.standard_normal((count // 20 + 1, 1, WIDTH))
    queries = themes[rng.integers(0, len(themes), count)] + rng.standard_normal((count, 2, WIDTH))
    queries /= np.linalg.norm(queries, axis=2, keepdims=True)
    queries[10::10] = queries[9:-1:10]
    queries[::7, 0] = 0
    queries[3::14, 1] = 0
    mean = queries.sum(axis=1, keepdims=True)
    vectors = np.concatenate([mean / np.linalg.norm(mean, axis=2, keepdims=True), queries], axis=1)
    return vectors.astype(np.float16)


def write(folder: Path, vectors: np.ndarray, parts: int, retriever: str = "abc") -> Mapped:
    for number, part in enumerate(np.array_split(vectors, parts)):
        write_mapped_part(folder, "train.vectors", number, parts, part)
    finish_mapped(folder, "train.vectors", parts, {"retriever": retriever})
    return Mapped(folder, "train.vectors")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(join_module, "BLOCK", 16)


@pytest.fixture
def vectors(tmp_path):
    return write(tmp_path / "documents", make_vectors(150), 4)


@pytest.fixture
def memory(vectors):
    return Memory(vectors)


def test_neighbours_obey_every_rule(tmp_path, vectors, memory):
    result = join(vectors, memory, RULES, tmp_path / "neighbours", "train", same=True)
    content = vectors[:].astype(np.float32)
    complete = content[:, 1:].any(axis=2).all(axis=1)
    assert result.shape == (150, 4)
    taken = 0
    for i, neighbours in enumerate(result[:]):
        there = neighbours[neighbours["row"] >= 0]
        rows, ways = there["row"], there["by"]
        assert i not in rows
        assert len(set(rows.tolist())) == len(rows)
        assert complete[rows].all()
        scores = [content[i, 1 + way] @ content[row, 0] for row, way in zip(rows, ways)]
        assert max(scores, default=0) <= RULES.max_score
        np.testing.assert_allclose(there["score"], scores, atol=1e-3)
        for way in (0, 1):
            assert (np.diff(there["score"][ways == way]) <= 0).all()
            assert content[i, 1 + way].any() or not (ways == way).any()
        group = content[[i, *rows], 0]
        likeness = group @ group.T - 2 * np.eye(len(group))
        assert likeness.max() <= RULES.max_similarity
        taken += len(rows)
    assert taken > 400


def test_planted_copies_are_not_neighbours_of_their_originals(tmp_path, vectors, memory):
    copies = np.arange(10, 150, 10)
    content = vectors[:].astype(np.float32)
    alike = np.einsum("ne,ne->n", content[copies, 0], content[copies - 1, 0]) > 0.9
    copies = copies[alike]  # others of the pairs lack a text or an image
    assert len(copies) > 5
    rows = join(vectors, memory, RULES, tmp_path, "train", same=True)[:]["row"]
    for copy in copies:
        assert copy - 1 not in rows[copy]
        assert copy not in rows[copy - 1]


def test_neighbours_do_not_depend_on_the_parts(tmp_path, vectors, memory):
    wanted = join(vectors, memory, RULES, tmp_path / "4", "train", same=True)[:]
    for parts in (1, 7):
        others = write(tmp_path / f"documents-{parts}", make_vectors(150), parts)
        result = join(others, Memory(others), RULES, tmp_path / f"{parts}", "train", same=True)
        assert result.bounds == others.bounds
        np.testing.assert_array_equal(result[:], wanted)


def test_neighbours_are_the_same_from_faiss_and_from_any_mesh(tmp_path, vectors, memory):
    wanted = join(vectors, memory, RULES, tmp_path / "all", "train", same=True)[:]
    documents = Documents(vectors)
    indices = [
        build_faiss(documents, Kind()),
        MeshSearch(documents, make_mesh(config.Mesh(2, 2, 2))),
        MeshSearch(documents, make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])),
    ]
    for number, index in enumerate(indices):
        folder = tmp_path / f"{number}"
        result = join(vectors, Memory(vectors, index), RULES, folder, "train", same=True)
        np.testing.assert_array_equal(result[:], wanted)


def test_two_processes_share_a_join_and_write_what_one_does(tmp_path):
    write(tmp_path / "documents", make_vectors(150), 5)  # of unequal shares: 3 parts and 2
    vectors = Mapped(tmp_path / "documents", "train.vectors")
    wanted = join(vectors, Memory(vectors), RULES, tmp_path / "one", "train", same=True)[:]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, str(Path(__file__).with_name("join_run.py")), str(tmp_path), port]
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    paths["XLA_FLAGS"] = QUICK_FLAGS
    runs = [
        subprocess.Popen(
            [*program, str(i), "2"], env=os.environ | paths, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors[-3000:]
    result = Mapped(tmp_path / "neighbours", "train")
    np.testing.assert_array_equal(result[:], wanted)


class Interrupted(Exception):
    pass


def test_interrupted_join_resumes_and_equals_an_uninterrupted_one(
    tmp_path, vectors, memory, monkeypatch
):
    wanted = join(vectors, memory, RULES, tmp_path / "whole", "train", same=True)[:]
    folder = tmp_path / "stopped"
    asked: list[int] = []
    find = join_module._find

    def stop_in_the_third_part(queries, start, *rest):
        if start >= queries.bounds[2][0] + 16 and len(asked) < 100:
            asked.extend([0] * 100)
            raise Interrupted
        return find(queries, start, *rest)

    monkeypatch.setattr(join_module, "_find", stop_in_the_third_part)
    with pytest.raises(Interrupted):
        join(vectors, memory, RULES, folder, "train", same=True)
    kept = [part_path(folder, "train", number, 4) for number in (0, 1)]
    before = [(part.stat().st_mtime_ns, part.stat().st_ino) for part in kept]
    assert not part_path(folder, "train", 2, 4).exists()
    with pytest.raises(FileNotFoundError, match="was not finished"):
        Mapped(folder, "train")
    result = join(vectors, memory, RULES, folder, "train", same=True)
    np.testing.assert_array_equal(result[:], wanted)
    assert [(part.stat().st_mtime_ns, part.stat().st_ino) for part in kept] == before
    assert not list(folder.glob(".*"))


def test_other_rules_begin_anew(tmp_path, vectors, memory):
    join(vectors, memory, RULES, tmp_path, "train", same=True)
    one = config.Retrieval(**{**RULES.__dict__, "most": 1, "by_text": 1, "by_image": 0})
    result = join(vectors, memory, one, tmp_path, "train", same=True)
    assert result.shape == (150, 1)
    assert result.meta["rules"]["by_text"] == 1
    assert result.meta["retriever"] == "abc"
    assert result.meta["memory"]["count"] == 150


def test_rules_of_the_loader_do_not_begin_a_join_anew(tmp_path, vectors, memory):
    join(vectors, memory, RULES, tmp_path, "train", same=True)
    part = part_path(tmp_path, "train", 0, 4)
    before = part.stat().st_mtime_ns
    fewer = config.Retrieval(**{**RULES.__dict__, "most": 1})
    join(vectors, memory, fewer, tmp_path, "train", same=True)
    assert part.stat().st_mtime_ns == before


def test_a_memory_of_other_vectors_begins_anew(tmp_path, vectors, memory):
    first = join(vectors, memory, RULES, tmp_path, "held_out", same=False)[:]
    other = write(tmp_path / "other", make_vectors(150, seed=1), 4)
    second = join(vectors, Memory(other), RULES, tmp_path, "held_out", same=False)[:]
    assert (first["row"] != second["row"]).any()


def test_held_out_documents_get_neighbours_of_the_memory_without_their_copies(tmp_path, memory):
    own = make_vectors(150)[20:40]
    held_out = write(tmp_path / "held_out", own, 2)
    result = join(held_out, memory, RULES, tmp_path, "held_out", same=False)[:]
    complete = own[:, 1:].any(axis=2).all(axis=1)
    for i in np.flatnonzero(complete):
        assert 20 + i not in result["row"][i]
    assert (result["row"] >= 0).any(axis=1).all()


def test_memory_of_another_retriever_is_refused_with_both_fingerprints(tmp_path, memory):
    others = write(tmp_path / "others", make_vectors(20), 1, retriever="xyz")
    with pytest.raises(ValueError, match="the retriever abc, the queries with xyz"):
        join(others, memory, RULES, tmp_path, "train", same=False)


def test_same_of_different_sets_is_refused(tmp_path, memory):
    others = write(tmp_path / "others", make_vectors(20), 1)
    with pytest.raises(ValueError, match=r"queries are \[20, 3, 16\], the memory \[150, 3, 16\]"):
        join(others, memory, RULES, tmp_path, "train", same=True)


def test_captions_without_a_picture_do_not_crowd_out_whole_documents():
    rng = np.random.default_rng(0)
    query = rng.standard_normal(WIDTH)
    captions = np.zeros((100, 3, WIDTH))
    captions[:, 0] = captions[:, 1] = query + 0.1 * rng.standard_normal((100, WIDTH))
    whole = rng.standard_normal((10, 3, WIDTH))
    vectors = np.concatenate([captions, whole])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-9)
    memory = Memory(vectors.astype(np.float16))
    text = (query / np.linalg.norm(query))[None].astype(np.float32)
    rows = memory.neighbours(text, None, rules=RULES)["row"]
    assert (rows[0, :2] >= 100).all()
    assert (rows[0, 2:] == -1).all()


def test_memory_without_a_query_or_a_document_is_refused():
    with pytest.raises(ValueError, match=r"vectors are \[0, 3, 16\]"):
        Memory(np.zeros((0, 3, WIDTH), np.float16))
    with pytest.raises(ValueError, match="no query"):
        Memory(make_vectors(20)).neighbours(None, None, rules=RULES)


def test_the_memory_takes_every_device_along_the_axis_that_joins_slices(memory):
    assert memory.index.mesh.shape["data"] == jax.device_count() > 1


def test_a_side_without_documents_has_no_neighbours(tmp_path, memory):
    nothing = write(tmp_path / "held_out", make_vectors(1)[:0], 2)
    result = join(nothing, memory, RULES, tmp_path, "held_out", same=False)
    assert result.shape == (0, 4)
    assert not any(summarize(result).values())
    assert explain(nothing, memory, RULES, same=False) == {}


def test_summary_counts_neighbours_and_explains_the_missing(tmp_path, vectors, memory):
    result = join(vectors, memory, RULES, tmp_path, "train", same=True)
    summary = summarize(result)
    rows = result[:]["row"]
    for k in range(5):
        assert summary[f"with {k}"] == np.mean((rows >= 0).sum(axis=1) == k)
    mine = result[:][(rows >= 0) & (result[:]["by"] == 1)]
    assert summary["score by image"] == pytest.approx(mine["score"].astype(float).mean())
    shares = explain(vectors, memory, RULES, same=True)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["taken"] == pytest.approx((rows >= 0).sum() / (150 * 2 * 24))
    assert shares["copy"] > 0
    assert shares["itself"] > 0

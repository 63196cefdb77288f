"""Search of 100,000 vectors of 512 for 1,000 queries, top 16: ours and FAISS on the same cores.

`taskset -c 0 python -m benchmarks retrieval` measures one core; the wanted ratio of our exact
search to FAISS flat is at most 2. The vectors lie in groups, as those of images do, so that the
quantized index has something to learn.
"""

import os

import faiss
import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.tiny import median_seconds
from cm3leon_jax.config import Mesh
from cm3leon_jax.retrieval.index import build_faiss, choose_kind
from cm3leon_jax.retrieval.mesh_search import MeshSearch
from cm3leon_jax.sharding import make_mesh

COUNT, WIDTH, QUERIES, TOP = 100_000, 512, 1000, 16
BUDGET = 20_000_000  # bytes: a tenth of what the vectors take
CANDIDATES = 64  # of the quantized index, which the rules score anew


def measure() -> str:
    """A Markdown table."""
    cores = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(cores)
    vectors, queries = make_vectors()
    flat = build_faiss(vectors, choose_kind(COUNT, WIDTH, 4 * COUNT * WIDTH))
    mesh = MeshSearch(vectors, make_mesh(Mesh(fsdp=1), jax.devices()[:1]))
    quantized = build_faiss(vectors, choose_kind(COUNT, WIDTH, BUDGET))
    right = brute_force(queries, vectors)

    reference = median_seconds(lambda: flat.search(queries, TOP), 5)
    rows = []
    for name, search, times in (
        ("NumPy, all products", lambda: brute_force(queries, vectors), 1),
        ("FAISS flat", lambda: flat.search(queries, TOP)[1], 5),
        ("JAX, exact", lambda: mesh.search(queries, TOP)[1], 5),
        (f"FAISS {quantized.form}", lambda: quantized.search(queries, TOP)[1], 5),
        (f"the same, among {CANDIDATES}", lambda: quantized.search(queries, CANDIDATES)[1], 5),
    ):
        seconds = median_seconds(search, times)
        share = np.mean([np.isin(r, f).mean() for r, f in zip(right, search())])
        rows.append((name, f"{seconds:.2f} s", f"{share:.4f}", f"{seconds / reference:.2f}"))
    head = f"| search on {cores} core{'s' * (cores > 1)} | time | recall of {TOP} | / FAISS flat |"
    return "\n".join([head, "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)])


def make_vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors [COUNT WIDTH] around 2,000 centres, and queries [QUERIES WIDTH] among them."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, WIDTH), np.float32)
    made = []
    for count in (COUNT, QUERIES):
        x = centres[rng.integers(0, 2000, count)] + rng.standard_normal((count, WIDTH), np.float32)
        made.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return made[0], made[1]


def brute_force(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The rows [Q TOP] of the greatest products, one hundred queries at a time."""
    found = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ vectors.T
        best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)

"""FID and KID: how far the Inception features of one set of pictures are from those of another.

FID is the Frechet distance of two normal distributions (arXiv 1706.08500), KID the squared maximum
mean discrepancy under a cubic kernel (arXiv 1801.01401). Statistics are sums: parts are added, so a
set of any size streams in constant memory. B pictures of a batch, D = 2048 features.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.evaluation.parts import write_bytes
from cm3leon_jax.fields import require

BLOCK = 2048  # vectors


@dataclass(frozen=True)
class Statistics:
    """Of so many feature vectors: their mean [D] and the sum of (x - mean) (x - mean)' [D D]."""

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Statistics":
        """Of the vectors [B D], in float64."""
        rows = features.astype(np.float64)
        mean = rows.mean(0)
        rows -= mean
        return cls(len(rows), mean, rows.T @ rows)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both sets together (Chan, Golub and LeVeque 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter += np.outer(apart, apart * (self.count * other.count / count))
        return Statistics(count, mean, scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Without bias, as the reference implementations divide."""
        return self.scatter / (self.count - 1)


def gather(parts: Iterable[NDArray[np.floating]]) -> Statistics:
    """The statistics of all parts [B D]; at most BLOCK vectors and a part are in memory."""
    total: Statistics | None = None
    for block in _join(parts):
        found = Statistics.of(block)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("statistics of no pictures: give one picture or more")
    return total


def _join(parts: Iterable[NDArray[np.floating]]) -> Iterator[NDArray[np.floating]]:
    """Parts put together: adding statistics costs as much as hundreds of vectors."""
    held: list[NDArray[np.floating]] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= BLOCK:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """FID. Raises ValueError for fewer than 2 pictures a side, or networks that differ.

    The trace of the root of the product of both covariances comes from a symmetric matrix with the
    same eigenvalues, which stays exact where few pictures leave the covariances without full rank.
    """
    require(len(one.mean) == len(other.mean), "features", len(other.mean), f"use {len(one.mean)}")
    least = min(one.count, other.count)
    require(least > 1, "pictures", least, "use 2 or more on each side")
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ other.covariance @ root)
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    distance = np.square(one.mean - other.mean).sum() + traces
    return max(0.0, float(distance - 2 * np.sqrt(np.maximum(shared, 0)).sum()))


def kernel_distance(
    one: NDArray[np.floating],
    other: NDArray[np.floating],
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """KID: mean and standard deviation over random subsets of `size` vectors of [B D] each.

    The arrays may be memory-mapped: only the subsets are read. Equal settings draw the subsets of
    torch-fidelity. Raises ValueError where a side has fewer vectors than a subset.
    """
    least = min(len(one), len(other))
    require(2 <= size <= least, "size", size, f"use 2 to {least}, so many pictures there are")
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        rows = one[rng.choice(len(one), size, replace=False)].astype(np.float64)
        columns = other[rng.choice(len(other), size, replace=False)].astype(np.float64)
        own = sum(_without_diagonal(_kernel(x, x)) for x in (rows, columns))
        found.append(own / (size * (size - 1)) - 2 * _kernel(rows, columns).mean())
    return float(np.mean(found)), float(np.std(found))


def _kernel(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return (rows @ columns.T / rows.shape[1] + 1) ** 3


def _without_diagonal(kernel: NDArray[np.float64]) -> float:
    return float(kernel.sum() - np.trace(kernel))


def save_statistics(path: Path, statistics: Statistics, about: Mapping[str, Any]) -> None:
    """Writes an .npz file of plain arrays; `about` says which pictures and network they are of."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        count=np.int64(statistics.count),
        mean=statistics.mean,
        scatter=statistics.scatter,
        about=np.array(json.dumps(about)),
    )
    write_bytes(path, buffer.getvalue())


def load_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """What `save_statistics` wrote; raises ValueError for another file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("count", "mean", "scatter", "about")}
    except (KeyError, ValueError, EOFError) as error:
        raise ValueError(
            f"reference={str(path)!r}: use statistics that cm3leon wrote: {error}"
        ) from None
    found = Statistics(int(arrays["count"]), arrays["mean"], arrays["scatter"])
    return found, json.loads(str(arrays["about"]))

"""Scores of drawn pictures, streamed in parts: FID and KID to a reference, CLIP score.

FOLDER/features/, reference/    [B 2048] of the drawn and the reference pictures, in parts
FOLDER/reference.npz            statistics that a later evaluation may take as its reference
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import processes
from cm3leon_jax.evaluation import fid
from cm3leon_jax.evaluation.clip_score import Encoders, clip_score, retrieval_precision
from cm3leon_jax.evaluation.features import FeatureNetwork
from cm3leon_jax.evaluation.inputs import list_files, read_pictures
from cm3leon_jax.evaluation.parts import in_parts, join_arrays
from cm3leon_jax.fields import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
KID_SUBSETS, KID_SIZE = 100, 1000  # of torch-fidelity
AMONG = 100  # captions that a picture is to find its own among

Found = tuple[dict[str, Any], dict[str, Any]]
"""Scores, and the part of a protocol that says how they were measured."""


def text_scores(
    encoders: Encoders, paths: Sequence[Path], prompts: Sequence[str], size: int, folder: Path
) -> Found:
    """CLIP score and retrieval precision of a picture for each prompt; nothing on other processes
    than the first."""
    parts = _encode(encoders.pictures, paths, size, folder / "clip")
    if not processes.is_first():
        return {}, {}
    pictures, texts = join_arrays(parts, folder / "clip.npy"), encoders.texts(prompts)
    scores = {
        "clip_score": clip_score(pictures, texts),
        "retrieval_precision": retrieval_precision(pictures, texts, AMONG),
    }
    return scores, {"clip": encoders.name, "retrieval_among": min(AMONG, len(prompts))}


def feature_scores(
    network: FeatureNetwork,
    paths: Sequence[Path],
    reference: Sequence[Path] | Path,
    size: int,
    folder: Path,
) -> Found:
    """FID and KID of pictures at `size` pixels; nothing on other processes than the first.

    reference: files, a folder of them, or statistics that an earlier call wrote, which have no KID.
    Raises ValueError for statistics of another network or size, and for fewer than 2 pictures.
    """
    if isinstance(reference, Path) and reference.suffix == ".npz":
        real, about = fid.load_statistics(reference)
        for name, here in (("network", network.name), ("size", size)):
            require(about[name] == here, f"reference {name}", about[name], f"use {here!r}")
        parts = _encode(network, paths, size, folder / "features")
        if not processes.is_first():
            return {}, {}
        drawn = fid.gather(np.load(part) for part in parts)
        return {"fid": fid.frechet_distance(drawn, real)}, about
    files = list_files(reference, SUFFIXES) if isinstance(reference, Path) else reference
    least = min(len(files), len(paths))
    require(least > 1, "pictures", least, "use 2 or more, drawn ones and reference ones")
    real_parts = _encode(network, files, size, folder / "reference")
    parts = _encode(network, paths, size, folder / "features")
    if not processes.is_first():
        return {}, {}
    about = {
        "network": network.name,
        "size": size,
        "reference_hash": hash_files(files),
        "reference_count": len(files),
    }
    real = fid.gather(np.load(part) for part in real_parts)
    fid.save_statistics(folder / "reference.npz", real, about)
    drawn = fid.gather(np.load(part) for part in parts)
    subset = min(KID_SIZE, least)
    vectors = join_arrays(parts, folder / "features.npy")
    kid, deviation = fid.kernel_distance(
        vectors, join_arrays(real_parts, folder / "reference.npy"), KID_SUBSETS, subset
    )
    scores = {"fid": fid.frechet_distance(drawn, real), "kid": kid, "kid_deviation": deviation}
    return scores, about | {"kid_subsets": KID_SUBSETS, "kid_size": subset}


def hash_files(paths: Sequence[Path]) -> str:
    """16 hex digits of the contents of files, whatever their order and names."""
    digests = sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _encode(
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    paths: Sequence[Path],
    size: int,
    folder: Path,
) -> list[Path]:
    """Parts of [B D], made by all processes together."""

    def make(rows: range) -> NDArray[np.float32]:
        return encode(read_pictures([paths[i] for i in rows], size))

    return in_parts(folder, len(paths), make, "npy")

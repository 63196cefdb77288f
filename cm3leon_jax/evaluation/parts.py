"""Work in parts: each part is one file, made once, by any of several processes.

A part appears whole or not at all, and does not depend on the others. So a killed evaluation goes
on with the same command and gives the same, and processes that share a folder share the work.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import processes

PART = 128  # items: one full batch of decoding, and what a kill may cost


def in_parts(
    folder: Path, count: int, make: Callable[[range], Any], suffix: str = "json", size: int = PART
) -> list[Path]:
    """Files of `make(range)` for 0 to `count` in parts of `size`; returns when all of them exist.

    suffix: json for plain content, npy for arrays. Of several processes each makes every so-manieth
    part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of = processes.count()
    me = jax.process_index() if of > 1 else 0
    starts = range(0, count, size)
    paths = [folder / f"{number:05}.{suffix}" for number in range(len(starts))]
    for number, (start, path) in enumerate(zip(starts, paths)):
        if number % of == me and not path.exists():
            write_bytes(path, _to_bytes(make(range(start, min(start + size, count)))))
    wait_for(paths)
    return paths


def wait_for(paths: Iterable[Path]) -> None:
    """Returns when all files exist. Processes may end hours apart, for which collectives give up
    after half a minute."""
    for path in paths:
        while not path.exists():
            time.sleep(1)


def read_lists(paths: Iterable[Path]) -> list[Any]:
    """The items of all JSON parts, in order."""
    return list(chain.from_iterable(json.loads(path.read_text("utf-8")) for path in paths))


def join_arrays(paths: Iterable[Path], path: Path) -> NDArray[Any]:
    """All .npy parts as one memory-mapped file; only one part is in memory at a time. One process
    alone may call it."""
    parts = [np.load(each, mmap_mode="r") for each in paths]
    shape = sum(len(part) for part in parts), *parts[0].shape[1:]
    temporary = path.with_name(f"{path.name}.part")
    whole = np.lib.format.open_memmap(temporary, "w+", parts[0].dtype, shape)
    first = 0
    for part in parts:
        whole[first : first + len(part)] = part
        first += len(part)
    whole.flush()
    temporary.replace(path)
    return np.load(path, mmap_mode="r")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _to_bytes(content: Any) -> bytes:
    if not isinstance(content, np.ndarray):
        return json.dumps(content, ensure_ascii=False).encode()
    buffer = io.BytesIO()
    np.save(buffer, content)
    return buffer.getvalue()

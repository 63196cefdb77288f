"""Safetensors, read strictly and once, and written, one tensor at a time; nothing is executed.

A file is eight bytes with the length of a JSON header, the header (name: dtype, shape, place) and
the numbers. A directory holds `model.safetensors`, or shards that `model.safetensors.index.json`
lists. Tensors are read in the order of their places, so that a shard's checksum comes from the
same pass. Shapes are written as PyTorch has them.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
SHARD = 4 << 30  # bytes of a shard that is written
PIECE = 1 << 24  # bytes read at once where only the checksum wants them
LONGEST = 100 << 20  # bytes of a header, as the safetensors library has it


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    start: int  # of its bytes in the file
    size: int  # bytes


class Shards:
    """The tensors of one or several safetensors files; headers are read and checked at once."""

    def __init__(self, files: Sequence[Path]):
        self.files = {path: _read_header(path) for path in files}
        self.tensors: dict[str, Tensor] = {}
        self.sha256: dict[str, str] = {}  # by file, once `stream` has come to its end
        for path, tensors in self.files.items():
            for tensor in tensors:
                if tensor.name in self.tensors:
                    raise ValueError(f"tensor {tensor.name}: stands in {path} too; remove one")
                self.tensors[tensor.name] = tensor

    @classmethod
    def open(cls, source: Path) -> "Shards":
        """A file, or a directory; its index must list each tensor in the shard that holds it."""
        refuse_pickle(source)
        if source.is_file():
            return cls([source])
        if (source / INDEX).exists():
            return cls._listed(source)
        if (source / WHOLE).exists():
            return cls([source / WHOLE])
        names = ["diffusion_pytorch_model.safetensors"]  # diffusers' name
        found = [source / name for name in names if (source / name).exists()]
        if not found:
            raise ValueError(f"{source}: holds neither {WHOLE} nor {INDEX}; give a folder with one")
        return cls(found)

    @classmethod
    def _listed(cls, source: Path) -> "Shards":
        places: Mapping[str, str] = read_json(source / INDEX).get("weight_map", {})
        strange = [name for name in places.values() if Path(name).name != name]
        if strange or not places:
            raise ValueError(f"{source / INDEX}: use weight_map with names of files beside it")
        shards = cls([source / name for name in sorted(set(places.values()))])
        for path, tensors in shards.files.items():
            for tensor in tensors:
                if places.get(tensor.name) != path.name:
                    where = places.get(tensor.name, "no shard")
                    rule = f"{INDEX} places it in {where}; copy index and shards from one source"
                    raise ValueError(f"tensor {tensor.name}: stands in {path.name}, {rule}")
        for name, place in places.items():
            if name not in shards.tensors:
                raise ValueError(f"tensor {name}: {INDEX} lists it, {place} lacks it; copy it anew")
        return shards

    def check(self, wanted: Mapping[str, tuple[Shape, ...]], fields: Mapping[str, str]) -> None:
        """Raises ValueError unless there are exactly the wanted tensors.

        wanted: by name, the shapes that are right. fields: the config fields that say so.
        """
        for name, shapes in wanted.items():
            field = fields.get(name, "config.json")
            if name not in self.tensors:
                rule = f"of shape {shapes[0]} by {field}; copy the weights that belong to it"
                raise ValueError(f"tensor {name}: is missing, wanted {rule}")
            if self.tensors[name].shape not in shapes:
                rule = f"wanted {' or '.join(map(str, shapes))} by {field}"
                raise ValueError(f"tensor {name}: has shape {self.tensors[name].shape}, {rule}")
        for name, tensor in self.tensors.items():
            if name not in wanted:
                rule = "the config describes a model without it"
                raise ValueError(f"tensor {name}: of shape {tensor.shape} is left over; {rule}")

    def stream(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every tensor once, in the order of the files; fills `sha256`."""
        for path, tensors in self.files.items():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for tensor in tensors:
                    _digest_to(file, tensor.start, digest)
                    numbers = bytearray(tensor.size)
                    file.readinto(numbers)
                    digest.update(numbers)
                    yield tensor.name, np.frombuffer(numbers, tensor.dtype).reshape(tensor.shape)
                _digest_to(file, path.stat().st_size, digest)
            self.sha256[path.name] = digest.hexdigest()


def refuse_pickle(source: Path) -> None:
    """Raises ValueError for what would run code when it is read."""
    files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
    pickles = [path for path in files if path.suffix in PICKLES]
    if not files:
        raise ValueError(f"{source}: is not there, or empty; give a file or a folder of weights")
    if pickles and not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(
            f"{pickles[0]}: is a pickle, which can run any code; make safetensors of it in a"
            f" process of its own: cm3leon convert --from_torch {pickles[0]} OUT.safetensors"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ValueError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); copy it anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object; copy it anew")
    return content


def write_shards(
    folder: Path, tensors: Mapping[str, tuple[Shape, np.dtype[Any]]], numbers: Any
) -> None:
    """Writes shards of at most `SHARD` bytes, and their index where there are several.

    numbers(name) gives each tensor, just before it is written.
    """
    parts: list[list[str]] = [[]]
    filled = 0
    for name, (shape, dtype) in tensors.items():
        size = int(np.prod(shape)) * dtype.itemsize
        if parts[-1] and filled + size > SHARD:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    places: dict[str, str] = {}
    for i, names in enumerate(parts):
        file = WHOLE if len(parts) == 1 else f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        places |= dict.fromkeys(names, file)
        write_file(folder / file, {name: tensors[name] for name in names}, numbers)
    if len(parts) > 1:
        total = sum(int(np.prod(s)) * d.itemsize for s, d in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def write_file(
    path: Path, tensors: Mapping[str, tuple[Shape, np.dtype[Any]]], numbers: Any
) -> None:
    """One safetensors file, to a temporary name first; numbers(name) gives each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (shape, dtype) in tensors.items():
        end = place + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, dtype) in tensors.items():
            array = np.ascontiguousarray(numbers(name))
            assert (array.shape, array.dtype) == (shape, dtype), name
            file.write(array.reshape(-1).view(np.uint8).data)
    draft.replace(path)


def _read_header(path: Path) -> list[Tensor]:
    """The tensors of a file in the order of their places, which leave no gap and reach its end."""
    again = "copy it anew"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= min(size - 8, LONGEST):
                raise ValueError(f"{path}: its header ends behind the file; {again}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = []
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(
                    f"tensor {name}: {path} has dtype {entry['dtype']}; use {[*DTYPES]}"
                )
            first, end = entry["data_offsets"]
            dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(map(int, entry["shape"]))
            tensors.append(Tensor(name, dtype, shape, 8 + length + first, end - first))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {again}") from error
    except (struct.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: is no safetensors file; {again}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its header is not that of safetensors; {again}") from error
    place = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        wanted = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        if (tensor.start, tensor.size) != (place, wanted):
            raise ValueError(f"tensor {tensor.name}: its bytes in {path} do not fit; {again}")
        place += tensor.size
    if place != size:
        raise ValueError(f"{path}: has {size} bytes instead of {place}, it is cut off; {again}")
    return sorted(tensors, key=lambda tensor: tensor.start)


def _digest_to(file: Any, place: int, digest: Any) -> None:
    """Reads on to a place of the file, for the checksum only."""
    while (left := place - file.tell()) > 0:
        digest.update(file.read(min(left, PIECE)))

"""An Orbax checkpoint of one network, written and read a layer at a time.

Orbax writes it with arrays of one number; each of them is then made anew in its full shape, in
place, by the library that Orbax itself stores arrays with. So no array is ever whole in memory
unless it is written whole, and `checkpoint.load_network` reads the result as any other.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax import checkpoint
from cm3leon_jax.interop.shards import Shape


class Writer:
    """Arrays by dotted names, 'layers.query'; stacked ones take their layers in any order."""

    def __init__(self, folder: Path, arrays: dict[str, tuple[Shape, np.dtype[Any]]]):
        named: dict[str, Any] = {}
        for name, (shape, dtype) in arrays.items():
            *parents, last = name.split(".")
            node = named
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = np.zeros((1,) * len(shape), dtype)
        checkpoint.save_named(folder, named)
        self._arrays = {
            name: _open(
                folder,
                name,
                create=True,
                delete_existing=True,
                store_data_equal_to_fill_value=True,  # Orbax reads no array with a missing chunk
                metadata={
                    "shape": list(shape),
                    "data_type": dtype.name,
                    "chunk_grid": {
                        "name": "regular",
                        "configuration": {"chunk_shape": _chunk(name, shape)},
                    },
                },
            )
            for name, (shape, dtype) in arrays.items()
        }

    def write(self, name: str, array: NDArray[Any], layer: int | None = None) -> None:
        """Writes a whole array, or one layer of a stacked one."""
        target = self._arrays[name]
        (target if layer is None else target[layer]).write(array).result()


class Reader:
    """The arrays of a network that `save_network` or `Writer` wrote."""

    def __init__(self, folder: Path):
        self._folder, self._arrays = folder, dict[str, Any]()

    def form(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        """Shape and dtype of an array."""
        array = self._array(name)
        return tuple(array.shape), np.dtype(array.dtype.numpy_dtype)

    def read(self, name: str, layer: int | None = None) -> NDArray[Any]:
        """A whole array, or one layer of a stacked one."""
        array = self._array(name)
        return (array if layer is None else array[layer]).read().result()

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = _open(self._folder, name)
        return self._arrays[name]


def _chunk(name: str, shape: Shape) -> list[int]:
    """What is stored together: a layer of a stacked array, else the whole."""
    return [1, *shape[1:]] if name.startswith("layers.") else list(shape)


def _open(folder: Path, name: str, **options: Any) -> Any:
    import tensorstore

    base = f"file://{folder.absolute() / 'state'}/"
    place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    try:
        return tensorstore.open({"driver": "zarr3", "kvstore": place} | options).result()
    except ValueError as error:
        raise ValueError(f"{folder}: has no array {name}; give a bundle that is whole") from error

"""The opt-in process behind `cm3leon convert --from_torch`: a PyTorch checkpoint as safetensors.

`torch.load(weights_only=True)` builds tensors and plain containers only. Checkpoints of
pytorch-lightning also name its classes for the state of callbacks: those names get an empty class
of ours, and what was stored for them is dropped.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.interop.shards import NAMES, write_file

LIGHTNING = ("pytorch_lightning.", "lightning.")
NESTED = ("state_dict", "model", "params_ema", "params")  # where checkpoints keep their tensors


class Dropped:
    """Stands for an object that is not read."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def main(source: Path, target: Path) -> None:
    """Converts; raises ValueError with one line."""
    import torch

    find = torch.serialization.get_unsafe_globals_in_checkpoint
    try:
        names = [name for name in find(source) if name.startswith(LIGHTNING)]
        with torch.serialization.safe_globals([(Dropped, name) for name in names]):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler raises many kinds
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"torch.load(weights_only=True) refuses it: {first}") from error
    for name in NESTED:
        content = content.get(name, content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, no tensors by name")
    tensors = {name: x for name, x in content.items() if isinstance(x, torch.Tensor)}
    if not tensors:
        raise ValueError("it holds no tensors by name")

    def numbers(name: str) -> Any:
        x = tensors[name].contiguous()
        if x.dtype != torch.bfloat16:
            return x.numpy()
        return x.view(torch.uint16).numpy().view(dtypes["bfloat16"])

    dtypes = {dtype.name: dtype for dtype in NAMES}
    forms: dict[str, Any] = {}
    for name, x in tensors.items():
        kind = str(x.dtype).removeprefix("torch.")
        if kind not in dtypes:
            raise ValueError(f"tensor {name}: has dtype {kind}; use one of {[*dtypes]}")
        forms[name] = tuple(x.shape), np.dtype(dtypes[kind])
    write_file(target, forms, numbers)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"{error}")

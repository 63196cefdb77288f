"""Reads the public weights of the Inception network that FID is defined on.

The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or
`weights-inception-2015-12-05-6726825d.pth` of torch-fidelity: the same arrays under the same names.
torch reads a .pth without running any code in it; a .safetensors file needs no torch. To convert:

    import torch, safetensors.torch
    state = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "inception.safetensors")
"""  # noqa: E501

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.fields import require
from cm3leon_jax.models.inception import fold_norm, kernel_shapes

FOLDED = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def read_inception(path: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Kernel and bias of every convolution, from a .safetensors or .pth file.

    Raises ValueError for a file of another kind or network, FileNotFoundError for none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no such file: {path}; --inception takes the weights of pytorch-fid or torch-fidelity"
        )
    kinds = (".safetensors", ".pth")
    require(path.suffix in kinds, "inception", str(path), f"use a file {' or '.join(kinds)}")
    return fold_state(_read_safetensors(path) if path.suffix == kinds[0] else _read_torch(path))


def fold_state(
    state: Mapping[str, NDArray],
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The arrays of the public file, kernels [outputs inputs y x], with batch norms folded in."""
    found = {}
    for name, (y, x, inputs, outputs) in kernel_shapes().items():
        kernel = state.get(f"{name}.conv.weight")
        there = None if kernel is None else kernel.shape
        rule = f"use the public file, where it is {(outputs, inputs, y, x)}"
        require(there == (outputs, inputs, y, x), f"{name}.conv.weight", there, rule)
        assert kernel is not None
        norm = [state.get(f"{name}.{part}") for part in FOLDED]
        rule = f"use the public file, which has {', '.join(FOLDED)} of {outputs} numbers"
        has_norm = all(part is not None and part.shape == (outputs,) for part in norm)
        require(has_norm, f"{name}.bn", None, rule)
        found[name] = fold_norm(kernel.transpose(2, 3, 1, 0), *norm)  # type: ignore[arg-type]
    return found


def _read_safetensors(path: Path) -> Mapping[str, NDArray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"inception={str(path)!r}: cannot be read: {error}") from None


def _read_torch(path: Path) -> Mapping[str, NDArray]:
    import pickle

    import torch

    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"inception={str(path)!r}: cannot be read: {reason}") from None
    return {name: tensor.numpy() for name, tensor in state.items()}

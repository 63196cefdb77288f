"""Reads the public weights of the Inception network that FID is defined on.

The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or
`weights-inception-2015-12-05-6726825d.pth` of torch-fidelity: the same arrays under the same names.
It is a pickle, of which safetensors are made once:

    cm3leon convert --from_torch pt_inception-2015-12-05-6726825d.pth inception.safetensors
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.fields import require
from cm3leon_jax.interop.shards import Shards
from cm3leon_jax.models.inception import fold_norm, kernel_shapes

FOLDED = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def read_inception(path: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Kernel and bias of every convolution, from a .safetensors file.

    Raises ValueError for a file of another kind or network, FileNotFoundError for none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no such file: {path}; --inception takes the weights of pytorch-fid or torch-fidelity"
        )
    return fold_state(dict(Shards.open(path).stream()))


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

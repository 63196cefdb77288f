"""Checkpoints through Orbax V1: a training run's state, and single networks for the bundle.

Trees are stored as nested dicts named after the attributes ('layers/query'), so that files depend
on names and not on Python classes; restoring needs the abstract tree and puts every array on the
shardings it carries, whatever mesh wrote it. Orbax writes to a temporary name and renames: a kill
or a full disk leaves the earlier checkpoints as they were.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from etils import epath

from cm3leon_jax import config
from cm3leon_jax.fields import to_dict

PathLike: TypeAlias = str | os.PathLike[str]


class Restored(NamedTuple):
    """One checkpoint read back."""

    step: int
    state: Any
    position: Any  # of the data, as JSON


class Checkpoints:
    """The numbered checkpoints of one run, saved in the background, the newest `keep` kept."""

    def __init__(self, folder: PathLike, keep: int):
        ocp = _orbax()
        latest = ocp.training.preservation_policies.LatestN(keep)
        self.folder = local(folder)
        self._checkpointer = ocp.training.Checkpointer(
            self.folder.absolute(), preservation_policy=latest, cleanup_tmp_directories=True
        )

    def save(self, step: int, state: Any, position: Any) -> None:
        """Copies the state, then writes it in the background; waits for an earlier save first."""
        items = {"state": to_names(state), "data": {"position": position}}
        self._checkpointer.save_checkpointables_async(step, items, force=True, overwrite=True)

    def restore(self, state: Any, mesh_shardings: Any) -> Restored | None:
        """Reads the newest checkpoint into the form of `state`; None when there is none."""
        latest = self._checkpointer.latest
        if latest is None:
            return None
        wanted = {"state": to_names(_abstract(state, mesh_shardings)), "data": None}
        items = self._checkpointer.load_checkpointables(latest.step, wanted)
        return Restored(latest.step, from_names(state, items["state"]), items["data"]["position"])

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()


def save_network(folder: PathLike, network: Any) -> None:
    """Writes the arrays of one network."""
    _orbax().save(local(folder).absolute(), to_names(network), overwrite=True)


def load_network(folder: PathLike, network: Any, mesh_shardings: Any) -> Any:
    """Reads a network into the form of the abstract `network`."""
    wanted = to_names(_abstract(network, mesh_shardings))
    with _explained(folder):
        return from_names(network, _orbax().load(local(folder).absolute(), wanted))


def load_part(folder: PathLike, name: str, network: Any, mesh_shardings: Any) -> Any:
    """Reads one part of a state, such as "model", out of the newest checkpoint in `folder`."""
    ocp = _orbax()
    place = local(folder).absolute()
    latest = ocp.training.Checkpointer(place).latest if place.exists() else None
    if latest is None:
        raise ValueError(
            f"{folder}: holds no checkpoint; give a run that has saved one, or a bundle"
        )
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # neither moments nor step are read
    wanted = {name: to_names(_abstract(network, mesh_shardings))}
    with context, _explained(folder):
        items = ocp.load_checkpointables(place / str(latest.step), {"state": wanted})
    return from_names(network, items["state"][name])


def fingerprint(network: Any) -> str:
    """16 hex digits that two networks share only if their arrays are the same."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        array = np.asarray(leaf)
        digest.update(f"{_names(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def to_names(tree: Any) -> dict[str, Any]:
    """Any pytree -> nested dict by attribute names."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = _names(path)
        node = named
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return named


def from_names(tree: Any, named: Mapping[str, Any]) -> Any:
    """Inverse of `to_names` into the form of `tree`."""

    def find(path: Any, _: Any) -> Any:
        node: Any = named
        for name in _names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, tree)


def local(path: PathLike) -> epath.Path:
    """A local or gs:// path as one type."""
    return epath.Path(path)


def write_json(path: PathLike, content: Any) -> None:
    """Writes a small JSON file: to a temporary name first, then renamed."""
    final = local(path)
    temporary = final.parent / f"{final.name}.part"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(final)


def write_experiment(folder: PathLike, experiment: config.Experiment) -> None:
    """Writes the resolved config beside what was made from it."""
    local(folder).mkdir(parents=True, exist_ok=True)
    write_json(local(folder) / "config.json", to_dict(experiment))


def read_experiment(folder: PathLike) -> config.Experiment:
    """Reads the config that stands beside a checkpoint or in a bundle."""
    path = local(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder}: has no config.json; give the folder of a run or of a bundle")
    try:
        return config.from_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it anew from the run") from error


@contextmanager
def _explained(folder: PathLike) -> Iterator[None]:
    """One line for what Orbax raises where a folder does not hold the wanted network."""
    try:
        yield
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{folder}: does not hold the network that config.json describes ({reason});"
            " the two must come from the same run"
        ) from error


def _names(path: Any) -> list[str]:
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return names[:-1] if names[-1] == "value" else names


def _abstract(tree: Any, mesh_shardings: Any) -> Any:
    of_leaf = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
    return jax.tree.map(of_leaf, tree, mesh_shardings)


def _orbax() -> Any:
    from orbax.checkpoint import v1  # takes a second to import

    logging.getLogger("absl").setLevel(logging.WARNING)
    return v1

"""Checkpoints through Orbax V1: a training run's state, and single networks for the bundle.

Trees are stored as nested dicts named after the attributes ('layers/query'), so that files depend
on names and not on Python classes; restoring needs the abstract tree and puts every array on the
shardings it carries, whatever mesh and however many hosts wrote it. Orbax writes to a temporary
name and renames: a kill or a full disk leaves the earlier checkpoints as they were. What happens to
files later is found by their sizes, which every checkpoint lists.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from etils import epath

from cm3leon_jax import config, processes
from cm3leon_jax.fields import to_dict

PathLike: TypeAlias = str | os.PathLike[str]


# Orbax writes these after the list of sizes, and restores without them.
UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
SIZES = "sizes.json"


class Restored(NamedTuple):
    """One checkpoint read back."""

    step: int
    state: Any
    position: Any  # of the data, as JSON
    progress: Any  # what else the loop goes on from, as JSON


class Checkpoints:
    """The numbered checkpoints of one run, saved in the background, the newest `keep` kept.

    With several processes all of them call every method together.
    """

    def __init__(self, folder: PathLike, keep: int):
        ocp = _orbax()
        latest = ocp.training.preservation_policies.LatestN(keep)
        # A function of its own: Orbax copies its options, and with a bound method this object too.
        callback = lambda: self._list_sizes()  # noqa: E731
        context = ocp.Context()
        context.asynchronous.post_finalization_callback = callback
        self.folder = local(folder).absolute()
        self._saving = 0  # the step that is being written
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            context=context,
            preservation_policy=latest,
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, position: Any, progress: Any = None) -> None:
        """Copies the state, then writes it in the background; waits for an earlier save first."""
        self._checkpointer.wait()
        self._saving = step
        data = {"json": json.dumps({"position": position, "progress": progress})}
        items = {"state": to_names(state), "data": data}
        self._checkpointer.save_checkpointables_async(step, items, force=True, overwrite=True)

    def restore(self, state: Any, mesh_shardings: Any) -> Restored | None:
        """Reads the newest readable checkpoint into the form of `state`; None when there is none.

        Those that are newer and damaged on any host are named and moved aside, as `damaged-STEP`.
        Raises ValueError where there are some and none can be read.
        """
        wanted = {"state": to_names(_abstract(state, mesh_shardings)), "data": None}
        steps = self._steps()
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            try:
                items = self._read(step, wanted)
                reason = ""
            except (ValueError, KeyError, OSError) as error:
                reason = _first_line(error)
            if all(processes.gather(np.array(not reason))):
                self._move_aside(damaged, step)
                data = json.loads(items["data"]["json"])
                state = from_names(state, items["state"])
                return Restored(step, state, data["position"], data["progress"])
            damaged[step] = reason or "another host cannot read it"
        if damaged:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {steps} can be read (step {steps[-1]}:"
                f" {damaged[steps[-1]]}); restore their files, or train in another folder"
            )
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()

    def _steps(self) -> list[int]:
        """Those that the first process lists: a shared folder may look older to another host."""
        mine = [found.step for found in self._checkpointer.checkpoints]
        if not (count := int(processes.gather(np.array(len(mine)))[0])):
            return []
        return processes.gather(np.resize(mine, count).astype(np.int64))[0].tolist()

    def _read(self, step: int, wanted: Mapping[str, Any]) -> Any:
        """Reads on this host alone: one that fails does not leave the others waiting for it."""
        folder = self.folder / str(step)
        if (folder / SIZES).exists():  # a kill may leave a whole checkpoint without
            for name, size in json.loads((folder / SIZES).read_text()).items():
                if not (folder / name).exists():
                    raise FileNotFoundError(f"{name} is missing")
                if (there := (folder / name).stat().length) != size:
                    raise ValueError(f"{name} has {there} bytes instead of {size}")
        with _alone():
            return _orbax().load_checkpointables(folder, wanted)

    def _move_aside(self, damaged: Mapping[int, str], newest: int) -> None:
        """So that a later save of the same step is the newest again and nothing is deleted."""
        for step, reason in damaged.items():
            if processes.is_first():
                print(
                    f"checkpoint of step {step} is damaged ({reason}): moved to damaged-{step},"
                    f" going on from step {newest}",
                    file=sys.stderr,
                )
                aside = self.folder / f"damaged-{step}"
                if aside.exists():
                    aside.rmtree()
                (self.folder / str(step)).rename(aside)
        if damaged:
            processes.wait_for_all("damaged checkpoints are aside")
            self._checkpointer.reload()

    def _list_sizes(self) -> None:
        """Orbax calls this on every process when the files of a save are complete."""
        if processes.is_first():
            unfinished = list(self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"))
            folder = unfinished[0] if unfinished else self.folder / str(self._saving)
            sizes = {
                (place / name).relative_to(folder).as_posix(): (place / name).stat().length
                for place, _, names in folder.walk()
                for name in names
                if name not in UNLISTED
            }
            write_json(folder / SIZES, sizes)


def save_network(folder: PathLike, network: Any) -> None:
    """Writes the arrays of one network."""
    save_named(folder, to_names(network))


def save_named(folder: PathLike, named: Mapping[str, Any]) -> None:
    """`save_network` for what `to_names` gives."""
    _orbax().save(local(folder).absolute(), named, overwrite=True)


def load_network(
    folder: PathLike, network: Any, mesh_shardings: Any, as_stored: bool = False
) -> Any:
    """Reads a network into the form of the abstract `network`; waits for no other process.

    as_stored: every array in the type that it has on disk, which takes no more memory than there.
    """
    wanted, place = to_names(_abstract(network, mesh_shardings)), local(folder).absolute()
    with _explained(folder), _alone():
        if as_stored:
            typed = lambda x, there: x.update(dtype=there.dtype)  # noqa: E731
            wanted = jax.tree.map(typed, wanted, _orbax().metadata(place).metadata)
        return from_names(network, _orbax().load(place, wanted))


def load_part(folder: PathLike, name: str, network: Any, mesh_shardings: Any) -> Any:
    """Reads one part of a state, such as "model", out of the newest checkpoint in `folder`."""
    ocp = _orbax()
    place = local(folder).absolute()
    latest = None
    if place.exists():
        with closing(ocp.training.Checkpointer(place)) as checkpointer:
            latest = checkpointer.latest
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
        digest.update(f"{names_of(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def to_names(tree: Any) -> dict[str, Any]:
    """Any pytree -> nested dict by attribute names."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = names_of(path)
        node = named
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return named


def from_names(tree: Any, named: Mapping[str, Any]) -> Any:
    """Inverse of `to_names` into the form of `tree`."""

    def find(path: Any, _: Any) -> Any:
        node: Any = named
        for name in names_of(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, tree)


def names_of(path: Any) -> list[str]:
    """The names along a path of a pytree; a variable and its value have one name together."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # "value" may be a dict's own key
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def local(path: PathLike) -> epath.Path:
    """A local or gs:// path as one type."""
    return epath.Path(path)


def link(source: PathLike, target: PathLike) -> None:
    """A second name for a file that is never changed, or its copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


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
        raise ValueError(
            f"{folder}: does not hold the network that config.json describes"
            f" ({_first_line(error)}); the two must come from the same run"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _abstract(tree: Any, mesh_shardings: Any) -> Any:
    of_leaf = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
    return jax.tree.map(of_leaf, tree, mesh_shardings)


def _alone() -> Any:
    """The context in which Orbax reads on this process without meeting the others."""
    context, me = _orbax().Context(), jax.process_index()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    context.multiprocessing.barrier_sync_key_prefix = f"restore_{me}"
    return context


def _orbax() -> Any:
    from orbax.checkpoint import v1  # takes a second to import

    logging.getLogger("absl").setLevel(logging.ERROR)  # of its warnings none helps
    return v1

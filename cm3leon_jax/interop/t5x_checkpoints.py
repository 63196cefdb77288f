"""Checkpoints of T5X, read and written through Orbax alone: `checkpoint_<step>/state`.

The state is {target: parameters, state: {step, param_states: moments}}, nested dicts under our
names. Those of the moments are optax's, so that T5X's `OptaxWrapper` reads what we write.
"""

from pathlib import Path
from typing import Any

import jax

from cm3leon_jax.checkpoint import from_names, to_names
from cm3leon_jax.fields import require
from cm3leon_jax.training.step import TrainState

PREFIX = "checkpoint"


def read_state(folder: Path, state: TrainState, mesh_shardings: TrainState) -> TrainState:
    """The checkpoint `folder`, .../checkpoint_<step>, in the form of the abstract `state`.

    Every array lands where `mesh_shardings` says, whatever mesh wrote it. Raises ValueError for a
    folder that is no such checkpoint or holds another model.
    """
    found = _restore(folder, _content(state), _content(mesh_shardings))
    inner = found["state"]
    moments = from_names(state.moments, inner["param_states"])
    return TrainState(inner["step"], from_names(state.model, found["target"]), moments)


def read_model(folder: Path, model: Any, mesh_shardings: Any) -> Any:
    """The parameters alone, in the form of the abstract `model`."""
    wanted, at = {"target": to_names(model)}, {"target": to_names(mesh_shardings)}
    return from_names(model, _restore(folder, wanted, at)["target"])


def write_state(model_dir: Path, state: TrainState) -> Path:
    """Writes `checkpoint_<step>` into a folder of T5X runs; returns its path.

    T5X goes on from it where the optimizer has the same fields. Raises ValueError if it is there.
    """
    import orbax.checkpoint as ocp

    step = int(state.step)
    target = model_dir.absolute() / f"{PREFIX}_{step}"
    require(not target.exists(), "checkpoint", str(target), "is there already; use another folder")
    options = ocp.CheckpointManagerOptions(step_prefix=PREFIX, create=True)
    names = ("state",)
    with ocp.CheckpointManager(model_dir.absolute(), options=options, item_names=names) as manager:
        saved = ocp.args.StandardSave(_content(state))
        manager.save(step, args=ocp.args.Composite(state=saved), force=True)
    return target


def _content(state: TrainState) -> dict[str, Any]:
    inner = {"step": state.step, "param_states": to_names(state.moments)}
    return {"target": to_names(state.model), "state": inner}


def _restore(folder: Path, wanted: Any, at: Any) -> Any:
    import orbax.checkpoint as ocp

    place = folder.absolute() / "state"
    require(place.exists(), "checkpoint", str(folder), "use a T5X folder checkpoint_<step>")
    args = jax.tree.map(
        lambda x, sharding: ocp.ArrayRestoreArgs(
            dtype=x.dtype, sharding=sharding, global_shape=x.shape, strict=True
        ),
        wanted,
        at,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        there = reader.metadata(place).item_metadata.tree
        _check_shapes(folder, there, wanted)
        return reader.restore(
            place, ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True)
        )


def _check_shapes(folder: Path, there: Any, wanted: Any) -> None:
    """Raises ValueError that names the first array that the checkpoint has not, or otherwise."""

    def check(path: Any, leaf: Any) -> None:
        node, names = there, [key.key for key in path]
        for name in names:
            node = node.get(name) if isinstance(node, dict) else None
        shape = None if node is None else tuple(node.shape)
        rule = f"the experiment has {leaf.shape}; use the config.json that it was trained with"
        require(shape == leaf.shape, f"{folder}: {'/'.join(names)}", shape, rule)

    jax.tree_util.tree_map_with_path(check, wanted)

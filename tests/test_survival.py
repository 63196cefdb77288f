"""What a run does about broken numbers, outliers, damaged files and time, within one process."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SMALL, make_examples, make_text

from cm3leon_jax import config, processes
from cm3leon_jax.checkpoint import Checkpoints
from cm3leon_jax.data.loader import token_batches
from cm3leon_jax.models.losses import cross_entropy
from cm3leon_jax.sharding import make_mesh, shardings
from cm3leon_jax.training import survival
from cm3leon_jax.training.batches import host_rows, place, whole_position
from cm3leon_jax.training.loop import fit
from cm3leon_jax.training.metrics import MOST_IN_A_ROW, check_finite, mean_metrics, read_metrics
from cm3leon_jax.training.optimizer import WARMUP, count_skipped, make_optimizer, make_schedule
from cm3leon_jax.training.step import init_state, train_step
from cm3leon_jax.training.survival import Goodput


def run(c: config.Experiment, folder: Path, show=None, break_at: int = 0):
    """Trains; with `break_at` the gradients of that step are NaN."""
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(c.optimizer, c.train.steps)
    init = lambda key: init_state(c, optimizer, key)  # noqa: E731

    def step(state, batch):
        poison = jnp.where(state.step + 1 == break_at, jnp.nan, 1.0)
        batch = batch | {"weights": batch["weights"] * poison}
        return train_step(c, optimizer, make_schedule(c.optimizer, c.train.steps), state, batch)

    batches = token_batches([(make_examples(c), 1.0)], make_text(), c)
    return fit(step, init, batches, c.train, mesh, folder, show=show)


def test_no_checkpoint_is_made_behind_a_nan(small, tmp_path):
    c = config.replace(small, {"train.log_every": 4, "train.save_every": 4})
    advice = r"in another --workdir, .* train\.start_from=.* lower optimizer\.learning_rate"
    with pytest.raises(FloatingPointError, match=rf"step 7 of 5 to 8: .*loss.* finite.*{advice}"):
        run(c, tmp_path, break_at=7)
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == ["4"]


@pytest.mark.parametrize(("kind", "place"), [("text", 0), ("image", 1)])
def test_a_broken_loss_is_named_by_its_modality(kind, place):
    targets = jnp.array([[2, 60]])  # a text piece and an image code
    hidden = jnp.zeros((1, 2, 8)).at[0, place].set(jnp.nan)
    means = cross_entropy(hidden, jnp.ones((64, 8)), targets, jnp.ones((1, 2)), 48, 2).means()
    broken = {name for name, value in means.items() if not np.isfinite(value)}
    assert broken == {"loss", "z_loss", f"{kind}_loss"}
    with pytest.raises(FloatingPointError, match=f"step 9 of 9 to 9: .*loss of {kind} tokens"):
        check_finite([means], 9)


def test_metrics_of_a_window_are_means_in_64_bits_and_last_counts():
    window = [{"loss": np.float32(x), "skipped": n} for n, x in enumerate((0.1, 0.2, np.nan))]
    wanted = (float(np.float32(0.1)) + float(np.float32(0.2))) / 2
    assert mean_metrics(window) == {"loss": wanted, "skipped": 2.0}


def updates(above: float, norms: list[float]):
    """Feeds gradients of those norms; returns parameters and state after each."""
    c = config.Optimizer(learning_rate=0.1, warmup_steps=0, schedule="constant", clip=0.0,
                         skip_above=above)  # fmt: skip
    optimizer = make_optimizer(c, 100)
    params, update = {"kernel": jnp.ones(4)}, jax.jit(optimizer.update)
    state, made = optimizer.init(params), []
    for norm in norms:
        change, state = update({"kernel": np.full(4, norm / 2, np.float32)}, state, params)
        params = optax.apply_updates(params, change)
        made.append((params["kernel"], state))
    return made


def test_an_outlier_changes_nothing_and_is_counted():
    usual = [1.0 + 0.1 * (n % 3) for n in range(WARMUP)]
    made = updates(3.0, [*usual, 1.0, 50.0, float("nan"), 1.0])
    before, outlier, broken, after = made[-4:]
    for skipped in (outlier, broken):
        np.testing.assert_array_equal(skipped[0], before[0])
        for name in ("mu", "nu", "mean", "accepted"):
            old, new = (optax.tree_utils.tree_get(one[1], name) for one in (before, skipped))
            np.testing.assert_array_equal(*map(np.asarray, map(_leaf, (old, new))))
    assert np.abs(after[0] - before[0]).max() > 1e-3
    counts = [{k: int(v) for k, v in count_skipped(s).items()} for _, s in made[-4:]]
    assert [count["skipped"] for count in counts] == [0, 1, 2, 2]
    assert [count["skipped_in_a_row"] for count in counts] == [0, 1, 2, 0]
    # As if those two steps had not been, but for the schedule, which is constant here.
    straight = updates(3.0, [*usual, 1.0, 1.0])
    np.testing.assert_array_equal(after[0], straight[-1][0])


def _leaf(tree):
    return jax.tree.leaves(tree)[0]


def test_large_norms_are_usual_before_the_mean_is_known_and_nan_never_is():
    made = updates(3.0, [1.0, 90.0, float("nan"), 1.0])
    assert int(count_skipped(made[1][1])["skipped"]) == 0
    assert int(count_skipped(made[2][1])["skipped"]) == 1
    assert not count_skipped(updates(0.0, [1.0])[0][1])  # off: no state, no metric


def test_a_skipped_nan_does_not_stop_the_run_but_many_in_a_row_do(small, tmp_path):
    c = config.replace(small, {"optimizer.skip_above": 3.0})
    run(c, tmp_path, break_at=7)
    assert read_metrics(tmp_path)["skipped"][-1] == (12, 1.0)
    window = [{"loss": 1.0, "skipped_in_a_row": MOST_IN_A_ROW + 1}]
    with pytest.raises(FloatingPointError, match=f"steps 10 to 30: {MOST_IN_A_ROW + 1} updates"):
        check_finite(window, 30)


def test_the_hang_limit_rests_during_samples_and_saves(small, tmp_path, monkeypatch):
    seen: list[str] = []
    note = lambda name: lambda *_, **__: seen.append(name)  # noqa: E731
    monkeypatch.setattr(survival.faulthandler, "dump_traceback_later", note("armed"))
    monkeypatch.setattr(survival.faulthandler, "cancel_dump_traceback_later", note("off"))
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *a: (seen.append("save"), save(*a)))

    def show(state, step):
        seen.append("sample")
        return {}, {}

    run(config.replace(small, {"train.steps": 4, "train.sample_every": 2}), tmp_path, show)
    shown = ["armed", "off", "sample", "armed"]
    assert seen == ["armed", "armed", *shown, "armed", "armed", "off", "save", *shown, "off"]


def test_goodput_counts_steps_and_nothing_else_through_restarts():
    now = [0.0]

    def after(seconds: float) -> None:
        now[0] += seconds

    first = Goodput(clock=lambda: now[0])
    after(20)  # start and first step
    first.step()
    for _ in range(10):
        after(1)
        first.step()
    with first.paused():
        after(5)  # a save
    saved = first.so_far()
    assert saved == {"trained": 10.0, "lived": 35.0}
    for _ in range(5):
        after(1)
        first.step()
    assert (first.trained, first.share, first.steps) == (15.0, 15 / 40, 15)
    known = first.lived  # the log's last line; then a kill: 5 steps are lost
    after(1000)  # in a queue
    second = Goodput(lived=known, clock=lambda: now[0])
    second.resume(**saved)
    after(20)
    second.step()
    after(10)
    second.step()
    assert (second.trained, second.lived) == (20.0, 70.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """Checkpoints of steps 4 and 8, those states, which differ, and where their arrays lie."""
    c = config.replace(config.Experiment(), SMALL)
    mesh = make_mesh(config.Mesh(fsdp=4), jax.devices()[:4])
    optimizer = make_optimizer(c.optimizer, 10)
    init = lambda key: init_state(c, optimizer, key)  # noqa: E731
    at = shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    make = jax.jit(init, out_shardings=at)
    states = [make(jax.random.key(seed)) for seed in (4, 8)]
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder, keep=3)
    for step, state in zip((4, 8), states):
        checkpoints.save(step, state, [step], {"trained": step})
    checkpoints.close()
    return folder, states, at


def files_of(folder: Path) -> list[Path]:
    unneeded = ("commit_success.txt", "_CHECKPOINT_METADATA", "sizes.json")
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in unneeded]


def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_restored(
    saved, tmp_path, capsys
):
    good, states, at = saved
    names = [path.relative_to(good) for path in files_of(good / "8")]
    assert len(names) >= 7
    for number, name in enumerate(names):
        folder = tmp_path / f"bad-{number}"
        shutil.copytree(good, folder)
        path = folder / name
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        checkpoints = Checkpoints(folder, keep=3)
        restored = checkpoints.restore(states[0], at)
        assert (restored.step, restored.position, restored.progress) == (4, [4], {"trained": 4})
        error = capsys.readouterr().err
        assert error.startswith("checkpoint of step 8 is damaged (")
        assert "going on from step 4" in error
        assert error.count("\n") == 1
        checkpoints.save(8, states[1], [9])  # the same number is free again
        checkpoints.close()
        again = Checkpoints(folder, keep=3).restore(states[0], at)
        assert (again.step, again.position) == (8, [9])
        assert (folder / "damaged-8").is_dir()


def test_every_host_resumes_from_what_the_first_one_lists(saved, tmp_path, monkeypatch):
    good, states, at = saved
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    first = iter([np.array(1), np.array([4]), np.array(True)])  # it does not see step 8 yet
    monkeypatch.setattr(processes, "gather", lambda mine: np.stack([next(first), mine]))
    assert Checkpoints(tmp_path, keep=3).restore(states[0], at).step == 4


def test_without_a_list_of_sizes_damage_is_found_by_reading(saved, tmp_path):
    good, states, at = saved
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    (tmp_path / "8" / "sizes.json").unlink()
    largest = max(files_of(tmp_path / "8"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert Checkpoints(tmp_path, keep=3).restore(states[0], at).step == 4


def test_nothing_readable_is_an_error_and_nothing_is_moved(saved, tmp_path):
    good, states, at = saved
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for step in "48":
        (tmp_path / step / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match=r"none of the checkpoints \[4, 8\] can be read") as error:
        Checkpoints(tmp_path, keep=3).restore(states[0], at)
    assert "\n" not in str(error.value)
    assert {"4", "8"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 4, 2), (1, 1, 8)])
def test_a_placed_batch_is_the_hosts_and_its_rows_are_those_of_its_devices(small, sizes):
    mesh = make_mesh(config.Mesh(*sizes))
    rows = host_rows(mesh, 8)
    assert rows == list(range(8))  # one host has all
    batch = {"images": np.arange(8 * 3).reshape(8, 3), "texts": np.arange(8)}
    placed = place(batch, rows, 8, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
    with pytest.raises(ValueError, match=r"train\.batch=9: .* must be a multiple of data x fsdp"):
        host_rows(make_mesh(config.Mesh(2)), 9)
    with pytest.raises(ValueError, match="'texts' has 4 rows, this host's share"):
        place({"texts": np.arange(4)}, rows, 8, mesh)


def test_the_whole_position_is_that_of_the_only_host(small):
    stream = token_batches([(make_examples(small), 1.0)], make_text(), small)
    stream.seek(list(range(8)))
    assert whole_position(stream) == list(range(8))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("localhost:99", 2, None), "give all three"),
        (("localhost:99", 2, 2), "--process 2: must be"),
        (("localhost", 2, 0), "--coordinator localhost: use HOST:PORT"),
    ],
)
def test_a_wrong_place_among_processes_is_refused(place, message):
    with pytest.raises(ValueError, match=message):
        processes.join(*place)

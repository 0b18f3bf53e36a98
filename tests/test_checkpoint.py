"""What is saved comes back, on any number of devices; what is damaged is found and passed over."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import parallel
from jaxgen.checkpoint import MANIFEST, Checkpoints, find, restore, saved_steps
from jaxgen.errors import UserError
from jaxgen.types import TrainState

OPTIMIZER = optax.adam(1e-3)


def state_of(step: int, shape=(3, 5), dtype=jnp.float32) -> TrainState:
    params = {"net": {"kernel": jnp.full(shape, step, dtype), "bias": jnp.arange(4.0)}, "count": jnp.int32(step)}
    return TrainState(
        step=jnp.int32(step),
        key=jax.random.key(step),
        params=params,
        opt_state={"net": OPTIMIZER.init(params["net"])},
        ema=jax.tree.map(lambda x: 2 * x, params),
    )


def template_of(state: TrainState, mesh=None) -> TrainState:
    return parallel.sharded(jax.eval_shape(lambda: state), mesh or parallel.make_mesh())


def save(directory, steps, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, state_of(step), loss=abs(step - 2.0))
    checkpoints.wait()
    checkpoints.close()


def load(directory, expected: int | None, say=print):
    state = restore(directory, template_of(state_of(0)), say)
    assert (state and int(state.step)) == expected
    if state is not None:
        a, b = (
            jax.tree.map(np.asarray, s.replace(key=jax.random.key_data(s.key))) for s in (state, state_of(expected))
        )
        jax.tree.map(np.testing.assert_array_equal, a, b)
    return state


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_whole_state_comes_back(tmp_path, asynchronous):
    save(tmp_path, [1, 2], asynchronous=asynchronous)
    state = load(tmp_path, 2)
    assert jax.random.normal(state.key) == jax.random.normal(jax.random.key(2))
    assert restore(tmp_path / "nothing", template_of(state)) is None


def test_it_comes_back_on_another_number_of_devices(tmp_path):
    save(tmp_path, [1])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[2:3])
    state = restore(tmp_path, template_of(state_of(0), mesh))
    assert state.params["net"]["kernel"].devices() == {jax.devices()[2]}
    np.testing.assert_array_equal(state.params["net"]["kernel"], np.ones((3, 5)))


def test_the_newest_and_the_best_stay(tmp_path):
    save(tmp_path, [1, 2, 3, 4, 5, 6], keep=2)
    assert saved_steps(tmp_path) == [2, 5, 6]
    save(tmp_path, [7, 8], start=6)  # also after a resume
    assert saved_steps(tmp_path) == [2, 7, 8]


def test_a_checkpoint_is_found_by_its_name(tmp_path):
    with pytest.raises(UserError, match=r"--checkpoint best: no checkpoint has a validation loss; .* holds none"):
        find(tmp_path, "best")
    save(tmp_path, [1, 2, 3, 4], keep=2)
    assert find(tmp_path, "best") == 2
    assert find(tmp_path, "3") == 3
    for which in ("1", "newest", "-1", "²"):
        message = f"--checkpoint {which}: expected latest, best or a saved step; .* holds 2, 3, 4"
        with pytest.raises(UserError, match=message):
            find(tmp_path, which)
    template, said = template_of(state_of(0)), []
    assert int(restore(tmp_path, template, only=2).step) == 2
    flip_a_bit(tmp_path / "2")
    assert restore(tmp_path, template, said.append, only=2) is None
    assert len(said) == 1


def test_a_loss_that_is_measured_later_is_added(tmp_path):
    save(tmp_path, [1, 2])
    checkpoints = Checkpoints(tmp_path, start=3)
    checkpoints.save(3, state_of(3))
    checkpoints.wait()
    checkpoints.save(3, state_of(3), loss=-1.0)
    checkpoints.close()
    assert find(tmp_path, "best") == 3
    load(tmp_path, 3)


def flip_a_bit(folder):
    path = max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = next(p for p in folder.rglob("manifest.ocdbt"))
    path.write_bytes(path.read_bytes()[:-7])


def remove(folder):
    next(p for p in folder.rglob("_METADATA")).unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def break_the_manifest(folder):
    (folder / MANIFEST).write_text("{")


def change_the_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace("params/net/kernel", "params/net/kernal"))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove, empty, break_the_manifest, change_the_manifest])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, damage):
    save(tmp_path, [1, 2])
    damage(tmp_path / "2")
    said = []
    load(tmp_path, 1, said.append)
    assert len(said) == 1
    assert said[0].startswith("checkpoint 2 is passed over: ")
    # Training goes on from 1, comes to 2 again, and that one is whole.
    save(tmp_path, [2], start=1)
    load(tmp_path, 2)


def test_what_was_killed_before_its_manifest_does_not_count(tmp_path):
    save(tmp_path, [1, 2])
    (tmp_path / "2" / MANIFEST).unlink()
    assert saved_steps(tmp_path) == [1]
    load(tmp_path, 1)


def test_a_state_of_another_model_is_refused_by_the_names_of_its_arrays(tmp_path):
    save(tmp_path, [1])
    other = state_of(1, shape=(3, 6))
    with pytest.raises(UserError, match=r"params/net/kernel is float32\[3, 5\] in the checkpoint and float32\[3, 6\]"):
        restore(tmp_path, template_of(other))
    with pytest.raises(UserError, match=r"params/net/kernel is float32\[3, 5\] in the checkpoint and bfloat16\[3, 5\]"):
        restore(tmp_path, template_of(state_of(1, dtype=jnp.bfloat16)))
    fewer = other.replace(params={"net": other.params["net"]})
    with pytest.raises(UserError, match=r"params/count is int32\[\] in the checkpoint and absent in the model"):
        restore(tmp_path, template_of(fewer))


@pytest.mark.parametrize("limit", [0, 100, 2_000])
def test_a_write_that_fails_is_said_and_never_counted(tmp_path, limit, capfd, caplog):
    """A limit on the size of files stands for a full disk: both make the background write fail."""
    save(tmp_path, [1])
    capfd.readouterr()
    said = []
    checkpoints = Checkpoints(tmp_path, start=1, say=said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        checkpoints.save(2, state_of(2))
        with pytest.raises(UserError, match=r"could not be written .*; the newest whole one is of step 1"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved_steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    checkpoints.save(3, state_of(3))
    checkpoints.wait()
    checkpoints.close()
    load(tmp_path, 3)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_a_kill_kept_from_being_removed_goes_with_the_next_save(tmp_path):
    save(tmp_path, [1, 2, 3, 4], keep=4)
    save(tmp_path, [4], keep=2, start=4)
    assert saved_steps(tmp_path) == [2, 3, 4]


def test_the_manifest_lists_every_file_and_array(tmp_path):
    save(tmp_path, [1])
    manifest = json.loads((tmp_path / "1" / MANIFEST).read_text())
    assert manifest["arrays"]["params/net/kernel"] == [[3, 5], "float32"]
    files = {p.relative_to(tmp_path / "1").as_posix() for p in (tmp_path / "1").rglob("*") if p.is_file()}
    assert manifest["files"].keys() == files - {MANIFEST}

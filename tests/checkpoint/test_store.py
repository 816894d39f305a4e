"""checkpoint.store: restores equal to the bit, on any mesh; refuses incomplete and other runs."""

from __future__ import annotations

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.store import Store, steps
from flamingo_jax.core import paths

CONFIG = {
    "name": "tiny",
    "steps": 10,
    "optimizer": {"learning_rate": 0.001},
    "mesh": {"data": 1},
    "towers": {"lm": "a"},
    "frozen": {"lm": {"path": "a", "hash": "123"}},
}


def sharding(data, model, *spec):
    mesh = jax.make_mesh(
        (1, data, model), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3
    )
    return NamedSharding(mesh, PartitionSpec(*spec))


def make_state(scale=1.0, rows=8):
    weights = {
        "flamingo/xattn/query": {"w": scale * jnp.arange(rows * 8.0).reshape(rows, 8)},
        "flamingo/new_tokens": {"w": jnp.full((2, 8), scale, jnp.bfloat16)},
    }
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(weights)
    return {
        "trainable": weights,
        "opt_state": opt_state,
        "step": jnp.asarray(int(scale), jnp.int32),
    }


def abstract(state, where=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where or x.sharding), state
    )


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_array_equal(np.asarray(g), np.asarray(e))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the steps 1 to 4 saved, of which 3 and 4 are kept."""
    workdir = tmp_path_factory.mktemp("run")
    with Store(workdir, CONFIG, keep=2) as store:
        for step in range(1, 5):
            assert store.save(step, make_state(step), {"pages": step, "pairs": 2 * step})
    return workdir


def test_newest_and_given_step_come_back_bit_for_bit(saved):
    with Store(saved, CONFIG) as store:
        assert store.latest_step() == 4
        state, positions = store.restore(None, abstract(make_state()))
        assert_equal(state, make_state(4))
        assert positions == {"pages": 4, "pairs": 8}
        assert_equal(store.restore(3, abstract(make_state()))[0], make_state(3))


def test_keep_deletes_the_oldest(saved):
    assert steps(saved) == [3, 4]
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["3", "4"]


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("runs/tiny", CONFIG) as store:
        store.save(1, {"x": jnp.ones(2)}, {})
        store.restore(1, {"x": jax.ShapeDtypeStruct((2,), jnp.float32)})
    assert steps("runs/tiny") == [1]


def test_layout(saved):
    assert sorted(p.name for p in (saved / "checkpoints" / "4").iterdir() if p.is_dir()) == [
        "config",
        "data",
        "state",
    ]
    assert paths.read_json(saved / "config.json") == CONFIG


def test_a_step_that_is_there_is_not_saved_again(saved):
    with Store(saved, CONFIG, keep=2) as store:
        assert not store.save(4, make_state(9), {})
        assert_equal(store.restore(4, abstract(make_state()))[0], make_state(4))


def test_restores_onto_another_mesh(tmp_path):
    """Saved on (data, model) = (2, 4); restored on (4, 2) with other shardings, or one device."""
    state = {"trainable": {"lm": {"w": jnp.arange(64.0).reshape(8, 8)}}, "step": jnp.int32(1)}
    with Store(tmp_path, CONFIG) as store:
        store.save(
            1,
            jax.device_put(
                state, {"trainable": sharding(2, 4, "data", "model"), "step": sharding(2, 4)}
            ),
            {},
        )
        other = sharding(4, 2, "model")
        like = {
            "trainable": abstract(state["trainable"], other),
            "step": abstract(state["step"], sharding(4, 2)),
        }
        got, _ = store.restore(1, like)
        assert got["trainable"]["lm"]["w"].sharding == other
        assert_equal(got, state)
        assert_equal(store.restore(1, abstract(state))[0], state)


def test_restores_in_the_dtype_that_is_asked_for(saved):
    state = make_state(3)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    like["trainable"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state["trainable"]
    )
    with Store(saved, CONFIG) as store:
        got, _ = store.restore(3, like)
    assert_equal(
        got["trainable"], jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["trainable"])
    )


@pytest.mark.parametrize("split", [True, False])
def test_arrays_may_be_donated_once_save_returns(tmp_path, split):
    """The save continues in the background while the step overwrites the same buffers."""
    where = sharding(2, 4, "data", "model") if split else jax.devices()[0]
    x = jax.device_put(jnp.arange(float(1 << 20)).reshape(1024, 1024), where)
    expected = np.array(x)
    step = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)
    with Store(tmp_path, CONFIG) as store:
        store.save(1, {"x": x}, {})
        for _ in range(3):
            x = step(x)
        jax.block_until_ready(x)
        got, _ = store.restore(1, {"x": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})
    np.testing.assert_array_equal(np.asarray(got["x"]), expected)


def test_another_config_is_refused_with_the_fields_named(saved):
    other = {**CONFIG, "optimizer": {"learning_rate": 0.002}, "extra": 1, "steps": 20}
    with pytest.raises(CheckpointError) as error:
        Store(saved, other)
    assert "optimizer.learning_rate: 0.001 -> 0.002\n  extra: absent -> 1\n" in str(error.value)
    assert "\n  steps" not in str(error.value)
    assert paths.read_json(saved / "config.json") == CONFIG  # the refused run did not overwrite it


def test_what_may_differ(saved):
    moved = {"path": "moved", "hash": "123"}
    allowed = {
        **CONFIG,
        "steps": 20,
        "mesh": {"data": 2},
        "towers": {"lm": "moved"},
        "frozen": {"lm": moved},
    }
    Store(saved, allowed).close()
    with pytest.raises(CheckpointError, match=r"frozen\.lm\.hash: '123' -> '456'"):
        Store(saved, {**allowed, "frozen": {"lm": {"path": "moved", "hash": "456"}}})
    with pytest.raises(CheckpointError, match="steps: 10 -> 20"):
        Store(saved, {**CONFIG, "steps": 20}, may_differ=())
    Store(saved, CONFIG).close()  # restores config.json for the other tests


def test_another_structure_is_refused_with_names_of_both_sides(saved):
    state = make_state()
    state["trainable"]["flamingo/resampler"] = {"latents": jnp.zeros((2, 2))}
    del state["trainable"]["flamingo/new_tokens"]
    with Store(saved, CONFIG) as store, pytest.raises(CheckpointError) as error:
        store.restore(None, abstract(state))
    assert "Only in the checkpoint (1): trainable/flamingo/new_tokens/w." in str(error.value)
    assert "Only in the model (1): trainable/flamingo/resampler/latents." in str(error.value)


def test_another_shape_is_refused(saved):
    with (
        Store(saved, CONFIG) as store,
        pytest.raises(CheckpointError, match=r"query/w: got \(8, 8\), expected \(4, 8\)"),
    ):
        store.restore(None, abstract(make_state(rows=4)))


def test_missing_steps_are_clear_errors(saved, tmp_path):
    with Store(tmp_path, CONFIG) as store:
        assert store.latest_step() is None
        with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
            store.restore(None, {})
    with (
        Store(saved, CONFIG) as store,
        pytest.raises(CheckpointError, match=r"of step 1; it holds \[3, 4\]"),
    ):
        store.restore(1, {})


def test_bad_calls(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        Store(tmp_path, CONFIG, keep=0)
    with Store(tmp_path, CONFIG) as store:
        with pytest.raises(CheckpointError, match="zero size"):
            store.save(1, {"x": jnp.zeros((0, 3))}, {})
        with pytest.raises(CheckpointError, match="Two arrays of the tree are named 'a/b'"):
            store.save(1, {"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, {})
    with pytest.raises(paths.PathError, match="Give a writable place"):
        Store("/proc/nowhere", CONFIG)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_a_clear_error(tmp_path, damage):
    state = {"x": jnp.arange(100_000.0)}
    with Store(tmp_path, CONFIG) as store:
        store.save(1, state, {"pages": 1})
        store.wait()
        for file in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*"):
            file.write_bytes(file.read_bytes()[:100]) if damage == "cut" else file.unlink()
        reason = "cut off: got 100 bytes, expected" if damage == "cut" else "missing"
        with pytest.raises(CheckpointError, match=f"1 is damaged: state/.*d/.*: {reason}"):
            store.restore(1, abstract(state))


SAVE_AND_DIE = """
import os, signal, sys
import jax.numpy as jnp
from flamingo_jax.checkpoint.store import Store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

when = sys.argv[2]
store = Store(sys.argv[1], {"name": "killed"})
store.save(1, {"x": jnp.full((1 << 20,), 1.0)}, {"pages": 1})
store.wait()
if when == "before the rename":  # all is written, under a temporary name
    rename = os.rename
    os.rename = lambda a, b, **k: die() if str(b).endswith("/2") else rename(a, b, **k)
store.save(2, {"x": jnp.full((1 << 20,), 2.0)}, {"pages": 2})
if when == "while it writes":
    die()
store.wait()
"""


@pytest.mark.parametrize("when", ["before the rename", "while it writes"])
def test_a_run_killed_while_it_saves_leaves_only_whole_checkpoints(run_program, tmp_path, when):
    run_program("-c", SAVE_AND_DIE, tmp_path, when, status=-signal.SIGKILL)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    if when == "before the rename":
        assert len(left) == 2 and left[1].startswith("2.")  # there are incomplete files
        assert steps(tmp_path) == [1]
    with Store(tmp_path, {"name": "killed"}) as store:
        newest = store.latest_step()
        assert newest in (1, 2)
        state, positions = store.restore(None, {"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)})
        assert positions == {"pages": newest}
        assert np.all(np.asarray(state["x"]) == newest)
        assert store.save(newest + 1, {"x": jnp.full((1 << 20,), 3.0)}, {"pages": 3})
    assert steps(tmp_path)[-1] == newest + 1
    # they are removed
    assert not [p.name for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]


def test_two_errors_of_one_save_are_one_reason(tmp_path, monkeypatch):
    store = Store(tmp_path / "run", {"seed": 1})
    close = store._manager.close

    def fails():
        raise OSError(30, "Read-only file system")

    for name in ("wait_until_finished", "close"):  # of two threads of orbax
        monkeypatch.setattr(store._manager, name, fails)
    with pytest.raises(CheckpointError, match=r"Cannot save to .* Read-only file system"):
        store.close()
    monkeypatch.undo()
    close()

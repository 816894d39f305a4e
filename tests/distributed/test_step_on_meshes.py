"""A training step of the real Flamingo is the same on every mesh, with and without ZeRO-1.

Float32 sums have another order. Sums of up to 1e3 terms then differ by about 1e-6 of the largest
partial sum, so losses and gradients agree to 1e-5 of their size; the size of a gradient is its
largest entry. In AdamW an error e of a gradient moves a weight by at most RATE / EPSILON * e. The
rounding of a weight of size 1 is 1e-7.
"""

import dataclasses
import os
from concurrent import futures

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint.store import Store
from flamingo_jax.core import trees
from tests.conftest import BASE_XLA_FLAGS
from tests.distributed import meshes

ONE = (1, 1, 1)
MESHES = [(1, 2, 4), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
PRECISION = 1e-5


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory, run_program):
    """A function that returns {name: array} of a process with 16 devices on a mesh (1, 1, 16).

    The process runs at the same time as the other tests.
    """
    path = tmp_path_factory.mktemp("sixteen") / "step.npz"
    environment = {"XLA_FLAGS": f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count=16"}
    with futures.ThreadPoolExecutor(1) as executor:
        running = executor.submit(
            run_program,
            "-m",
            "tests.distributed.meshes",
            path,
            1,
            1,
            16,
            environment={**os.environ, **environment},
        )
        yield lambda: running.result() and dict(np.load(path))


def assert_same_step(gradients, weights, metrics, reference):
    """Compares a step with that of another mesh."""
    assert set(metrics) == set(reference.metrics) and set(gradients) == set(
        reference.gradients
    ) == set(weights)
    for name, number in reference.metrics.items():
        np.testing.assert_allclose(metrics[name], number, rtol=PRECISION, atol=1e-7, err_msg=name)
    for path, expected in reference.gradients.items():
        error = PRECISION * np.max(np.abs(expected))
        np.testing.assert_allclose(gradients[path], expected, rtol=0, atol=error, err_msg=path)
        moved = error * meshes.RATE / meshes.EPSILON + 1e-7
        np.testing.assert_allclose(
            weights[path], reference.weights[path], rtol=1e-6, atol=moved, err_msg=path
        )


@pytest.mark.usefixtures("sixteen")
def test_the_step_moves_every_trained_weight_and_no_frozen_one():
    """Equal steps prove something only if all trained weights move."""
    step, state = meshes.step_on(*ONE), meshes.start()
    before = trees.flatten(state.trainable)
    for path, gradient in step.first.gradients.items():
        assert np.max(np.abs(gradient)) > 1e-6, f"{path}: no gradient"
        moved = np.max(np.abs(step.first.weights[path] - before[path]))
        assert moved > 1e-6, f"{path} does not move"
    jax.tree.map(np.testing.assert_array_equal, step.first.state.frozen, state.frozen)
    assert step.first.metrics["gradient_norm"] > 1  # it is clipped


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_step_is_the_same_on_every_mesh(sizes):
    ran = meshes.step_on(*sizes).first
    assert_same_step(ran.gradients, ran.weights, ran.metrics, meshes.step_on(*ONE).first)


def test_what_is_split_over_chips_changes_no_result():
    """Without ZeRO-1 and without sequence parallelism the step is the same."""
    ran = meshes.step_on(1, 2, 4, zero=False, sequence_parallel=False).first
    assert_same_step(ran.gradients, ran.weights, ran.metrics, meshes.step_on(1, 2, 4).first)


def in_chunks(num_shards):
    """Returns the same rows in two chunks, which are laid out as data shards are."""
    made = meshes.batches(2 * num_shards)
    return {name: dataclasses.replace(batch, chunks=2) for name, batch in made.items()}


def test_a_step_in_chunks_is_the_same():
    """Each of the four data shards has two rows of a page in a chunk, and one of a pair."""
    step = meshes.step_on(2, 2, 2, made=in_chunks)
    ran = step.first
    assert_same_step(ran.gradients, ran.weights, ran.metrics, meshes.step_on(*ONE).first)
    whole = meshes.step_on(2, 2, 2).first.gradients
    assert any(np.any(leaf != whole[path]) for path, leaf in ran.gradients.items())


def part(array):
    """Returns the fraction of an array that is on one device."""
    return array.addressable_shards[0].data.size / array.size


def test_zero_splits_the_optimizer_over_data_and_nothing_else():
    """On (1, 2, 4) a chip keeps half of its model shard of a float32 weight.

    Weights that the model axis does not split in the layout are split over both axes.
    """
    state = meshes.step_on(1, 2, 4).first.state
    whole = meshes.step_on(1, 2, 4, zero=False, sequence_parallel=False).first.state
    _, adam, *_ = state.opt_state[1]
    for kept in (state.trainable, adam.mu, adam.nu):
        for path, leaf in trees.flatten(kept).items():
            if leaf.size >= 200:
                assert part(leaf) == 1 / 8, f"{path} {leaf.shape}: {part(leaf)} of it on each chip"
            assert leaf.dtype == np.float32
    for path, leaf in trees.flatten(whole.trainable).items():
        split = path.startswith("flamingo/xattn") and path.rpartition("/")[2] == "w"
        assert part(leaf) == (1 / 4 if split else 1), path
    layout = meshes.step_on(1, 2, 4).layout
    for sharding in jax.tree.leaves(layout.gathered) + jax.tree.leaves(layout.shardings.frozen):
        assert "data" not in jax.tree.leaves(tuple(sharding.spec)), (
            "a weight that is computed with is split over data"
        )
    leaves = jax.tree.leaves((state.trainable, state.opt_state))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held <= 0.14 * sum(leaf.nbytes for leaf in leaves)


def test_a_run_goes_on_from_its_checkpoint_on_other_meshes(tmp_path):
    """An update on each of (1, 2, 4), (1, 8, 1), (1, 1, 1) equals three updates on one device.

    A checkpoint is read exactly as it was saved.
    """
    state, expected = meshes.start(), meshes.start()
    for number, sizes in enumerate([(1, 2, 4), (1, 8, 1), ONE], start=1):
        step = meshes.step_on(*sizes)
        if number > 1:
            with Store(tmp_path, {"name": "moves"}) as store:
                restored, positions = store.restore(None, step.layout.abstract.saved())
            jax.tree.map(np.testing.assert_array_equal, restored, saved)
            assert positions == {"pages": number - 1}
            placed = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding, restored))
            assert placed == jax.tree.leaves(step.layout.shardings.saved())
            state = type(state)(**restored, frozen=meshes.start().frozen)
        ran = step.run(state)
        reference = meshes.step_on(*ONE).run(expected)
        assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)
        saved = jax.tree.map(np.asarray, ran.state.saved())
        expected = jax.tree.map(np.asarray, reference.state)
        with Store(tmp_path, {"name": "moves"}) as store:
            store.save(number, ran.state.saved(), {"pages": number})
    assert int(saved["step"]) == 3


def test_a_step_is_the_same_over_sixteen_chips_of_one_model_group(sixteen):
    """One dataset has 8 rows, fewer than chips, so its tokens are split by length.

    The 16 devices are in another process.
    """
    parts = {}
    for name, array in sixteen().items():
        of, _, path = name.partition(":")
        parts.setdefault(of, {})[path] = array
    initial = trees.flatten(meshes.start().params())
    for path, leaf in initial.items():
        np.testing.assert_array_equal(parts["initial"][path], leaf, err_msg=path)
    assert_same_step(
        parts["gradients"], parts["weights"], parts["metrics"], meshes.step_on(*ONE).first
    )


@pytest.mark.parametrize(
    ("sums", "frozen"), [("reduce_scatter", "compute"), ("all_to_all", "int8")]
)
def test_a_step_in_two_halves_of_the_rows_is_the_same(sums, frozen):
    """16 rows of a page are two for each of eight chips; 8 rows of a pair are computed whole."""
    reference = meshes.step_on(1, 2, 4, frozen=frozen)
    start = reference.initial()
    ran = meshes.step_on(1, 2, 4, frozen=frozen, halves=True, sums=sums).run(start)
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference.run(start))

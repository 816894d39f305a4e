"""Collectives of known size: kind, mesh axis, dimensions of the torus, bytes and time are exact."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax.planning import collectives, hlo


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("[4,2]<=[2,2,2]T(1,2,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=4,'b'=2] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=4,'b'=2] {'a':(2)2,'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("round and round", None),
        ("{{0,1},{2}}", None),
    ],
)
def test_notations_of_groups(text, expected):
    if expected is None:
        with pytest.raises(hlo.HloError):
            collectives.device_groups(text, 8)
    else:
        found = {frozenset(group) for group in collectives.device_groups(text, 8).tolist()}
        assert found == {frozenset(group) for group in expected}


# 1024 x 1024 bfloat16 are 2 MiB. A v4 axis carries 90 GB/s. Model groups span the x-y plane, data
# groups span z.
SIZE = 1024 * 1024 * 2
CASES = {
    "all-gather": (
        lambda x: jax.lax.all_gather(x, "model", tiled=True),
        (P("model"), P()),
        ("all-gather", "model", [0, 1], SIZE * 3 // 4),
    ),
    "all-reduce": (
        lambda x: jax.lax.psum(x, "data"),
        (P(), P()),
        ("all-reduce", "data", [2], 2 * SIZE * 3 // 4),
    ),
    "all-reduce of two axes": (
        lambda x: jax.lax.psum(x, ("data", "model")),
        (P(), P()),
        ("all-reduce", "data+model", [0, 1, 2], 2 * SIZE * 15 // 16),
    ),
    "reduce-scatter": (
        lambda x: jax.lax.psum_scatter(x, "model", tiled=True),
        (P(), P("model")),
        ("reduce-scatter", "model", [0, 1], SIZE * 3 // 4),
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, "model", 0, 1, tiled=True),
        (P(), P()),
        ("all-to-all", "model", [0, 1], SIZE * 3 // 4),
    ),
}


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("case", list(CASES))
def test_bytes_axis_and_torus_of_each_kind(small_slice, case):
    function, (in_spec, out_spec), (kind, axis, torus, num_bytes) = CASES[case]
    x = small_slice.abstract((1024, 1024), *in_spec)
    found = small_slice.mapped(lambda x: function(x) * 2, (in_spec,), out_spec, x)
    ((row, sums),) = found.rows.items()
    assert (row.kind, row.axis, list(row.torus), row.overlapped) == (kind, axis, torus, False)
    assert (sums.num_bytes, sums.count) == (num_bytes, 1)
    assert sums.seconds == sums.exposed == pytest.approx(num_bytes / (90e9 * len(torus)))


@pytest.mark.tpu_compiler
def test_permute_is_counted_link_by_link(cube):
    def shift(x, to):
        return jax.lax.ppermute(x, "data", [(i, (i + to) % 4) for i in range(4)])

    spec = P("data")
    x = cube.abstract((4096, 1024), *spec)
    one = cube.mapped(lambda x: shift(x * 2, 1) * 2, (spec,), spec, x)
    ((row, sums),) = one.rows.items()
    assert row == ("collective-permute", "data", True, (2,))  # kind, axis, overlapped, torus
    # z is a ring of 4: every chip sends 2 MiB to its neighbour, over one link, one way. No compute
    # overlaps it.
    assert sums.num_bytes == SIZE
    assert (sums.seconds, sums.exposed) == pytest.approx((SIZE / 45e9, SIZE / 45e9))
    # To the next but one chip: each link carries the arrays of two chips.
    two = cube.mapped(lambda x: shift(x * 2, 2) * 2, (spec,), spec, x)
    assert next(iter(two.rows.values())).seconds == pytest.approx(2 * SIZE / 45e9)


@pytest.mark.tpu_compiler
def test_positions_are_those_of_the_device_assignment(small_slice):
    network = collectives.Network(small_slice.mesh, small_slice.topology)
    for text, axis, torus in (
        ("{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", "model", (0, 1)),
        ("mesh['x'=4,'y'=4] {'x'}", "data", (2,)),
        ("[8,2]<=[16]", "model", (1,)),  # half of the model axis
    ):
        line = f"  ROOT %g = bf16[64]{{0}} all-gather(%p), replica_groups={text}, dimensions={{0}}"
        module = hlo.parse(
            f"ENTRY %m (p: bf16[8]) -> bf16[64] {{\n  %p = bf16[8]{{0}} parameter(0)\n{line}\n}}"
        )
        entry = module.computations["m"]
        found = network.collective(entry, entry.root, "all-gather")
        assert (found.axis, found.torus) == (axis, torus)


def test_iota_without_permutation_is_in_order():
    assert np.array_equal(collectives.device_groups("[1,4]<=[4]", 4), [[0, 1, 2, 3]])

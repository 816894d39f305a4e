"""Collectives of known size: kind, mesh axis, dimensions of the torus, bytes and time are exact."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from flamingo_jax.planning import collectives, hlo, topologies


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


# 1024 x 1024 bfloat16 are 2 MiB. A link of v4 carries 45 GB/s one way. The slice of 2x2x4 chips has
# no rings. Model groups span the x-y plane, with two links at each corner, and data groups span z,
# with one link at the ends of the line.
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
    # Half of what a chip sends to all others passes through another chip of the plane.
    rate = 67.5e9 if kind == "all-to-all" else 45e9 * len(torus)
    assert sums.seconds == sums.exposed == pytest.approx(num_bytes / rate)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device with a place on the torus; needs no libtpu."""

    coords: tuple[int, ...]
    slice_index: int = 0


def network_of(name):
    """The network of a slice whose devices have the order of their coordinates."""
    topology = topologies.describe(name)
    shape = (*topology.shape, 1)[:3]
    chips = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        chips[place] = Chip(place)
    axis_types = (AxisType.Auto,) * 3
    return collectives.Network(Mesh(chips, tuple("xyz"), axis_types=axis_types), topology)


def groups_of(name, block, stride=(1, 1, 1)):
    """The text of groups: blocks of chips along each dimension, with a distance between them."""
    shape = (*topologies.describe(name).shape, 1)[:3]
    ids = np.arange(np.prod(shape)).reshape(shape)
    inside = [b * s for b, s in zip(block, stride, strict=True)]
    cut = ids.reshape(
        [
            n
            for total, part, s in zip(shape, inside, stride, strict=True)
            for n in (total // part, part // s, s)
        ]
    )
    groups = cut.transpose(0, 3, 6, 2, 5, 8, 1, 4, 7).reshape(-1, np.prod(block))
    return "{" + ",".join("{" + ",".join(map(str, group)) + "}" for group in groups) + "}"


def gather(network, text, rows=64, kind="all-gather"):
    """The cost of an all-gather, or another collective, of 128 bytes for each row."""
    line = f"  ROOT %g = bf16[64]{{0}} {kind}(%p), replica_groups={text}, dimensions={{0}}"
    head = (
        f"ENTRY %m (p: bf16[{rows},64]) -> bf16[64] {{\n  %p = bf16[{rows},64]{{1,0}} parameter(0)"
    )
    entry = hlo.parse(f"{head}\n{line}\n}}").computations["m"]
    return network.collective(entry, entry.root, kind)


@pytest.mark.parametrize(
    ("block", "pairs"),
    [((2, 1, 1), 1), ((2, 2, 1), 2), ((2, 2, 2), 4), ((4, 1, 1), 4), ((4, 2, 2), 16)],
)
def test_an_all_to_all_is_counted_on_its_most_used_link(block, pairs):
    """In a line of four chips, both chips of a half send to both of the other over one link."""
    sent = gather(network_of("v4:8x8x8"), groups_of("v4:8x8x8", block), kind="all-to-all")
    part = 64 * 128 / np.prod(block)
    assert sent.seconds == pytest.approx(pairs * part / 45e9)
    assert sent.num_bytes == 64 * 128 - part


# (slice, block of a group, distance between its chips, links of the least connected chip). By hand:
# for each dimension, two links on a ring and one at the end of a line, over the groups on a link.
ALONE = (1, 1, 1)
STRICT = {
    "v4 ring": ("v4:4x4x8", (1, 1, 8), ALONE, 2),
    "v4 ring of four": ("v4:4x4x4", (4, 1, 1), ALONE, 2),
    "v4 line, part of a ring": ("v4:4x4x8", (1, 1, 4), ALONE, 1),
    "v4 line of a small slice": ("v4:2x2x4", (1, 1, 4), ALONE, 1),
    "v4 pair": ("v4:4x4x4", (1, 2, 1), ALONE, 1),
    "v4 plane of rings": ("v4:4x4x4", (4, 4, 1), ALONE, 4),
    "v4 plane, a ring and a pair": ("v4:8x12x16", (8, 2, 1), ALONE, 2 + 1),
    "v4 block of 2x2x2": ("v4:4x4x4", (2, 2, 2), ALONE, 3),
    "v4 block of 4x2x2": ("v4:8x12x16", (4, 2, 2), ALONE, 3),
    # {0, 2}, {1, 3}: the link from 1 to 2 is in both.
    "v4 pairs, interleaved": ("v4:2x2x4", (1, 1, 2), (1, 1, 2), 1 / 2),
    # {0, 2, 4, 6}, {1, 3, 5, 7}: each link is in both rings.
    "v4 rings, interleaved": ("v4:4x4x8", (1, 1, 4), (1, 1, 2), 2 / 2),
    # {0, 4}, {1, 5}, {2, 6}, {3, 7} on a ring of 8: the link from 3 to 4 is in all.
    "v4 opposite pairs": ("v4:4x4x8", (1, 1, 2), (1, 1, 4), 1 / 4),
    # The data groups of the 80B: opposite pairs along x, interleaved pairs along y, and along z two
    # interleaved rings.
    "v4 groups between blocks": ("v4:8x12x16", (2, 2, 8), (4, 2, 2), 1 / 4 + 1 / 2 + 2 / 2),
    # Its replica groups: {0, 4, 8} to {3, 7, 11} are four rings.
    "v4 rings of three, interleaved": ("v4:8x12x16", (1, 3, 1), (1, 4, 1), 2 / 4),
    "v4 all": ("v4:4x4x4", (4, 4, 4), ALONE, 6),
    "v5p ring": ("v5p:4x4x8", (1, 1, 8), ALONE, 2),
    "v5p line of a small slice": ("v5p:2x4x4", (1, 4, 1), ALONE, 1),
    "v5p block of 2x2x2": ("v5p:4x4x4", (2, 2, 2), ALONE, 3),
    "v5e ring": ("v5e:8x16", (1, 16, 1), ALONE, 2),
    "v5e line": ("v5e:8x16", (8, 1, 1), ALONE, 1),
    "v5e all of a corner without rings": ("v5e:4x4", (4, 4, 1), ALONE, 2),
    "v6e rings": ("v6e:16x16", (16, 16, 1), ALONE, 4),
    "v6e pair": ("v6e:2x4", (2, 1, 1), ALONE, 1),
    "v6e half of a ring": ("v6e:16x16", (1, 8, 1), ALONE, 1),
}
LINK = {"v4": 45e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9}


@pytest.mark.parametrize("case", list(STRICT))
def test_rate_is_that_of_the_least_connected_chip(case):
    name, block, stride, links = STRICT[case]
    found = gather(network_of(name), groups_of(name, block, stride))
    received = 64 * 64 * 2 * (np.prod(block) - 1)
    assert found.num_bytes == received
    assert found.seconds == pytest.approx(received / (links * LINK[name.partition(":")[0]]))
    assert found.torus == tuple(i for i in range(3) if block[i] > 1)


@pytest.mark.parametrize(
    ("name", "groups", "links"),
    [
        # The line from 0 to 3 has the link of the pair 1, 2. The other groups are faster.
        ("v5e:2x4", "{{0,3},{1,2},{4,5},{6,7}}", 1 / 2),
        ("v5e:2x4", "{{0,1},{2,3},{4,5},{6,7}}", 1),
        # Two diagonals have the same four links, and each chip has two of them.
        ("v5e:2x2", "{{0,3},{1,2}}", 2 / 2),
        # The first and the last chip of a ring are neighbours.
        ("v4:4x4x4", "{{0,3},{1,2}}", 1),
        ("v5e:2x4", "{{0,1},{2,3},{4,7},{5,6}}", 1 / 2),
    ],
)
def test_slowest_group_counts(name, groups, links):
    found = gather(network_of(name), groups)
    link = LINK[name.partition(":")[0]]
    assert found.seconds == pytest.approx(64 * 64 * 2 / (links * link))


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

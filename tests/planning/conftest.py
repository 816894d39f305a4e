"""Small slices to compile for; libtpu compiles without a TPU."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.planning import cost, topologies


class Slice:
    """A slice with a (replica, data, model) mesh: model along x and y, data along z."""

    def __init__(self, name):
        self.topology = topologies.describe(name)
        devices = topologies.devices(self.topology)
        by_place = {tuple(device.coords): device for device in devices}
        shape = self.topology.shape
        planes = [
            [by_place[x, y, z] for x in range(shape[0]) for y in range(shape[1])]
            for z in range(shape[2])
        ]
        self.mesh = Mesh(
            np.asarray([planes]), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3
        )

    def abstract(self, shape, *partition, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(self.mesh, PartitionSpec(*partition))
        )

    def compile(self, function, *args, **options):
        with topologies.uncached():
            return jax.jit(function, **options).lower(*args).compile()

    def mapped(self, function, in_specs, out_specs, *args):
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return self.analyse(self.compile(mapped, *args))

    def analyse(self, compiled):
        return cost.analyse(compiled.as_text(), self.mesh, self.topology)


@pytest.fixture(scope="session")
def small_slice():
    """v4:2x2x4: 16 chips, no rings; the mesh is (1, 4, 4)."""
    return Slice("v4:2x2x4")


@pytest.fixture(scope="session")
def cube():
    """v4:4x4x4: 64 chips, all rings; the mesh is (1, 4, 16)."""
    return Slice("v4:4x4x4")


@pytest.fixture
def plan_program(run_program, tmp_path):
    """Runs flamingo_jax.plan as a program, whose memory is free at its end; returns its JSON.

    The plan of the whole 80B takes up to 16 GiB.
    """

    def plan(name, topology, *flags, argument=""):
        file = tmp_path / "plan.json"
        run_program(
            *("-m", "flamingo_jax.plan", f"--config=configs/{name}.py{argument}"),
            *(f"--topology={topology}", f"--json={file}", *flags),
            timeout=3600,
        )
        return json.loads(file.read_text())

    return plan

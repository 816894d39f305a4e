"""Several slices: what the network between them carries, and at which rate it is counted."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from flamingo_jax.core.config import ConfigError
from flamingo_jax.planning import cost, flops, planner, program, summary, topologies
from tests.planning.test_collectives import Chip
from tests.planning.test_plan import config

# Bytes per second of a chip. v5p: 50 Gbit/s. v5e: two cards of 100 Gbit/s for 8 chips; v6e: four of
# 200. v4: 81 Tbit/s for 6144 chips.
NETWORK = {"v4": 81e12 / 8 / 6144, "v5p": 6.25e9, "v5e": 3.125e9, "v6e": 12.5e9}


def test_rates_of_the_network():
    rates = {name: kind.network_bandwidth for name, kind in topologies.KINDS.items()}
    assert rates == pytest.approx(NETWORK)
    assert all(rate < topologies.KINDS[name].link_bandwidth / 7 for name, rate in rates.items())


TRANSFER = (
    'frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",'
    '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}'
)
TEXT = f"""ENTRY %m (x: bf16[1000,1000], y: bf16[8]) -> bf16[8] {{
  %x = bf16[1000,1000]{{1,0}} parameter(0)
  %y = bf16[8]{{0}} parameter(1)
  %token = token[] after-all()
  %s = (bf16[1000,1000]{{1,0}}, u32[], token[]) send(%x, %token), channel_id=2, {TRANSFER}
  %r = (bf16[1000,1000]{{1,0}}, u32[], token[]) recv(%token), channel_id=1, {TRANSFER}
  %a = bf16[8]{{0}} fusion(%y), kind=kLoop, backend_config={{"estimated_cycles":"OVERLAPPING"}}
  %sd = token[] send-done(%s), channel_id=2
  %rd = (bf16[1000,1000]{{1,0}}, token[]) recv-done(%r), channel_id=1
  ROOT %b = bf16[8]{{0}} fusion(%a), kind=kLoop, backend_config={{"estimated_cycles":"1050"}}
}}
"""


@pytest.mark.tpu_compiler
def test_what_the_compiler_has_not_is_an_error_of_the_mesh(monkeypatch):
    """As of the 80B on two slices v4:8x12x16, with three replicas in each."""

    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: 3 sized replica_groups. \n")

    refused = program.Program(Refused(), flops.Needed({}, 0, 0), {}, ())
    monkeypatch.setattr(planner.program_lib, "train", lambda *args: refused)
    with pytest.raises(ConfigError, match=r"2 slice\(s\) v4:2x2x1 .*'replica': 4.* 3 sized"):
        planner.make_plan(config("language_model", replica=4, data=2, slices=2), "v4:2x2x1")


@pytest.mark.parametrize(
    ("num_slices", "received"), [(2, 2e6), (4, 2 * 3 / 4 * 2e6)], ids=["two", "four"]
)
@pytest.mark.parametrize("overlapping", [0, 210_000, 10_500_000])
def test_a_transfer_takes_its_share_of_the_network(num_slices, received, overlapping):
    topology = topologies.describe("v4:2x2x1", num_slices)
    chips = np.empty((num_slices, 4, 1), dtype=object)
    for index, number, _ in np.ndindex(chips.shape):
        chips[index, number, 0] = Chip((number // 2, number % 2, 0), index)
    mesh = Mesh(chips, ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    found = cost.analyse(TEXT.replace("OVERLAPPING", str(overlapping)), mesh, topology)
    ((row, sums),) = found.rows.items()
    assert row == ("all-reduce", "replica", True, ())  # kind, axis, overlapped, torus
    seconds, hidden = received / NETWORK["v4"], overlapping / 1.05e9
    assert (sums.count, sums.num_bytes) == (1, received)
    assert sums.seconds == pytest.approx(seconds)
    assert sums.exposed == pytest.approx(max(0.0, seconds - hidden))


@pytest.mark.tpu_compiler
def test_gradients_cross_the_network_once_and_nothing_else_does():
    """Two datasets: each chip sends its part of their sum, a quarter, in float32."""
    described = config("language_model", replica=2, data=4, slices=2)
    (dataset,) = described.data.datasets.values()
    data = {
        name: dataclasses.replace(dataset, batch_size=size)
        for name, size in (("few", 8), ("text", 16))
    }
    described = dataclasses.replace(
        described, data=dataclasses.replace(described.data, datasets=data)
    )
    plan = planner.make_plan(described, "v4:2x2x1")
    found = summary.to_json(plan)
    assert (found["topology"], found["slices"], found["chips"]) == ("v4:2x2x1", 2, 8)
    assert found["cloud_name"] == "v4-8"  # of each slice
    network = [row for row in found["collectives"] if not row["torus_axes"]]
    assert {row["axis"] for row in network} == {"replica"}
    sent = sum(row["bytes"] for row in network)
    gradient = 4 * found["parameters"]["total"] / 4
    # Weights that 4 does not divide are not split, and a few numbers of the loss are added.
    assert gradient <= sent < 1.02 * gradient
    assert sum(row["seconds"] for row in network) == pytest.approx(sent / NETWORK["v4"])
    # Inside of a slice, collectives are along data.
    assert {row["axis"] for row in found["collectives"] if row["torus_axes"]} == {"data"}
    text = summary.to_text(plan)
    assert "2 slices v4:2x2x1 (v4-8), 8 chips" in text and "  network" in text

"""The table of TPU slices against Cloud's names and the compiler's own topologies."""

import dataclasses
import math

import pytest
from jax.experimental import topologies as jax_topologies

from flamingo_jax.core.config import ConfigError
from flamingo_jax.planning import topologies


@pytest.mark.parametrize(
    ("name", "cloud", "chips"),
    [
        ("v4:2x2x1", "v4-8", 4),  # v4 and v5p count TensorCores, two per chip
        ("v4:4x4x4", "v4-128", 64),
        ("v4:8x12x16", "v4-3072", 1536),
        ("v4:16x16x16", "v4-8192", 4096),
        ("v5p:2x2x1", "v5p-8", 4),
        ("v5p:4x4x8", "v5p-256", 128),
        ("v5p:16x16x24", "v5p-12288", 6144),
        ("v5e:1x1", "v5litepod-1", 1),  # v5e and v6e count chips
        ("v5e:16x16", "v5litepod-256", 256),
        ("v6e:2x4", "v6e-8", 8),
        ("v6e:16x16", "v6e-256", 256),
    ],
)
def test_cloud_names(name, cloud, chips):
    topology = topologies.describe(name)
    assert (topology.name, topology.cloud_name, topology.num_chips) == (name, cloud, chips)


def test_every_row_can_be_described_and_fits_its_pod():
    rows = [topologies.describe(name) for name in topologies.names()]
    assert len({row.name for row in rows}) == len(rows) == 92
    largest = {
        kind: max(row.num_chips for row in rows if row.kind.name == kind)
        for kind in topologies.KINDS
    }
    assert largest == {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256}
    assert all(list(row.shape) == sorted(row.shape) for row in rows if row.num_chips > 16)


def test_peak_is_clock_times_arithmetic_units():
    # TensorCores x MXUs x side x side x 2, from Cloud's documentation of each kind; for v6e see the
    # docstring of `topologies`.
    per_cycle = {
        "v4": 2 * 4 * 128**2 * 2,
        "v5e": 4 * 128**2 * 2,
        "v5p": 2 * 4 * 128**2 * 2,
        "v6e": 4 * 256**2 * 2,
    }
    for name, kind in topologies.KINDS.items():
        assert math.isclose(kind.clock_hz * per_cycle[name], kind.peak_flops, rel_tol=2e-3)


@pytest.mark.parametrize(
    ("name", "wraps"),
    [
        ("v4:2x2x4", (False, False, False)),  # below a cube of 4 there are no optical links
        ("v4:8x12x16", (True, True, True)),
        ("v5e:8x16", (False, True)),  # only the full length of a pod is a ring
        ("v6e:16x16", (True, True)),
    ],
)
def test_which_dimensions_are_rings(name, wraps):
    assert topologies.describe(name).wraps == wraps


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v4:8x12x17", "v4:8x12x16"),
        ("v4:16x12x8", "v4:8x12x16"),
        ("v5e:4x5", "v5e:4x4"),
        ("v4", "v4:"),
        ("v9:2x2", "v"),
        ("v5litepod-16", "v5"),
    ],
)
def test_unknown_slice_is_one_message_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError) as error:
        topologies.describe(name)
    assert repr(name) in str(error.value) and nearest in str(error.value).partition("nearest")[2]
    assert "\n" not in str(error.value)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    "name", ["v4:2x2x4", "v4:8x12x16", "v5p:2x2x2", "v5e:1x1", "v5e:2x4", "v5e:4x8", "v6e:4x4"]
)
def test_devices_lie_on_the_torus(name):
    topology = topologies.describe(name)
    devices = topologies.devices(topology)
    assert len(devices) == topology.num_devices == len({tuple(device.coords) for device in devices})
    spans = [max(device.coords[i] for device in devices) + 1 for i in range(len(topology.shape))]
    assert tuple(spans) == topology.shape
    kinds = {"v4": "TPU v4", "v5p": "TPU v5", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite"}
    assert {device.device_kind for device in devices} == {kinds[topology.kind.name]}


def test_without_the_compiler_the_error_names_the_extra(monkeypatch):
    def refuse(**kwargs):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(jax_topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'flamingo_jax\[tpu\]'"):
        topologies.devices(topologies.describe("v4:2x2x1"))


def test_kinds_are_complete():
    for kind in topologies.KINDS.values():
        values = dataclasses.asdict(kind)
        assert all(value for name, value in values.items() if name != "config_name")

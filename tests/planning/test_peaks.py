"""Peaks of devices by their names, and what a run of known devices reports."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from flamingo_jax.core.config import from_dict
from flamingo_jax.data.to_device import to_device
from flamingo_jax.planning import flops, peaks
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.datasets_per_step import merge
from flamingo_jax.training.state import TrainState
from tests.training import small


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peak_of_a_device(kind, tera):
    assert peaks.peak_of(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA L40S", "NVIDIA", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v3", ""]
)
def test_other_devices_have_no_known_peak(kind):
    assert peaks.peak_of(kind) is None


@pytest.mark.parametrize("mixing", ["accumulate", "merged"])
def test_a_run_of_full_batches_reports_what_a_plan_counts(monkeypatch, mixing):
    """Two devices of a known kind; a merged batch needs what its parts need."""
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    config = dataclasses.replace(
        from_dict(TrainConfig, small.get_config("flamingo").to_dict()), mixing=mixing
    ).resolved(small.VOCABULARY)
    run = run_lib.compile(config, mesh)
    assert peaks.utilisation(run) is None  # a CPU
    monkeypatch.setitem(peaks.PEAK_FLOPS, "cpu", 1e9)
    rate = peaks.utilisation(run)
    datasets, written = config.data.datasets, []
    batches = {
        name: small.batch(data.batch_size, data.length, data.num_visuals, seed=0, num_shards=2)
        for name, data in datasets.items()
    }
    if mixing == "merged":
        batches = {"merged": merge(batches, dict.fromkeys(datasets, 1.0), num_shards=2)}
    batches = {name: to_device(rows, mesh) for name, rows in batches.items()}
    rate.counted(lambda state, batches, rng: (state, {}))(
        TrainState(jnp.zeros(()), {}, {}, ()), batches, jax.random.key(0)
    )
    rate.added(lambda step, numbers: written.append(numbers))(1, {"step_seconds": 0.25})
    fills = {name: flops.Fill.full(data, 2) for name, data in datasets.items()}
    needed = flops.of_update(config, run.objective, fills).total
    # rows of a merged batch count with their mean length, and attention grows with its square
    bound = 1e-3 if mixing == "accumulate" else 0.02
    assert written[0]["mfu"] == pytest.approx(needed / 0.25 / 2e9, rel=bound)

"""The peak of a device by its name, and how much of it a run uses.

The numbers are dense bfloat16 FLOP per second of one JAX device, without sparsity. Sources: the
Cloud TPU documentation (`planning.topologies`), and NVIDIA's data sheets of the A100, H100, H200
and L4, which print the number with sparsity, twice the dense one (H100 SXM: 1,979 TFLOP/s).
"""

from __future__ import annotations

from collections.abc import Mapping

from flamingo_jax.planning import flops, topologies
from flamingo_jax.sharding.mesh import num_batch_shards
from flamingo_jax.training.run import Run
from flamingo_jax.training.utilisation import BatchContent, Utilisation

# By the beginning of `jax.Device.device_kind`; the longest one that fits counts.
PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA A100": 3.12e14,
    "NVIDIA GH200": 9.894e14,
    "NVIDIA H100": 9.894e14,  # SXM, whose kind is "NVIDIA H100 80GB HBM3"
    "NVIDIA H100 NVL": 8.355e14,
    "NVIDIA H100 PCIe": 7.56e14,
    "NVIDIA H200": 9.894e14,
    "NVIDIA H200 NVL": 8.355e14,
    "NVIDIA L4": 1.21e14,
    **{
        kind: topologies.KINDS[name].peak_flops
        for kind, name in {
            "TPU v4": "v4",
            "TPU v5 lite": "v5e",
            "TPU v5": "v5p",
            "TPU v6 lite": "v6e",
        }.items()
    },
}


def peak_of(device_kind: str) -> float | None:
    """Returns the peak of a device in bfloat16, or None if it is not known."""
    words = device_kind.split()
    if "MIG" in words:  # a part of a GPU, under the name of the whole
        return None
    for count in range(len(words), 0, -1):
        if (peak := PEAK_FLOPS.get(" ".join(words[:count]).partition("-")[0])) is not None:
            return peak
    return None


def utilisation(run: Run) -> Utilisation | None:
    """Returns what adds "mfu" to the reports of a run; None where the peak is not known.

    In a clip of some frames each visual input counts with the mean number of frames, rounded.
    """
    peak = peak_of(run.mesh.devices.flat[0].device_kind)
    if peak is None:
        return None
    of_update = flops.counter(run.config, run.objective)
    shards = num_batch_shards(run.mesh)
    datasets = run.config.data.datasets
    # Traces the encoder now, which is kept, and not between two updates.
    of_update({name: flops.Fill.full(dataset, shards) for name, dataset in datasets.items()})

    def needed(contents: Mapping[str, BatchContent]) -> float:
        return of_update({name: _fill(content) for name, content in contents.items()}).total

    return Utilisation(needed, peak * run.mesh.size, run.mesh)


def _fill(content: BatchContent) -> flops.Fill:
    rows, tokens, images, frames = content
    return flops.Fill(rows, tokens / rows, images, max(1, round(frames / max(images, 1))))

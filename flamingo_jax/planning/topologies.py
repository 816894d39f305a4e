"""TPU slices by name: the numbers of their chips, their shapes, and abstract devices.

    "v4:8x12x16" --describe--> Topology (numbers only)
                 --devices--> 1536 abstract devices, for `Mesh` and ahead-of-time compilation

Several equal slices are connected by the network of the data centre, through the network cards of
their hosts.

Sources: the Cloud TPU documentation of each kind (peak, memory, interconnect, shapes, names). For
v4, the numbers that all plans of this project use (1.05 GHz; 45 GB/s one way per link, of 50 GB/s
nominal). The clocks of the other kinds are not published. They follow from peak = clock *
TensorCores * MXUs * side^2 * 2, with the MXUs that the compiler's cycle estimates imply (v6e: four
of 256 x 256, or two at twice the rate).

The network, in bits per second one way: v5p 50e9 per chip; v5e two cards of 100e9 and v6e four of
200e9 for a host of 8 chips (https://cloud.google.com/tpu/docs/v5p, v5e, v6e). Cloud states no rate
for v4. PaLM reports bursts of 81e12 over all hosts of two v4 pods, 6144 chips (Chowdhery et al.
2022).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import itertools
import math
import os
from collections.abc import Iterator
from typing import Any, Literal

import jax
from jax.experimental.compilation_cache import compilation_cache

from flamingo_jax.core.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Kind:
    """One generation of TPU; the numbers are those of a chip.

    Attributes:
      name: for example "v4", as in "v4:2x2x1".
      cloud_name: the first part of the Cloud accelerator type; the number after it counts
        `counted`.
      counted: "cores" (TensorCores) or "chips".
      peak_flops: bfloat16 FLOP/s.
      hbm_bytes, hbm_bandwidth: bytes; bytes per second.
      link_bandwidth: bytes per second, one way, of one link to a neighbour.
      network_bandwidth: bytes per second, one way, of its share of the network between slices.
      num_dimensions: of the torus.
      tensor_cores: per chip.
      devices_per_chip: JAX devices; a megacore is one device of two TensorCores.
      clock_hz: cycles per second; the compiler's estimates count these cycles.
      host: chips of one host along each dimension.
      wraps_at: a dimension is a ring, and not a line, if its size is a multiple of this number (v4,
        v5p: optical links between cubes of 4; v5e, v6e: the full length of a pod).
      config_name: libtpu's name of the megacore configuration; None if the kind has none.
    """

    name: str
    cloud_name: str
    counted: Literal["cores", "chips"]
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    num_dimensions: int
    tensor_cores: int
    clock_hz: float
    wraps_at: int
    devices_per_chip: int = 1
    host: tuple[int, int, int] = (2, 2, 1)
    config_name: str | None = None


_MXU = 128 * 128 * 2  # FLOP per cycle
_GIB = 1 << 30

# A torus of 3 dimensions; the two TensorCores of a chip are one device.
_Kind3D = functools.partial(
    Kind, counted="cores", num_dimensions=3, tensor_cores=2, wraps_at=4, config_name="megacore"
)
_Kind2D = functools.partial(Kind, counted="chips", num_dimensions=2, tensor_cores=1, wraps_at=16)

KINDS = {
    kind.name: kind
    for kind in (
        _Kind3D(
            name="v4",
            cloud_name="v4",
            # 2 cores x 4 MXUs x 128 x 128 x 2 x 1.05 GHz = 275 TFLOP/s
            peak_flops=2.75e14,
            clock_hz=1.05e9,
            hbm_bytes=32 * _GIB,
            hbm_bandwidth=1.2e12,
            link_bandwidth=4.5e10,
            network_bandwidth=81e12 / 8 / 6144,
        ),
        _Kind2D(
            name="v5e",
            cloud_name="v5litepod",
            # 197e12 / (4 MXUs x 128 x 128 x 2) = 1.503 GHz
            peak_flops=1.97e14,
            clock_hz=1.97e14 / (4 * _MXU),
            hbm_bytes=16 * _GIB,
            hbm_bandwidth=8.19e11,
            link_bandwidth=5e10,
            network_bandwidth=2 * 100e9 / 8 / 8,
        ),
        _Kind3D(
            name="v5p",
            cloud_name="v5p",
            # 459e12 / (2 cores x 4 MXUs x 128 x 128 x 2) = 1.751 GHz
            peak_flops=4.59e14,
            clock_hz=4.59e14 / (8 * _MXU),
            hbm_bytes=95 * _GIB,
            hbm_bandwidth=2.765e12,
            link_bandwidth=1e11,
            network_bandwidth=50e9 / 8,
        ),
        _Kind2D(
            name="v6e",
            cloud_name="v6e",
            # 918e12 / (16 x 128 x 128 x 2) = 1.751 GHz
            peak_flops=9.18e14,
            clock_hz=9.18e14 / (16 * _MXU),
            hbm_bytes=32 * _GIB,
            hbm_bandwidth=1.638e12,
            link_bandwidth=1e11,
            network_bandwidth=4 * 200e9 / 8 / 8,
        ),
    )
}

# Slices that are smaller than a cube, and the largest slice.
_SMALL = {"v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"), "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4")}
_LARGEST = {"v4": (16, 4096), "v5p": (24, 6144)}  # longest dimension, chips
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several equal ones.

    Attributes:
      kind: of the chips.
      shape: chips of a slice along each dimension of the torus.
      num_slices: that the network of the data centre connects.
    """

    kind: Kind
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """Kind and shape of a slice, for example "v4:8x12x16"."""
        return f"{self.kind.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Number of chips of all slices."""
        return self.num_slices * math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """Number of JAX devices."""
        return self.num_chips * self.kind.devices_per_chip

    @property
    def cloud_name(self) -> str:
        """The Cloud accelerator type of a slice: "v4-3072", "v5litepod-16"."""
        cores = self.kind.tensor_cores if self.kind.counted == "cores" else 1
        return f"{self.kind.cloud_name}-{math.prod(self.shape) * cores}"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """True for each dimension that is a ring; on v4 and v5p they are all rings or all lines."""
        multiples = tuple(size % self.kind.wraps_at == 0 for size in self.shape)
        return (all(multiples),) * len(multiples) if self.kind.num_dimensions == 3 else multiples


def names() -> Iterator[str]:
    """Yields the names of all slices, kind by kind, the smaller ones first."""
    for kind in KINDS.values():
        if kind.num_dimensions == 2:
            yield from (f"{kind.name}:{shape}" for shape in _FLAT)
            continue
        yield from (f"{kind.name}:{shape}" for shape in _SMALL[kind.name])
        longest, most = _LARGEST[kind.name]
        cubes = itertools.combinations_with_replacement(range(4, longest + 1, 4), 3)
        shapes = sorted(
            (shape for shape in cubes if math.prod(shape) <= most), key=lambda s: (math.prod(s), s)
        )
        yield from (f"{kind.name}:{'x'.join(map(str, shape))}" for shape in shapes)


def describe(name: str, num_slices: int = 1) -> Topology:
    """Returns the slice of this name, or several of them.

    Args:
        name: kind and shape, "v4:8x12x16", with ascending dimensions.
        num_slices: how many.

    Raises:
        ConfigError: there is no such slice. The message names the nearest slices.
    """
    known = _known()
    if name not in known:
        kind, _, shape = name.partition(":")
        of_kind = [other for other in known if other.startswith(f"{kind}:")] or list(known)
        nearest = difflib.get_close_matches(name, of_kind, n=3, cutoff=0)
        if shape.replace("x", "").isdigit() and kind in KINDS:
            chips = math.prod(int(size or 1) for size in shape.split("x"))
            nearest = sorted(of_kind, key=lambda other: abs(known[other].num_chips - chips))[:3]
        raise ConfigError(
            f"There is no TPU slice {name!r}; expected KIND:SHAPE with KIND one of "
            f"{', '.join(KINDS)} and ascending dimensions, as in v4:8x12x16 (Cloud: v4-3072). The "
            f"nearest: {', '.join(f'{n} ({known[n].cloud_name})' for n in nearest)}."
        )
    return dataclasses.replace(known[name], num_slices=num_slices)


@functools.cache
def _known() -> dict[str, Topology]:
    known = {}
    for name in names():
        kind, _, shape = name.partition(":")
        known[name] = Topology(KINDS[kind], tuple(map(int, shape.split("x"))))
    return known


def devices(topology: Topology) -> list[Any]:
    """Returns the abstract devices of a slice, to compile ahead of time.

    This needs libtpu, but no TPU. The function sets the environment variables with which libtpu
    does not search for a TPU, and two processes can load it at the same time. They have no effect
    if this process has loaded libtpu before.

    Raises:
        ConfigError: libtpu is not installed.
    """
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": topology.cloud_name,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies  # may load libtpu: after the environment is set

    host = topology.kind.host
    if math.prod(topology.shape) == 1:
        host = (1, 1, 1)
    elif topology.shape == (2, 4):
        host = (2, 4, 1)
    wrap = (*topology.wraps, False)[:3]
    options: dict[str, Any] = {
        "chips_per_host_bounds": host,
        "num_slices": topology.num_slices,
        "wrap": wrap,
    }
    if topology.kind.config_name:
        options["chip_config_name"] = topology.kind.config_name
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"Cannot compile for {topology.name}: {str(error).splitlines()[0]} The TPU compiler is "
            "libtpu: pip install 'flamingo_jax[tpu]'."
        ) from error
    return list(found.devices)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Switches the compilation cache off inside the context.

    JAX can write a program for abstract devices into its cache, but it cannot read it.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    compilation_cache.reset_cache()  # JAX reads the setting only when the cache starts
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()

"""TPU slices by name.

What a chip can do, which shapes a slice can have, and its devices without having one.

    "v4:8x12x16" --describe--> Topology (numbers only) --devices--> 1536 abstract devices, for `Mesh` and ahead-of-time compilation

Sources: the Cloud TPU documentation of each kind (peak, memory, interconnect, shapes, names), and
    for v4 the numbers that this
project's plans are bound to (1.05 GHz; 45 GB/s one way per link, of 50 GB/s nominal). Clocks of the
others are not published: they follow from peak = clock * TensorCores * MXUs * side^2 * 2, with the
MXUs that the compiler's cycle estimates imply (v6e: four of 256 x 256, or two at twice the rate).
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
    """One generation of TPU, as a chip.

    Attributes:
      name: as in "v4:2x2x1".
      cloud_name: the first part of the Cloud accelerator type; what follows counts `counted`.
      counted: "cores" (TensorCores) or "chips".
      peak_flops: bfloat16 FLOP/s.
      hbm_bytes, hbm_bandwidth: bytes; bytes per second.
      link_bandwidth: bytes per second, one way, of one link to a neighbour.
      num_dimensions: of the torus.
      tensor_cores: per chip.
      devices_per_chip: JAX devices; a megacore is one device of two TensorCores.
      clock_hz: cycles per second, of which the compiler's estimates speak.
      host: chips of one host along each dimension.
      wraps_at: a dimension is a ring, and not a line, if it is a multiple of this (v4, v5p: optical
        links between cubes of 4) or, of a pod's full length, equal to it (v5e, v6e).
      config_name: what libtpu calls this kind's megacore configuration, None if it has none.
    """

    name: str
    cloud_name: str
    counted: Literal["cores", "chips"]
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    num_dimensions: int
    tensor_cores: int
    devices_per_chip: int
    clock_hz: float
    host: tuple[int, int, int]
    wraps_at: int
    config_name: str | None = None


_MXU = 128 * 128 * 2  # FLOP per cycle
_GIB = 1 << 30

KINDS = {
    kind.name: kind
    for kind in (
        # 2 cores x 4 MXUs x 128 x 128 x 2 x 1.05 GHz = 275 TFLOP/s
        Kind("v4", "v4", "cores", 2.75e14, 32 * _GIB, 1.2e12, 4.5e10, 3, 2, 1, 1.05e9, (2, 2, 1), 4, "megacore"),
        # 197e12 / (4 MXUs x 128 x 128 x 2) = 1.503 GHz
        Kind("v5e", "v5litepod", "chips", 1.97e14, 16 * _GIB, 8.19e11, 5e10, 2, 1, 1, 1.97e14 / (4 * _MXU), (2, 2, 1), 16),
        # 459e12 / (2 cores x 4 MXUs x 128 x 128 x 2) = 1.751 GHz
        Kind("v5p", "v5p", "cores", 4.59e14, 95 * _GIB, 2.765e12, 1e11, 3, 2, 1, 4.59e14 / (8 * _MXU), (2, 2, 1), 4, "megacore"),
        # 918e12 / (16 x 128 x 128 x 2) = 1.751 GHz
        Kind("v6e", "v6e", "chips", 9.18e14, 32 * _GIB, 1.638e12, 1e11, 2, 1, 1, 9.18e14 / (16 * _MXU), (2, 2, 1), 16),
    )
}  # fmt: skip

# Slices smaller than a cube, and the largest one, in chips.
_SMALL = {"v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"), "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4")}
_LARGEST = {"v4": (16, 4096), "v5p": (24, 6144)}  # longest dimension, chips
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
      kind: of its chips.
      shape: chips along each dimension of the torus.
    """

    kind: Kind
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in "v4:8x12x16"."""
        return f"{self.kind.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Chips of the slice."""
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """JAX devices of the slice."""
        return self.num_chips * self.kind.devices_per_chip

    @property
    def cloud_name(self) -> str:
        """The Cloud accelerator type: "v4-3072", "v5litepod-16"."""
        cores = self.kind.tensor_cores if self.kind.counted == "cores" else 1
        return f"{self.kind.cloud_name}-{self.num_chips * cores}"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each dimension is a ring; on v4 and v5p all of them are, or none is."""
        multiples = tuple(size % self.kind.wraps_at == 0 for size in self.shape)
        return (all(multiples),) * len(multiples) if self.kind.num_dimensions == 3 else multiples

    @property
    def axis_bandwidth(self) -> float:
        """Bytes per second that a chip receives along one dimension of the torus, from both sides together."""
        return 2 * self.kind.link_bandwidth


def names() -> Iterator[str]:
    """Yields the name of every slice, by kind, smaller ones first."""
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


def describe(name: str) -> Topology:
    """Returns the slice of this name.

    Args:
        name: a kind and a shape, "v4:8x12x16"; dimensions ascend.

    Raises:
        ConfigError: if there is no such slice; it names the nearest ones.
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
    return known[name]


@functools.cache
def _known() -> dict[str, Topology]:
    return {
        name: Topology(
            KINDS[name.partition(":")[0]], tuple(map(int, name.partition(":")[2].split("x")))
        )
        for name in names()
    }


def devices(topology: Topology) -> list[Any]:
    """Returns the abstract devices of a slice, for compiling ahead of time.

    No TPU is needed, only libtpu.

    Sets the environment variables that keep libtpu from looking for a TPU around it, and from
    refusing to be loaded by two processes at once; they must not have been needed earlier in this
    process.

    Raises:
        ConfigError: if libtpu is not installed.
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

    shape = topology.shape
    host = (
        (1, 1, 1)
        if topology.num_chips == 1
        else (2, 4, 1)
        if shape == (2, 4)
        else topology.kind.host
    )
    wrap = (*topology.wraps, False)[:3]
    options: dict[str, Any] = {"chips_per_host_bounds": host, "num_slices": 1, "wrap": wrap}
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
    """Compiles what is compiled inside afresh.

    A program for devices that are not there can be written to JAX's cache, but not read.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    compilation_cache.reset_cache()  # or it goes on as it began
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()

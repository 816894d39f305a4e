r"""NFNet-F6's 3x3 convolutions on one v4 chip, between two GELUs, by the TPU compiler's estimates.

    python -m tests.benchmarks.tpu_convolutions

By the number of images on a chip, and by the form: grouped, or without groups (weights of 0 between
them). It needs libtpu, and no TPU; it runs nothing, so other work on the machine does not matter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.nn import conv
from flamingo_jax.planning import cost, topologies
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

CHIPS, TOPOLOGY = 4, "v4:2x2x1"
GROUP = 128  # channels
# (side, channels, images, without groups, with gradients)
CASES = (
    *((20, 768, images, False, False) for images in (4, 5, 8, 10, 16, 20, 24, 32, 44)),
    *((40, 256, 8, whole, gradients) for gradients in (False, True) for whole in (False, True)),
)


def milliseconds(side: int, channels: int, images: int, whole: bool, gradients: bool) -> float:
    """Returns the estimate of one convolution; `whole`: without groups."""
    slice_ = topologies.describe(TOPOLOGY)
    mesh = make_mesh(MeshConfig(data=CHIPS), topologies.devices(slice_))
    split, same = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    groups = 1 if whole else channels // GROUP

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.nn.gelu(conv._convolve(jax.nn.gelu(x), w, 1, groups))

    def both(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(forward, x, w)[1](dy)

    shape = (CHIPS * images, side, side, channels)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)
    weights = (3, 3, channels // groups, channels)
    w = jax.ShapeDtypeStruct(weights, jnp.bfloat16, sharding=same)
    with topologies.uncached():
        compiled = jax.jit(both if gradients else forward).lower(x, w, *[x] * gradients).compile()
    return 1000 * cost.analyse(compiled.as_text(), mesh, slice_).compute_seconds


def main() -> None:
    """Prints a line for each case."""
    for side, channels, images, whole, gradients in CASES:
        time = milliseconds(side, channels, images, whole, gradients)
        form = "without groups" if whole else f"{channels // GROUP} groups"
        what = "forward and backward" if gradients else "forward"
        print(
            f"{side}x{side}x{channels}, {form}, {images} images, {what}: {time:.3f} ms, "
            f"{1000 * time / images:.1f} us an image",
            flush=True,
        )


if __name__ == "__main__":
    main()

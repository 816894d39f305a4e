r"""NFNet-F6 on one v4 chip, by the TPU compiler's estimates and the number of images on the chip.

    python -m tests.benchmarks.tpu_convolutions

First its 3x3 convolutions, between two GELUs: grouped, or without groups (weights of 0 between
them). Then the whole frozen encoder at 320 pixels, about a minute for each line. It needs libtpu,
and no TPU; it runs nothing, so other work on the machine does not matter.
"""

from __future__ import annotations

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.core.axes import with_layout
from flamingo_jax.models import sizes
from flamingo_jax.models.nfnet import NFNet
from flamingo_jax.nn import conv
from flamingo_jax.planning import cost, topologies
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

CHIPS, SLICE = 4, topologies.describe("v4:2x2x1")
GROUP = 128  # channels
# (side, channels, images, without groups, with gradients)
CASES = (
    *((20, 768, images, False, False) for images in (4, 5, 8, 10, 16, 20, 24, 32, 44)),
    *((40, 256, 8, whole, gradients) for gradients in (False, True) for whole in (False, True)),
)

ENCODER = (8, 20, 44, 48)  # images


def places() -> tuple[NamedSharding, NamedSharding]:
    """Returns the shardings of arrays that are split over the chips, and that all chips have."""
    mesh = make_mesh(MeshConfig(data=CHIPS), topologies.devices(SLICE))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def milliseconds(side: int, channels: int, images: int, whole: bool, gradients: bool) -> float:
    """Returns the estimate of one convolution; `whole`: without groups."""
    split, same = places()
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
    return 1000 * cost.analyse(compiled.as_text(), split.mesh, SLICE).compute_seconds


def encoder(images: int) -> cost.Cost:
    """Returns the cost of the forward pass of the frozen encoder, with folded weights."""
    split, same = places()
    config = dataclasses.replace(sizes.NFNETS["F6"], weight_standardisation="folded")
    network = hk.without_apply_rng(hk.transform(lambda x: NFNet(config)(x)))

    def forward(params: hk.Params, x: jax.Array) -> jax.Array:
        with with_layout(Layout(split.mesh)):
            return network.apply(params, x)

    def placed(shape: tuple[int, ...], sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16)
    shapes = jax.eval_shape(network.init, jax.random.key(0), small)
    params = jax.tree.map(lambda leaf: placed(leaf.shape, same), shapes)
    x = placed((CHIPS * images, 320, 320, 3), split)
    with topologies.uncached():
        compiled = jax.jit(forward).lower(params, x).compile()
    return cost.analyse(compiled.as_text(), split.mesh, SLICE)


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
    for images in ENCODER:
        found = encoder(images)
        share = found.flops / (found.compute_seconds * SLICE.kind.peak_flops)
        print(
            f"the encoder, {images} images: {1000 * found.compute_seconds:.1f} ms, "
            f"{1000 * found.compute_seconds / images:.2f} ms an image, {share:.2f} of the peak",
            flush=True,
        )


if __name__ == "__main__":
    main()

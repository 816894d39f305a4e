"""The vision transformer: CLIP's, the other vision encoder (paper, Table 3 (vii)), and two more.

Source: Radford et al. 2021, arXiv 2103.00020.

    images [M S S 3] --p x p patches, linear--> patches [M P E]
    x = LN([class, patches] + positions)                              x [M 1+P E]

    num_layers x:   x = x + attention(LN(x))
                    x = x + ffw(LN(x))

    x --(LN)--> features [M P E], with or without the class token

SigLIP (Zhai et al. 2023, arXiv 2303.15343) has neither a class token nor the first norm; a learnt
query that attends all patches gives its image embedding ("pooled"). DINOv2 (Oquab et al. 2023,
arXiv 2304.07193) scales what each part adds (layer scale), and may have registers: tokens without a
position that are no output (Darcet et al. 2023, arXiv 2309.16588).

Public models of CLIP differ in three things that their weights' shapes do not show, so they are
options. OpenAI's weights have the quick GELU, x * sigmoid(1.702 x), LAION's the exact one.
OpenFlamingo takes the patches alone, IDEFICS the class token too. CLIP's last LayerNorm comes
before its projection; neither OpenFlamingo nor IDEFICS was trained with it on the patches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core import ranges
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Remat, Stack
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.feedforward import feed_forward
from flamingo_jax.nn.linear import linear
from flamingo_jax.nn.norm import LayerNorm

Activation = Literal["quick_gelu", "gelu_exact", "gelu", "swiglu"]
Features = Literal["patches", "class_and_patches", "class", "pooled"]
Interpolation = Literal["bicubic", "antialiased", "linear"]


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and options of a vision transformer (models/sizes.py).

    The defaults are OpenAI's ViT-L/14, as OpenFlamingo reads it.

    Attributes:
        patch_size: side of a patch, in pixels.
        width: E.
        num_layers: transformer blocks.
        num_heads: H; divides the width.
        mlp_width: hidden width of the feed-forward layers.
        image_size: side of the images that the table of positions was trained at.
        activation: of the feed-forward layers.
        features: the output: the patches, the class token before them, the class token alone
            (CLIP's image embedding), or what a learnt query attends (SigLIP's).
        final_norm: whether the output has a LayerNorm (CLIP's post-norm).
        class_token: whether there is one.
        registers: number of tokens without a position (DINOv2).
        patch_bias: whether the linear map of the patches has a bias.
        pre_norm: whether there is a LayerNorm before the blocks.
        layer_scale: whether each channel of what attention and feed-forward add has a weight.
        interpolation: how the table of positions is resized to another grid: "bicubic" as in
            transformers (a = -0.75, edges repeated), "antialiased" as in open_clip and timm (a =
            -0.5, a wider window if the grid gets smaller), "linear" as in SigLIP 2's flexible form
            (antialiased too).
        epsilon: of the LayerNorms.
        mean: of red, green and blue, for pixels 0..1.
        std: their deviation.
        remat: "full" recomputes each block in the backward pass.
    """

    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    image_size: int = 224
    activation: Activation = "quick_gelu"
    features: Features = "patches"
    final_norm: bool = False
    class_token: bool = True
    registers: int = 0
    patch_bias: bool = False
    pre_norm: bool = True
    layer_scale: bool = False
    interpolation: Interpolation = "bicubic"
    epsilon: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remat: Remat = "none"

    def __post_init__(self) -> None:
        sizes = ("patch_size", "width", "num_layers", "num_heads", "mlp_width", "image_size")
        ranges.check(self, ranges.whole(1), *sizes)
        ranges.check(self, ranges.whole(0), "registers")
        ranges.check(self, ranges.EPSILON, "epsilon")
        ranges.check(self, ranges.MODERATE, "mean")
        ranges.check(self, ranges.POSITIVE, "std")
        if self.width % self.num_heads:
            raise ValueError(f"ViT: {self.num_heads} heads do not divide width {self.width}.")
        self.side(self.image_size)
        if self.features in ("class_and_patches", "class") and not self.class_token:
            raise FieldError(
                f"features is {self.features!r} and class_token is False: there is no such token. "
                "Expected features = 'patches' or 'pooled'."
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(
                f"ViT: mean is {self.mean} and std is {self.std}; expected three numbers each."
            )

    def side(self, image_size: int) -> int:
        """Returns the number of patches along one side of an image.

        Raises:
            ValueError: patches do not fill it.
        """
        if image_size % self.patch_size or not image_size:
            raise ValueError(
                f"ViT: patches of {self.patch_size} pixels do not fill an image of {image_size}: "
                f"take a multiple of {self.patch_size}."
            )
        return image_size // self.patch_size

    def num_features(self, image_size: int) -> int:
        """Returns the number of output vectors for an image with this side, in pixels."""
        patches = self.side(image_size) ** 2
        numbers = {"patches": patches, "class_and_patches": 1 + patches, "class": 1, "pooled": 1}
        return numbers[self.features]


class ViT(hk.Module):
    """Images to one vector for each patch."""

    def __init__(self, config: ViTConfig, name: str = "vision"):
        super().__init__(name=name)
        self.config = config

    def __call__(self, images: Float[Array, "M S S 3"]) -> Float[Array, "M P E"]:
        """Returns the features, row by row of the grid; the class token, if kept, comes first.

        The P of "class" and "pooled" is 1.

        Args:
            images: pixels, normalised by config.mean and config.std, in the dtype of the
                computation.

        Raises:
            ValueError: patches do not fill the images.
        """
        config = self.config
        x = self._embed(images)

        def block(x: Array, _: None) -> tuple[Array, None]:
            with hk.name_scope("block"):
                y = _norm(x, config, name="attention_norm")
                with hk.name_scope("attention"):
                    y = _attention(y, y, config)
                x = x + _scaled(y, config, name="attention_scale")
                y = _feed_forward(_norm(x, config, name="mlp_norm"), config)
                return x + _scaled(y, config, name="mlp_scale"), None

        x, _ = Stack(config.num_layers, block, name="layers", remat=config.remat)(x)
        first, start = int(config.class_token), int(config.class_token) + config.registers
        if config.features == "patches":
            x = x[:, start:]
        elif config.features == "class":
            x = x[:, :first]
        elif config.registers:
            x = jnp.concatenate([x[:, :first], x[:, start:]], axis=1)
        x = _norm(x, config, name="final_norm") if config.final_norm else x
        return self._pooled(x) if config.features == "pooled" else x

    @hk.name_like("__call__")
    def _embed(self, images: Float[Array, "M S S 3"]) -> Float[Array, "M T E"]:
        """Returns the patches with their positions, after the class token and the registers."""
        config, dtype = self.config, images.dtype
        size, width, first = config.patch_size, (config.width,), int(config.class_token)
        side, trained_side = config.side(images.shape[1]), config.side(config.image_size)
        init = hk.initializers.RandomNormal(config.width**-0.5)
        with hk.name_scope("patch_embedding"):
            shape, kernel = (size, size, 3, *width), ("kernel", "kernel", None, "vision")
            w = param("w", shape, kernel, hk.initializers.RandomNormal(0.02)).astype(dtype)
            x = images.reshape(len(images), side, size, side, size, 3)
            x = jnp.einsum("mhawbc,abce->mhwe", x, w).reshape(len(images), -1, *width)
            if config.patch_bias:
                x = x + param("b", width, ("vision",), jnp.zeros).astype(dtype)[None, None]

        def of_each_image(tokens: Float[Array, "n E"]) -> Float[Array, "M n E"]:
            return jnp.broadcast_to(tokens.astype(dtype)[None], (len(images), *tokens.shape))

        if config.class_token:
            token = param("class_embedding", width, ("vision",), init)
            x = jnp.concatenate([of_each_image(token[None]), x], axis=1)
        positions = param("positions", (first + trained_side**2, *width), (None, "vision"), init)
        positions = interpolate_positions(
            positions, side, interpolation=config.interpolation, first=first
        )
        x = x + positions.astype(dtype)[None]
        if config.registers:
            tokens = param("registers", (config.registers, *width), (None, "vision"), init)
            x = jnp.concatenate([x[:, :first], of_each_image(tokens), x[:, first:]], axis=1)
        return _norm(x, config, name="pre_norm") if config.pre_norm else x

    @hk.name_like("__call__")
    def _pooled(self, x: Float[Array, "M T E"]) -> Float[Array, "M 1 E"]:
        """Returns what a learnt query attends, with a feed-forward layer behind (SigLIP)."""
        config = self.config
        with hk.name_scope("pool"):
            init = hk.initializers.RandomNormal(config.width**-0.5)
            query = param("query_embedding", (config.width,), ("vision",), init).astype(x.dtype)
            query = jnp.broadcast_to(query[None, None], (len(x), 1, config.width))
            with hk.name_scope("attention"):
                pooled = _attention(query, x, config)
            return pooled + _feed_forward(_norm(pooled, config, name="mlp_norm"), config)


def _attention(
    x: Float[Array, "M T E"], seen: Float[Array, "M P E"], config: ViTConfig
) -> Float[Array, "M T E"]:
    heads = (config.num_heads, config.width // config.num_heads)

    def project(y: Array, name: str) -> Array:
        return linear(y, heads, axes=("vision", "vision", "head_dim"), bias=True, name=name)

    out = attend(project(x, "query"), project(seen, "key"), project(seen, "value"))
    back = ("vision", "head_dim", "vision")
    return linear(out, x.shape[-1:], num_in=2, axes=back, bias=True, name="out")


def _feed_forward(x: Float[Array, "M T E"], config: ViTConfig) -> Float[Array, "M T E"]:
    return feed_forward(
        x,
        config.mlp_width,
        activation=config.activation,
        batch="images",
        axis="vision",
        name="mlp",
    )


def _scaled(x: Float[Array, "M T E"], config: ViTConfig, *, name: str) -> Float[Array, "M T E"]:
    if not config.layer_scale:
        return x
    with hk.name_scope(name):
        scale = param("scale", x.shape[-1:], ("vision",), jnp.ones).astype(x.dtype)
    return x * jnp.broadcast_to(scale, x.shape)


def interpolate_positions(
    table: Float[Array, "P0 E"], side: int, *, interpolation: Interpolation, first: int = 1
) -> Float[Array, "P E"]:
    """Returns the positions of another grid; the class token's, the first row, stays.

    Args:
        table: as trained, P0 = first + trained side^2.
        side: patches along one side of the images.
        interpolation: see `ViTConfig`; each grid covers the whole image.
        first: rows before the grid: 1 with a class token, 0 without.
    """
    rows, grid = table[:first], table[first:]
    trained_side = math.isqrt(len(grid))
    if side == trained_side:
        return table
    grid = grid.reshape(trained_side, trained_side, -1)
    if interpolation != "bicubic":
        method = {"antialiased": "cubic", "linear": "linear"}[interpolation]
        grid = jax.image.resize(grid, (side, side, grid.shape[-1]), method, antialias=True)
    else:
        weights = jnp.asarray(_bicubic(trained_side, side), grid.dtype)
        grid = jnp.einsum("ai,bj,ije->abe", weights, weights, grid, precision="highest")
    return jnp.concatenate([rows, grid.reshape(side**2, -1)])


def _bicubic(num_old: int, num_new: int) -> Float[np.ndarray, "new old"]:
    """Weights of the old places for each new place: cubic convolution (Keys 1981), a = -0.75.

    Beyond the edge, the value at the edge is repeated.
    """
    a, weights = -0.75, np.zeros((num_new, num_old))
    for i in range(num_new):
        place = (i + 0.5) * num_old / num_new - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - j)
            near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
            weights[i, min(max(j, 0), num_old - 1)] += near if d <= 1 else far
    return weights


def _norm(x: Array, config: ViTConfig, *, name: str) -> Array:
    return LayerNorm(axis_name="vision", epsilon=config.epsilon, name=name)(x)

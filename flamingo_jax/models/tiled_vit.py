"""The vision transformer of Llama 3.2 Vision: it sees the tiles of an image together.

Source: The Llama 3 Herd of Models, arXiv 2407.21783; the published weights.

    tiles [M F S S 3] --p x p patches, linear--> [M F p*p E]
    x = LN([class, patches + which tile] + positions + positions in this tile)    x [M F P E]
    zeros behind the patches of each tile, to a multiple of 8                     x [M F*P' E]

    num_layers x:          x = x + attention(LN(x)),  x = x + ffw(LN(x))          some are kept
    x = LN(x) + which tile
    num_global_layers x:   the same, each sum through a gate: x + tanh(alpha) * ...

    features [M F P E'] = [x, what the kept layers gave], E' = (1 + kept) * E

An image is cut into 1 to F tiles by its shape (`data.images.tiles`). The embeddings of tiles are
tables with a row for each arrangement, 1 x 2 or 2 x 1, so the tower is told the arrangement of each
image. All F tiles are computed: published weights were trained with attention that hides a pair
of places only if both are padding, so the tiles that an image lacks are seen too.
"""

from __future__ import annotations

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core import ranges
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.notation import Array, Bool, Float, Int
from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Remat, Stack
from flamingo_jax.models.vit import Activation
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.feedforward import feed_forward
from flamingo_jax.nn.linear import linear
from flamingo_jax.nn.norm import EPSILON, LayerNorm

# The published code pads the places of a tile to this multiple, and attention sees the padding.
_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TiledViTConfig:
    """Shape of a vision transformer on tiles; the defaults are those of all Llama 3.2 Vision.

    Attributes:
        patch_size: side of a patch, in pixels.
        width: E of the layers; the features have `output_width`.
        num_layers: of the first part.
        num_global_layers: of the second part, whose sums have gates.
        num_heads: H; divides the width.
        mlp_width: hidden width of the feed-forward layers.
        image_size: side of a tile, in pixels.
        max_tiles: F, the most tiles of an image.
        kept: numbers of the layers of the first part whose outputs are features too, ascending.
        activation: of the feed-forward layers.
        epsilon: of the LayerNorms of the layers; the two others have 1e-5.
        mean: of red, green and blue, for pixels 0..1.
        std: their deviation.
        remat: "full" recomputes each block in the backward pass.
    """

    patch_size: int = 14
    width: int = 1280
    num_layers: int = 32
    num_global_layers: int = 8
    num_heads: int = 16
    mlp_width: int = 5120
    image_size: int = 560
    max_tiles: int = 4
    kept: tuple[int, ...] = (3, 7, 15, 23, 30)
    activation: Activation = "gelu_exact"
    epsilon: float = EPSILON
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remat: Remat = "none"

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "patch_size", "width", "num_layers", "num_heads")
        ranges.check(self, ranges.whole(1), "num_global_layers", "mlp_width", "image_size")
        ranges.check(self, ranges.whole(1, 64), "max_tiles")
        ranges.check(self, ranges.whole(0), "kept")
        ranges.check(self, ranges.EPSILON, "epsilon")
        ranges.check(self, ranges.MODERATE, "mean")
        ranges.check(self, ranges.POSITIVE, "std")
        if self.width % self.num_heads:
            raise FieldError(f"{self.num_heads} heads do not divide width {self.width}.")
        if self.image_size % self.patch_size:
            raise FieldError(
                f"patches of {self.patch_size} pixels do not fill a tile of {self.image_size}: "
                f"take a multiple of {self.patch_size}."
            )
        if (
            list(self.kept) != sorted(set(self.kept))
            or max(self.kept, default=0) >= self.num_layers
        ):
            raise FieldError(
                f"kept is {self.kept}; expected ascending numbers of layers, below "
                f"{self.num_layers}."
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise FieldError(
                f"mean is {self.mean} and std is {self.std}; expected three numbers each."
            )

    @property
    def output_width(self) -> int:
        """E', the width of the features."""
        return (1 + len(self.kept)) * self.width

    @property
    def num_places(self) -> int:
        """P, the class token and the patches of a tile."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def num_arrangements(self) -> int:
        """The number of ways to arrange at most `max_tiles` tiles in rows and columns."""
        return sum(self.max_tiles // rows for rows in range(1, self.max_tiles + 1))

    def num_features(self, image_size: int) -> int:
        """Returns the number of output vectors for one tile with this side, in pixels.

        Raises:
            ValueError: it is not the size that the model has embeddings for.
        """
        if image_size != self.image_size:
            raise ValueError(
                f"A tiled ViT of tiles of {self.image_size} pixels got images of {image_size}: its "
                f"tables have no other size. Expected {self.image_size}."
            )
        return self.num_places


class TiledViT(hk.Module):
    """The tiles of images to vectors, one for each patch and one for each tile's class token."""

    def __init__(self, config: TiledViTConfig, name: str = "vision"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self, tiles: Float[Array, "M F S S 3"], arrangement: Int[Array, "M F"]
    ) -> Float[Array, "M F P E"]:
        """Returns the features; the class token of a tile comes first, then its patches.

        Args:
            tiles: pixels, normalised by config.mean and config.std, in the dtype of the
                computation; row by row of the image. F is config.max_tiles.
            arrangement: on each tile of an image, the number of the image's arrangement
                (`data.images.tiles.arrangements`), from 1; 0 on the tiles that it lacks.

        Raises:
            ValueError: another size, or another number of tiles, than the config's.
        """
        config = self.config
        self._check(tiles)
        is_real = arrangement != 0
        number = jnp.max(arrangement, axis=1)
        # Those that an image lacks are 0 behind the normalisation, as in the published code.
        tiles = jnp.where(is_real[:, :, None, None, None], tiles, 0)
        x = self._embed(tiles, number)
        missing = -x.shape[2] % _MULTIPLE
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
        places = x.shape[:3]
        is_patch = jnp.arange(places[2]) < config.num_places
        seen = (is_real[:, :, None] & is_patch[None, None, :]).reshape(len(x), -1)
        x, kept = self._layers(x.reshape(len(x), -1, config.width), seen)
        x = LayerNorm(axis_name="vision", name="post_norm")(x)
        x = x.reshape(*places, config.width)
        x = x + self._of_tiles(number, "post_tile", x.dtype)
        x = self._global_layers(x.reshape(len(x), -1, config.width), seen)
        features = jnp.concatenate([x, kept], axis=-1)
        return features.reshape(*places, -1)[:, :, : config.num_places]

    def _check(self, tiles: Float[Array, "M F S S 3"]) -> None:
        self.config.num_features(tiles.shape[2])
        if tiles.shape[1] != self.config.max_tiles:
            raise ValueError(
                f"A tiled ViT got {tiles.shape[1]} tiles for each image; expected "
                f"{self.config.max_tiles}, with those that an image lacks as padding."
            )

    @hk.name_like("__call__")
    def _embed(
        self, tiles: Float[Array, "M F S S 3"], number: Int[Array, "M"]
    ) -> Float[Array, "M F P E"]:
        """Returns class tokens and patches with their positions, after the first norm."""
        config, dtype, num_tiles = self.config, tiles.dtype, self.config.max_tiles
        size, width, places = config.patch_size, (config.width,), config.num_places
        side = config.image_size // size
        init = hk.initializers.RandomNormal(config.width**-0.5)
        with hk.name_scope("patch_embedding"):
            shape, kernel = (size, size, 3, *width), ("kernel", "kernel", None, "vision")
            w = param("w", shape, kernel, hk.initializers.RandomNormal(0.02)).astype(dtype)
            x = tiles.reshape(-1, side, size, side, size, 3)
            x = jnp.einsum("mhawbc,abce->mhwe", x, w).reshape(len(tiles), num_tiles, -1, *width)
        x = x + self._of_tiles(number, "pre_tile", dtype)
        token = param("class_embedding", width, ("vision",), init).astype(dtype)
        token = jnp.broadcast_to(token[None, None, None], (*x.shape[:2], 1, *width))
        x = jnp.concatenate([token, x], axis=2)
        table = param("positions", (places, *width), (None, "vision"), init).astype(dtype)
        rows = (1 + config.num_arrangements, num_tiles, places, *width)
        of_tiles = param("tile_positions", rows, (None, None, None, "vision"), init)
        gate = jnp.tanh(param("positions_gate", (), (), jnp.zeros)).astype(dtype)
        x = x + ((1 - gate) * table)[None, None] + gate * of_tiles[number].astype(dtype)
        return LayerNorm(axis_name="vision", name="pre_norm")(x)

    @hk.name_like("__call__")
    def _of_tiles(
        self, number: Int[Array, "M"], name: str, dtype: jnp.dtype
    ) -> Float[Array, "M F 1 E"]:
        """Returns the embedding of each tile's place in its arrangement, through its gate."""
        num_tiles, width = self.config.max_tiles, self.config.width
        shape = (1 + self.config.num_arrangements, num_tiles, width)
        with hk.name_scope(name):
            init = hk.initializers.RandomNormal(width**-0.5)
            table = param("embedding", shape, (None, None, "vision"), init)
            gate = jnp.tanh(param("gate", (), (), jnp.zeros))
        return (gate * table[number]).astype(dtype)[:, :, None]

    @hk.name_like("__call__")
    def _layers(
        self, x: Float[Array, "M T E"], seen: Bool[Array, "M T"]
    ) -> tuple[Float[Array, "M T E"], Float[Array, "M T C"]]:
        """Runs the first part; returns (x, what the kept layers gave, side by side by place).

        Each layer writes what it gives to the place of the next kept layer, over what the layers
        before it wrote there: so no more than the kept ones and one more are in memory.
        """
        config = self.config
        kept = jnp.zeros((len(config.kept) + 1, *x.shape), x.dtype)
        places = np.searchsorted(config.kept, np.arange(config.num_layers)).astype(np.int32)

        def block(carried: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
            with hk.name_scope("block"):
                x, kept = carried
                x = _block(x, seen, config)
                return (x, jax.lax.dynamic_update_index_in_dim(kept, x, place, 0)), None

        stack = Stack(config.num_layers, block, name="layers", remat=config.remat)
        (x, kept), _ = stack((x, kept), jnp.asarray(places))
        # As published: channel 0 of each kept layer, then channel 1 of each, and so on.
        beside = jnp.moveaxis(kept[:-1], 0, -1)
        return x, beside.reshape(*x.shape[:2], -1)

    @hk.name_like("__call__")
    def _global_layers(
        self, x: Float[Array, "M T E"], seen: Bool[Array, "M T"]
    ) -> Float[Array, "M T E"]:
        config = self.config

        def block(x: Array, _: None) -> tuple[Array, None]:
            with hk.name_scope("block"):
                return _block(x, seen, config, gated=True), None

        stack = Stack(config.num_global_layers, block, name="global_layers", remat=config.remat)
        x, _ = stack(x)
        return x


def _block(
    x: Float[Array, "M T E"], seen: Bool[Array, "M T"], config: TiledViTConfig, gated: bool = False
) -> Float[Array, "M T E"]:
    norm = functools.partial(LayerNorm, axis_name="vision", epsilon=config.epsilon)

    def through_gate(y: Array, name: str) -> Array:
        return jnp.tanh(param(name, (), (), jnp.zeros)).astype(y.dtype) * y if gated else y

    y = norm(name="attention_norm")(x)
    with hk.name_scope("attention"):
        y = _attention(y, seen, config)
    x = x + through_gate(y, "attention_gate")
    y = feed_forward(
        norm(name="mlp_norm")(x),
        config.mlp_width,
        activation=config.activation,
        batch="images",
        axis="vision",
        name="mlp",
    )
    return x + through_gate(y, "mlp_gate")


def _attention(
    x: Float[Array, "M T E"], seen: Bool[Array, "M T"], config: TiledViTConfig
) -> Float[Array, "M T E"]:
    """Attention among all tiles; a pair of places is hidden if both of them are padding.

    The queries of one tile at a time, so that the scores of a whole image are never in memory.
    """
    heads = (config.num_heads, config.width // config.num_heads)
    project = functools.partial(linear, x, heads, axes=("vision", "vision", "head_dim"))
    q, k, v = project(name="query"), project(name="key"), project(name="value")

    def of_tile(own: tuple[Array, Array]) -> Array:
        q, real = own
        return attend(q, k, v, real[:, :, None] | seen[:, None, :])

    def by_tile(y: Array) -> Array:
        return jnp.moveaxis(y.reshape(len(y), config.max_tiles, -1, *y.shape[2:]), 1, 0)

    out = jax.lax.map(of_tile, (by_tile(q), by_tile(seen)))
    out = jnp.moveaxis(out, 0, 1).reshape(q.shape)
    back = ("vision", "head_dim", "vision")
    return linear(out, x.shape[-1:], num_in=2, axes=back, name="out")

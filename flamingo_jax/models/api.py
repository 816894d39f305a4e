"""`Model`: a Flamingo or a language model as pure functions of its weights.

Training, decoding and scoring call these functions. A model is a Haiku module with methods
(`models.flamingo.FlamingoModule`, `models.lm.LM`), and `hk.multi_transform` makes the functions
from the methods. `models.encoders` does the same for encoders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import haiku as hk
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core.notation import Array, Float, Float32, Int, UInt8
from flamingo_jax.core.precision import dtype_of
from flamingo_jax.core.trees import Params
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import frozen, vision
from flamingo_jax.models.cache import GRAFTED, Blocks, Cache, CacheShape, Media, MediaRows
from flamingo_jax.models.flamingo import FlamingoConfig, FlamingoModule
from flamingo_jax.models.lm import LM
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.media_context import Attends


class Module(Protocol):
    """The methods of a Haiku module that is a whole model; images are computed in `dtype`."""

    def token_losses(
        self,
        batch: Batch[Array],
        *,
        dtype: DTypeLike = jnp.float32,
        num_shards: int = 1,
        rng: Array | None = None,
    ) -> Float32[Array, "B T"]:
        """See `Model.token_losses`."""
        ...

    def encode(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: vision.FrameMask,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "M R D"]:
        """See `Model.encode`."""
        ...

    def features(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: vision.FrameMask,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float32[Array, "M E"]:
        """See `Model.features`."""
        ...

    def extend(
        self,
        cache: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float32[Array, "B T V"], Cache]:
        """See `Model.extend`."""
        ...


class _Functions(NamedTuple):
    """The methods of a module as functions of (weights, rng, ...)."""

    token_losses: Callable[..., Float32[Array, "B T"]]
    encode: Callable[..., Float[Array, "M R D"]]
    features: Callable[..., Float32[Array, "M E"]]
    extend: Callable[..., tuple[Float32[Array, "B T V"], Cache]]


def _transform(module: Callable[[], Module]) -> hk.MultiTransformed:
    def functions() -> tuple[Callable[..., Array], _Functions]:
        own = module()

        # Haiku has an `rng` of its own
        def token_losses(batch: Batch[Array], key: Array | None, **options: Any) -> Array:
            return own.token_losses(batch, rng=key, **options)

        return own.token_losses, _Functions(token_losses, own.encode, own.features, own.extend)

    return hk.multi_transform(functions)


class Model:
    """A model as pure functions of its weights.

    All functions but `init` take the weights in the compute form (`models.frozen`).

    Attributes:
        sees_images: False for a language model, which ignores images and has no `features`.
        reads_in_parts: whether a prompt can be read in two parts, each with its own visuals. False
            if tokens attend visuals of the other part (`XattnConfig.unseen`, `XattnConfig.attend`).
        attends: the images that a token attends; "last" for a language model.
        max_tiles: the most tiles that an image is cut into (`models.vision.tiles_of`); 0 = never.
    """

    def __init__(
        self,
        module: Callable[[frozen.Config], Module],
        form: frozen.Form[frozen.Config],
        *,
        example: Callable[[], Batch[Array]],
        cache: CacheShape,
        sees_images: bool,
        reads_in_parts: bool = True,
        attends: Attends = "last",
        max_tiles: int = 0,
        trains_vision: bool = False,
    ) -> None:
        """Transforms the module.

        Args:
            module: makes the module from a config.
            form: the config for stored weights, and the config for weights in the compute form.
            example: returns a small batch to initialise the weights with.
            cache: shapes of the cache.
            sees_images: as above.
            reads_in_parts: as above.
            attends: as above.
            max_tiles: as above.
            trains_vision: whether `token_losses` drops blocks of the vision encoder (stochastic
                depth).
        """
        self.sees_images, self.reads_in_parts = sees_images, reads_in_parts
        self.attends = attends
        self.max_tiles = max_tiles
        self._trains_vision = trains_vision
        self._form, self._example, self._cache = form, example, cache
        self._stored = _transform(lambda: module(form.stored))
        self._computed = _transform(lambda: module(form.computed))
        self._apply: _Functions = self._computed.apply

    def init(self, rng: Array) -> Params:
        """Returns new weights, float32, in the stored form (that of checkpoints)."""
        return self._stored.init(rng, self._example())

    def compute_form_init(self, rng: Array) -> Params:
        """Returns new weights in the compute form; for their names and logical axes."""
        return self._computed.init(rng, self._example())

    def compute_form(self, params: Params) -> Params:
        """Returns weights in the compute form, from weights in the stored form."""
        return self._form.change(params)

    def token_losses(
        self, params: Params, batch: Batch[Array], *, num_shards: int = 1, rng: Array | None = None
    ) -> Float32[Array, "B T"]:
        """Returns -log p(token l+1 | what comes before it), unweighted, T = L - 1.

        Args:
            params: the weights.
            batch: packed text, and its visual inputs.
            num_shards: data shards, each with its own pool of visual inputs.
            rng: for a vision encoder that is trained (stochastic depth); None drops no block.
        """
        rng = rng if self._trains_vision else None
        return self._apply.token_losses(
            params, None, batch, rng, dtype=dtype_of(params), num_shards=num_shards
        )

    def encode(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: vision.FrameMask
    ) -> Float[Array, "M R D"]:
        """Returns R visual tokens for each image or video; zeros for a language model."""
        return self._apply.encode(params, None, frames, frame_mask, dtype=dtype_of(params))

    def features(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: vision.FrameMask
    ) -> Float32[Array, "M E"]:
        """Returns the mean of the vision encoder's grid, over positions and real frames.

        Raises:
            ValueError: the model is a language model.
        """
        return self._apply.features(params, None, frames, frame_mask, dtype=dtype_of(params))

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float32[Array, "B T V"], Cache]:
        """Reads the next tokens of each sequence, and writes them into the cache.

        The prefill has `media`; decoding and the scoring of candidates have none.

        Args:
            params: the weights.
            cache: of the tokens before.
            tokens: the next tokens of each sequence.
            positions: of the tokens, consecutive. Rows of the cache from there on are overwritten
                or not attended.
            media_index: phi of each token. Without `media`, a token with phi > 0 attends the cached
                image, the last one of its sequence.
            media: the visual inputs of the prompts.
            chunk: (tokens, span) of the chunked cross-attention
                (`nn.attention.attend_own_image_chunked`); None = the full form.

        Returns:
            (logits by token id, new tokens last; the updated cache).
        """
        return self._apply.extend(params, None, cache, tokens, positions, media_index, media, chunk)

    def empty_cache(
        self, batch_size: int, length: int, dtype: DTypeLike, params: Params | None = None
    ) -> Cache:
        """Returns an empty cache for `length` tokens.

        If weights are given, it contains what depends on the weights alone (`Cache.shared`), so
        that no step computes it again.
        """
        return self._cache.empty(batch_size, length, dtype, params)


def flamingo(
    config: FlamingoConfig,
    *,
    compute_form: bool = False,
    unfrozen: Collection[frozen.Unfrozen] = (),
) -> Model:
    """Returns a Flamingo; its weights are named "flamingo/...".

    Args:
        config: of all parts.
        compute_form: whether the functions take frozen weights in the compute form; else they take
            all weights in the stored form.
        unfrozen: the towers that are trained: their weights are in the stored form, and
            `token_losses` drops blocks of a vision encoder.
    """
    form = frozen.unchanged(config)
    if compute_form:
        form = frozen.of_flamingo(config, unfrozen)
    lm, xattn = form.computed.lm, config.xattn
    heads = xattn.num_heads or lm.num_heads
    media = MediaRows(
        xattn.num_layers(lm.num_layers),
        config.num_latents,
        xattn.num_kv_heads or heads,
        xattn.head_dim or lm.width // heads,
        has_seen=xattn.attend == "run" or config.resampler is None,
    )

    blocks = {"": Blocks(lm, "flamingo/lm/blocks")}
    if form.computed.grafted is not None:
        blocks[GRAFTED] = Blocks(form.computed.grafted, "flamingo/grafted")

    def example() -> Batch[Array]:
        ids = jnp.zeros((1, 2), jnp.int32)
        frames = jnp.zeros((1, *vision.example_shape(config.vision)), jnp.uint8)
        return Batch(
            tokens=ids,
            segment=ids + 1,
            loss_weights=jnp.zeros((1, 2), jnp.float32),
            media_index=ids,
            media_slot=ids[:, :1],
            frames=frames,
            frame_mask=jnp.ones(frames.shape[:2], bool),
        )

    return Model(
        functools.partial(FlamingoModule, trains=frozen.trains(unfrozen)),
        form,
        example=example,
        cache=CacheShape(blocks, media),
        sees_images=True,
        reads_in_parts=xattn.unseen == "zero" and xattn.attend == "last",
        attends=xattn.attend,
        max_tiles=vision.tiles_of(config.vision),
        trains_vision="vision" in unfrozen,
    )


def language_model(config: LMConfig) -> Model:
    """Returns a language model; its weights are named "lm/..."."""

    def example() -> Batch[Array]:
        ids = jnp.zeros((1, 2), jnp.int32)
        return Batch.of_text(ids, ids + 1)

    return Model(
        LM,
        frozen.unchanged(config),
        example=example,
        cache=CacheShape({"": Blocks(config, "lm/blocks")}),
        sees_images=False,
    )

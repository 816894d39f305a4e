"""`Model`.

What decoding, scoring and training ask of a model, the same for the LM alone and for Flamingo.

The model is a Haiku module with methods (`models.flamingo.FlamingoModule`, `models.lm.LM`);
`hk.multi_transform` makes pure functions of the weights from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.core.trees import Params
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import frozen, vision
from flamingo_jax.models.cache import Cache, CacheShape, Media
from flamingo_jax.models.flamingo import FlamingoConfig, FlamingoModule
from flamingo_jax.models.lm import LM
from flamingo_jax.models.lm_config import LMConfig


class Module(Protocol):
    """The methods of a Haiku module that is a whole model.

    `dtype` is what images are computed in.
    """

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
        frame_mask: Bool[Array, "M F"],
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "M R D"]:
        """See `Model.encode`."""
        ...

    def features(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: Bool[Array, "M F"],
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

    All but `init` take them in the compute form (`models.frozen`).

    Attributes:
        sees_images: False for a language model alone, which ignores images and has no `features`.
    """

    def __init__(
        self,
        module: Callable[[frozen.Config], Module],
        form: frozen.Form[frozen.Config],
        *,
        example: Callable[[], Batch[Array]],
        cache: CacheShape,
        sees_images: bool,
        trains_vision: bool = False,
    ) -> None:
        """Transforms the module.

        Args:
            module: makes it from a config.
            form: the config and the weights, as they are stored and as they are computed with.
            example: returns the smallest batch from which the shapes of all weights follow.
            cache: shapes of its cache.
            sees_images: as above.
            trains_vision: whether `token_losses` drops blocks of the vision encoder (stochastic
                depth).
        """
        self.sees_images, self._trains_vision = sees_images, trains_vision
        self._form, self._example, self._cache = form, example, cache
        self._stored = _transform(lambda: module(form.stored))
        self._computed = _transform(lambda: module(form.computed))
        self._apply: _Functions = self._computed.apply

    def init(self, rng: Array) -> Params:
        """Returns new weights, float32, in the form that checkpoints keep."""
        return self._stored.init(rng, self._example())

    def compute_form_init(self, rng: Array) -> Params:
        """Returns new weights in the compute form; for their names and logical axes."""
        return self._computed.init(rng, self._example())

    def compute_form(self, params: Params) -> Params:
        """Changes weights as `init` makes them into the form that the other functions compute with."""
        return self._form.change(params)

    def token_losses(
        self, params: Params, batch: Batch[Array], *, num_shards: int = 1, rng: Array | None = None
    ) -> Float32[Array, "B T"]:
        """Returns -log p(tokens[:, l+1] | before), unweighted, T = L - 1.

        Args:
            params: the weights.
            batch: packed text, and its visual inputs.
            num_shards: data shards, each with its own pool of visual inputs.
            rng: for a vision encoder that is trained (stochastic depth); None drops nothing.
        """
        rng = rng if self._trains_vision else None
        return self._apply.token_losses(
            params, None, batch, rng, dtype=_dtype(params), num_shards=num_shards
        )

    def encode(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"]
    ) -> Float[Array, "M R D"]:
        """Turns images or videos, in pixels, into R visual tokens each.

        Zeros for a language model alone.
        """
        return self._apply.encode(params, None, frames, frame_mask, dtype=_dtype(params))

    def features(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"]
    ) -> Float32[Array, "M E"]:
        """Returns what the vision encoder alone sees.

        The mean over the places of its last grid, and over real frames.

        Raises:
            ValueError: for a language model alone.
        """
        return self._apply.features(params, None, frames, frame_mask, dtype=_dtype(params))

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
        """Reads the next tokens of each sequence: prefill with `media`.

        Decoding and scoring of candidates without.

        Args:
            params: the weights.
            cache: of what came before.
            tokens: of each sequence.
            positions: of the tokens, consecutive. What the cache holds at or after them is
                overwritten or not attended.
            media_index: phi of each token; without `media`, the cached last image is attended where
                it is above 0.
            media: the visual inputs of the prompts.
            chunk: (tokens, span) attends images chunk by chunk
                (`nn.attention.attend_own_image_chunked`).

        Returns:
            (logits by token id, new tokens last; the updated cache).
        """
        return self._apply.extend(params, None, cache, tokens, positions, media_index, media, chunk)

    def empty_cache(
        self, batch_size: int, length: int, dtype: DTypeLike, params: Params | None = None
    ) -> Cache:
        """Returns a cache for `length` tokens.

        With weights it holds what follows from them alone, so that no step computes it again.
        """
        return self._cache.empty(batch_size, length, dtype, params)


def flamingo(
    config: FlamingoConfig, *, compute_form: bool = False, trains_vision: bool = False
) -> Model:
    """Returns a Flamingo; its weights are named "flamingo/...".

    Args:
        config: of all parts.
        compute_form: whether the functions take frozen weights in the compute form; else all are as
            `init` makes them.
        trains_vision: whether the vision encoder is trained: its weights are taken as they are, and
            `token_losses` drops blocks of it.
    """
    form = (
        frozen.of_flamingo(config, trains_vision=trains_vision)
        if compute_form
        else frozen.unchanged(config)
    )
    lm, xattn = form.computed.lm, config.xattn
    heads = xattn.num_heads or lm.num_heads
    media = (
        xattn.num_layers(lm.num_layers),
        config.resampler.num_latents,
        heads,
        xattn.head_dim or lm.width // heads,
    )

    def example() -> Batch[Array]:
        ids, size = jnp.zeros((1, 2), jnp.int32), vision.example_size(config.vision)
        return Batch(
            tokens=ids,
            segment=ids + 1,
            loss_weights=jnp.zeros((1, 2), jnp.float32),
            media_index=ids,
            media_slot=ids[:, :1],
            frames=jnp.zeros((1, 1, size, size, 3), jnp.uint8),
            frame_mask=jnp.ones((1, 1), bool),
        )

    return Model(
        FlamingoModule,
        form,
        example=example,
        cache=CacheShape(lm, "flamingo/lm/blocks", media),
        sees_images=True,
        trains_vision=trains_vision,
    )


def language_model(config: LMConfig) -> Model:
    """Returns the language model alone; its weights are named "lm/..."."""

    def example() -> Batch[Array]:
        ids = jnp.zeros((1, 2), jnp.int32)
        return Batch.of_text(ids, ids + 1)

    return Model(
        LM,
        frozen.unchanged(config),
        example=example,
        cache=CacheShape(config, "lm/blocks"),
        sees_images=False,
    )


def _dtype(params: Params) -> DTypeLike:
    """The dtype in which the weights were handed over: images are computed in it too."""
    return jax.tree.leaves(params)[0].dtype

"""Flamingo: a frozen vision encoder and a frozen language model, joined by trained layers (paper, 2, Figure 3).

    frames [M F S S 3] -> NFNet or ViT (frozen) -> [M F P E] -> Perceiver Resampler -> [M R W] -> linear -> media [M R D]
    tokens [B T] -> embed -> { GATED XATTN-DENSE(media) before every n-th block ; LM block (frozen) } -> head -> p(next token)

Modules: flamingo/vision, flamingo/lm (frozen); flamingo/resampler, flamingo/media, flamingo/xattn, flamingo/new_tokens
(trained).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.core.stack import Stack, is_unrolled, join_layers, layer_slice
from flamingo_jax.core.trees import Params
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import lm as lm_lib
from flamingo_jax.models import self_attention, vision
from flamingo_jax.models.decoder import Cache, Decoder, Media, empty_lm_cache, shared_cache
from flamingo_jax.models.gated_xattn import GatedXattn, MediaContext, XattnConfig, prepared
from flamingo_jax.models.losses import joined_logits, next_token_losses
from flamingo_jax.models.resampler import Resampler, ResamplerConfig
from flamingo_jax.models.vision import VisionConfig
from flamingo_jax.nn.linear import linear

FROZEN = (
    (r"flamingo/vision/.*", True),
    (r"flamingo/lm(/.*)?", True),
    (r"flamingo/(resampler|media|xattn|new_tokens)/.*", False),
)
"""Which weights are frozen (paper, 2.2); a table for `core.trees.match_once`."""


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """The parts of a Flamingo, and its new tokens (paper: ("<EOC>",); "<image>" is plain text there)."""

    vision: VisionConfig
    resampler: ResamplerConfig
    lm: lm_lib.LMConfig
    xattn: XattnConfig
    new_tokens: tuple[str, ...] = ("<EOC>",)


class Flamingo(hk.Module):
    """The model, as the two parts that training and decoding call."""

    def __init__(self, config: FlamingoConfig, *, name: str = "flamingo"):
        """`config`: of all parts."""
        super().__init__(name=name)
        self.config = config

    @hk.name_like("__call__")
    def encode(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: Bool[Array, "M F"],
        dtype: Any,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "M R D"]:
        """Turns images or videos, in pixels, into R visual tokens each, of the LM's width (or `XattnConfig.media`); computed in `dtype`.

        Frames are spread over all chips of the mesh, and so are the resampler's visual inputs, where there are enough: what
        comes back to a model group is its latents, not its features. `rng` is for a vision encoder in training (stochastic depth).
        """
        latents = Resampler(self.config.resampler, name="resampler")(self._see(frames, dtype, rng), frame_mask)
        latents = constrain(latents, "media", "latents", None)
        if self.config.xattn.media == "resampler":
            return latents
        return linear(latents, (self.config.lm.width,), axes=("vision", "embed"), bias=True, name="media")

    @hk.name_like("__call__")
    def features(
        self, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"], dtype: Any
    ) -> Float32[Array, "M E"]:
        """The mean of what the vision encoder sees, over all places and real frames: for retrieval of similar images."""
        return vision.pool(self._see(frames, dtype), frame_mask)

    @hk.name_like("__call__")
    def _see(self, frames: UInt8[Array, "M F S S 3"], dtype: Any, rng: Array | None = None) -> Float[Array, "M F P E"]:
        """What the vision encoder sees in each frame."""
        num_inputs, num_frames = frames.shape[:2]
        images = constrain(frames.reshape(-1, *frames.shape[2:]), "images", None, None, None)
        seen = vision.see(self.config.vision, images, dtype, is_training=rng is not None, rng=rng)
        seen = constrain(seen, "images", None, None)
        return constrain(seen.reshape(num_inputs, num_frames, *seen.shape[1:]), "images", None, None, None)

    @hk.name_like("__call__")
    def decode(
        self,
        tokens: Int[Array, "B T"],
        context: lm_lib.Context,
        media: MediaContext,
        cache: Cache | None = None,
    ) -> tuple[tuple[Float32[Array, "B T V"], Float32[Array, "B T X"] | None], Cache | None]:
        """Returns (the logits of the table and of the new tokens, the updated cache).

        Args:
            tokens: of a batch, or the next of each sequence.
            context: where they stand.
            media: what they may attend.
            cache: of what came before; None in training.
        """
        config = self.config
        new = lm_lib.NewTokens(len(config.new_tokens), config.lm.width)() if config.new_tokens else None
        lm = lm_lib.LM(config.lm, new)
        x = lm.embed(tokens, context.positions)
        if media.pool is not None:
            media = media._replace(pool=prepared(media.pool, config.xattn))
        xattn = Stack(
            config.xattn.num_layers(config.lm.num_layers),
            lambda x, cached: GatedXattn(config.xattn, config.lm.num_heads, media)(x, cached),
            name="xattn",
            remat=config.lm.remat,
        )
        cached = cache.media if cache is not None and media.pool is None else None
        xattn_weights = xattn.weights(x, layer_slice(cached, 0))

        def through(blocks: Stack, weights: Any, x: Array, lm_cache: Any) -> tuple[Array, Any]:
            return interleave(config.xattn, (blocks, weights, lm_cache), (xattn, xattn_weights, cached), x)

        x, (rows, kept) = lm.run(x, context, cache.lm | cache.shared if cache is not None else None, through)
        if cache is not None:
            written = self_attention.written(cache.lm, rows, context.positions)
            cache = Cache(written, kept if media.keep else cache.media, cache.shared)
        return lm.logits(x), cache


def interleave(
    config: XattnConfig, lm: tuple[Stack, Any, Any], xattn: tuple[Stack, Any, Any], x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
    """Runs the LM's blocks with one cross-attention layer before block i wherever i % every == offset.

    Scanned by groups of (one xattn layer, a scan over `every` blocks), so that 80 layers compile as fast as one of each; the
    blocks before the offset and those of an incomplete last group stand outside of the scan. A block takes its weights from
    the whole stack by its number: a scan over groups that sliced the stack would copy all of the LM's weights twice in a pass.

    Args:
        config: every and offset.
        lm: (the stack of blocks, its weights, its inputs or None), each with a leading layer axis.
        xattn: the same for the cross-attention layers.
        x: the embedded text.

    Returns:
        (x, (outputs of the blocks, outputs of the cross-attention layers)), stacked on leading layer axes.
    """
    if is_unrolled(lm[1]):
        return _interleave_unrolled(config, lm, xattn, x)
    (blocks, weights, inputs), (layers, xattn_weights, xattn_inputs) = lm, xattn
    every, offset = config.every, config.offset
    full = (blocks.num_layers - offset) // every
    border = offset + full * every
    number = jnp.arange(blocks.num_layers, dtype=jnp.int32)

    def run(x: Array, numbers: Array, inputs: Any) -> tuple[Array, Any]:
        return jax.lax.scan(lambda x, i: blocks.layer_of(weights, i[0], x, i[1]), x, (numbers, inputs))

    def group(x: Array, both: Any) -> tuple[Array, Any]:
        own, theirs = both
        with jax.named_scope("xattn"):
            x, kept = layers.layer(own[0], x, own[1])
        x, outputs = run(x, *theirs)
        return x, (outputs, kept)

    by_group = lambda tree: jax.tree.map(lambda w: w[offset:border].reshape(full, every, *w.shape[1:]), tree)  # noqa: E731
    outputs, last = [], []
    if offset:
        x, head = run(x, *layer_slice((number, inputs), slice(0, offset)))
        outputs.append(head)
    if full:
        own = (
            layer_slice((xattn_weights, xattn_inputs), slice(0, full))
            if border < blocks.num_layers
            else (xattn_weights, xattn_inputs)
        )
        x, (middle, kept) = jax.lax.scan(group, x, (own, by_group((number, inputs))))
        outputs.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), middle))
        last.append(kept)
    if border < blocks.num_layers:
        with jax.named_scope("xattn"):
            x, final_kept = layers.layer(layer_slice(xattn_weights, full), x, layer_slice(xattn_inputs, full))
        x, tail = run(x, *layer_slice((number, inputs), slice(border, None)))
        outputs.append(tail)
        last.append(jax.tree.map(lambda leaf: leaf[None], final_kept))
    return x, (_concatenate(outputs), _concatenate(last))


def _interleave_unrolled(
    config: XattnConfig, lm: tuple[Stack, Any, Any], xattn: tuple[Stack, Any, Any], x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
    """`interleave` on the weights of `core.stack.unrolled`: the figure of the paper, layer by layer."""
    (blocks, weights, inputs), (layers, xattn_weights, xattn_inputs) = lm, xattn
    outputs: list[Any] = []
    last: list[Any] = []
    for number in range(blocks.num_layers):
        if number % config.every == config.offset:
            with jax.named_scope("xattn"):
                x, kept = layers.layer(layer_slice(xattn_weights, len(last)), x, layer_slice(xattn_inputs, len(last)))
            last.append(kept)
        x, output = blocks.layer(layer_slice(weights, number), x, layer_slice(inputs, number))
        outputs.append(output)
    return x, (join_layers(outputs), join_layers(last))


def _concatenate(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def build(config: FlamingoConfig, *, arranged: bool = False, trains_vision: bool = False) -> Decoder:
    """Flamingo as pure functions of its weights (see `models.decoder.Decoder`).

    Args:
        config: of all parts.
        arranged: whether the functions take the towers as `arrange` makes them: NFNet's weights standardised once,
            the LM's queries, keys and values as one product. Both must then be frozen.
        trains_vision: whether the vision encoder is trained: its weights are taken as they are, and `token_losses` drops blocks of it
            (stochastic depth, if its config has any).
    """
    kept, fuse = config, arranged and config.lm.can_fuse
    if arranged:
        encoder = config.vision if trains_vision else vision.arranged(config.vision)
        config = dataclasses.replace(config, vision=encoder, lm=dataclasses.replace(config.lm, fused=fuse))

    def losses(
        batch: Batch, num_shards: int, dtype: Any, rng: Array | None = None, config: FlamingoConfig = config
    ) -> Array:
        model = Flamingo(config)
        pool = model.encode(batch.frames, batch.frame_mask, dtype, rng=rng)
        media = MediaContext(batch.media_index, pool, batch.media_slot, num_shards)
        logits, _ = model.decode(batch.tokens, self_attention.packed_context(batch.segment), media)
        return next_token_losses(*logits, batch.tokens, config.lm.vocab_size)

    def step(
        tokens: Array,
        positions: Array,
        media_index: Array,
        media: Media | None,
        chunk: tuple[int, int] | None,
        cache: Cache,
    ) -> tuple[Array, Cache]:
        context = self_attention.cached_context(positions, layer_slice(cache.lm["key"], 0).shape[1])
        seen = MediaContext(media_index) if media is None else MediaContext(media_index, *media, chunk=chunk, keep=True)
        logits, updated = Flamingo(config).decode(tokens, context, seen, cache)
        assert updated is not None  # a cache goes in, a cache comes out
        return joined_logits(*logits, config.lm.vocab_size), updated

    transformed_losses, transformed_step = hk.transform(losses), hk.transform(step)
    transformed_encode = hk.transform(
        lambda frames, frame_mask, dtype: Flamingo(config).encode(frames, frame_mask, dtype)
    )
    transformed_features = hk.transform(
        lambda frames, frame_mask, dtype: Flamingo(config).features(frames, frame_mask, dtype)
    )

    def token_losses(
        params: Params, batch: Batch, *, num_shards: int = 1, rng: Array | None = None
    ) -> Float32[Array, "B L"]:
        key = rng if trains_vision else None
        return transformed_losses.apply(params, None, batch, num_shards, _dtype(params), key)

    def encode(
        params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"]
    ) -> Float[Array, "M R D"]:
        return transformed_encode.apply(params, None, frames, frame_mask, _dtype(params))

    def features(
        params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"]
    ) -> Float32[Array, "M E"]:
        return transformed_features.apply(params, None, frames, frame_mask, _dtype(params))

    def extend(
        params: Params,
        cache: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float32[Array, "B T V"], Cache]:
        return transformed_step.apply(params, None, tokens, positions, media_index, media, chunk, cache)

    def empty_cache(batch_size: int, length: int, dtype: Any, params: Params | None = None) -> Cache:
        heads = config.xattn.num_heads or config.lm.num_heads
        size = config.xattn.head_dim or config.lm.width // heads
        layers = config.xattn.num_layers(config.lm.num_layers)
        shape = (layers, batch_size, 1, config.resampler.num_latents, heads, size)
        media = {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
        shared = shared_cache(config.lm, params, "flamingo/lm/blocks", length, dtype)
        return Cache(empty_lm_cache(config.lm, batch_size, length, dtype), media, shared)

    def init(rng: Array) -> Any:
        return transformed_losses.init(rng, _example(kept), 1, jnp.float32, None, kept)

    def arrange(params: Params) -> Params:
        if not arranged:
            return params
        encoder, blocks = (trees.under(params, f"flamingo/{part}") for part in ("vision", "lm/blocks"))
        rest = {module: weights for module, weights in params.items() if module not in {*encoder, *blocks}}
        encoder = encoder if trains_vision else vision.arrange(config.vision, encoder)
        return trees.merge(rest, encoder, fuse_blocks(blocks) if fuse else blocks)

    def fuse_blocks(blocks: Params) -> Params:
        prefix = "flamingo/lm/blocks"
        fused = lm_lib.fuse(kept.lm, trees.subtree(blocks, prefix))
        return {f"{prefix}/{module}": weights for module, weights in fused.items()}

    def arranged_init(rng: Array) -> Any:
        return transformed_losses.init(rng, _example(config), 1, jnp.float32, None, config)

    return Decoder(init, token_losses, encode, extend, empty_cache, arrange, arranged_init, features)


def _dtype(params: Params) -> Any:
    """The dtype in which the weights were handed over: images are computed in it too."""
    return params["flamingo/resampler"]["latents"].dtype


def _example(config: FlamingoConfig) -> Batch:
    """The smallest batch from which the shapes of all weights follow."""
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

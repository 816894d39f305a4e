"""Flamingo: a frozen vision encoder and a frozen LM, joined by trained layers (paper, 2, Figure 3).

    frames [M F S S 3]                          tokens [B T]
        |  NFNet or ViT          (frozen)           |  embed               (frozen)
    features [M F P E]                          x [B T D]
        |  Perceiver Resampler   (trained)          |
    latents [M R W]                                 |  before every n-th block:
        |  linear                (trained)          |  GATED XATTN-DENSE   (trained)
    media [M R D] --------------------------------->|  LM block            (frozen)
                                                    |  head
                                                p(next token) [B T V]

Frozen modules: flamingo/vision and flamingo/lm. Trained modules: flamingo/resampler,
flamingo/media, flamingo/xattn and flamingo/new_tokens; and flamingo/grafted, if the layers are on
top of the LM (`graft`). In fine-tuning and in ablations (paper, B.2.2; Table 3, row viii) frozen
modules are trained too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core import stack, trees
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.notation import Array, Float, Float32, Int, UInt8
from flamingo_jax.core.stack import Stack, layer_slice
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import halves, self_attention, vision
from flamingo_jax.models import lm as lm_lib
from flamingo_jax.models.cache import GRAFTED, Cache, Media
from flamingo_jax.models.gated_xattn import GatedXattn, XattnConfig, as_layers_take
from flamingo_jax.models.losses import joined_logits, next_token_losses
from flamingo_jax.models.media_context import MediaContext
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import Resampler, ResamplerConfig
from flamingo_jax.models.vision import VisionConfig
from flamingo_jax.nn.linear import linear


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """The parts of a Flamingo, and its new tokens.

    The paper adds "<EOC>" alone; its "<image>" is plain text.

    Attributes:
        vision: the vision encoder.
        resampler: None = the encoder's features are the visual tokens (Llama 3.2), of images and
            not of videos.
        lm: the language model.
        xattn: the layers between its blocks.
        new_tokens: have the ids after the LM's vocabulary.
        predicts_new_tokens: whether the new tokens have output rows; else they are read, and never
            written or learnt as a target (Llama 3.2: `<|image|>`).
    """

    vision: VisionConfig
    resampler: ResamplerConfig | None
    lm: lm_lib.LMConfig
    xattn: XattnConfig
    new_tokens: tuple[str, ...] = ("<EOC>",)
    predicts_new_tokens: bool = True

    def __post_init__(self) -> None:
        if self.xattn.num_layers(self.lm.num_layers) < 1:
            raise ConfigError(
                f"xattn.offset is {self.xattn.offset}, and the language model has "
                f"{self.lm.num_layers} blocks: there would be no cross-attention. Expected an "
                "offset below."
            )
        if self.xattn.num_heads > self.lm.width and not self.xattn.head_dim:
            raise ConfigError(
                f"xattn.num_heads is {self.xattn.num_heads} and xattn.head_dim is 0, which shares "
                f"the language model's width of {self.lm.width} among the heads: expected fewer "
                "heads, or the size of one as xattn.head_dim."
            )

        heads, kv_heads = self.xattn.num_heads or self.lm.num_heads, self.xattn.num_kv_heads
        if kv_heads and heads % kv_heads:
            raise ConfigError(
                f"xattn.num_kv_heads is {kv_heads}, and its layers have the language model's "
                f"{heads} heads: expected a divisor, so that as many heads share each."
            )
        if self.resampler is None and (
            self.xattn.media != "language" or isinstance(self.vision, NFNetConfig)
        ):
            raise ConfigError(
                f"resampler is None, xattn.media is {self.xattn.media!r} and the encoder is a "
                f"{type(self.vision).__name__}: without a resampler, the features of a ViT are "
                "mapped to the language model's width. Expected media = 'language' and a ViT; or "
                "a resampler."
            )

    @property
    def num_latents(self) -> int:
        """R, the visual tokens of an image or a video."""
        if self.resampler is not None:
            return self.resampler.num_latents
        assert not isinstance(self.vision, NFNetConfig)
        tiles = max(vision.tiles_of(self.vision), 1)
        return tiles * vision.num_patches(self.vision, self.vision.image_size)

    @property
    def grafted(self) -> lm_lib.LMConfig | None:
        """The trained blocks on top of the LM, which have its shape; None = there are none."""
        number = self.xattn.grafted_layers
        if not number:
            return None
        return dataclasses.replace(self.lm, num_layers=number, fused=False, lora=None)


class FlamingoModule(hk.Module):
    """The model, with a method for each thing that it does.

    `models.api.flamingo` makes functions of the weights from the methods.
    """

    def __init__(
        self,
        config: FlamingoConfig,
        *,
        trains: Callable[[str], bool] = lambda path: False,
        name: str = "flamingo",
    ):
        """Describes the model.

        Args:
            config: its parts.
            trains: says whether a weight of the LM's blocks is trained, by its path below the
                stack.
            name: module name.
        """
        super().__init__(name=name)
        self.config, self._trains = config, trains

    @hk.name_like("__call__")
    def encode(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: vision.FrameMask,
        *,
        dtype: DTypeLike = jnp.float32,
        rng: Array | None = None,
    ) -> Float[Array, "M R D"]:
        """Returns R visual tokens for each image or video.

        Without a resampler they are the features of all tiles, and 0 for tiles that are padding:
        no token attends a latent of zeros.

        Frames are spread over all chips of the mesh, and so are the resampler's visual inputs if
        there are enough. So the chips that share one model exchange only latents, which are smaller
        than features.

        Args:
            frames: pixels, 0..255.
            frame_mask: which frames are real.
            dtype: of the computation.
            rng: for a vision encoder that is trained (stochastic depth); None drops no block.
        """
        seen = vision.encode_visuals(
            self.config.vision, frames, frame_mask, dtype, is_training=rng is not None, rng=rng
        )
        if self.config.resampler is None:
            latents = seen.reshape(seen.shape[0], -1, seen.shape[-1])
            if latents.shape[1] != self.config.num_latents:
                raise ConfigError(
                    f"There is no resampler, and a visual input has {seen.shape[1]} frames of "
                    f"{seen.shape[2]} features; expected {self.config.num_latents} features, those "
                    "of one image of the encoder's size. A video needs a resampler."
                )
        else:
            latents = Resampler(self.config.resampler, name="resampler")(seen, frame_mask != 0)
        latents = constrain(latents, "media", "latents", None)
        if self.config.xattn.media == "resampler":
            return latents
        media = linear(
            latents, (self.config.lm.width,), axes=("vision", "embed"), bias=True, name="media"
        )
        if self.config.resampler is not None:
            return media
        real = jnp.repeat(frame_mask != 0, seen.shape[2], axis=1)
        return jnp.where(real[:, :, None], media, 0)

    @hk.name_like("__call__")
    def features(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: vision.FrameMask,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float32[Array, "M E"]:
        """Returns the mean of the vision encoder's features, to find similar images."""
        features = vision.encode_visuals(self.config.vision, frames, frame_mask, dtype)
        return vision.mean_features(features, frame_mask)

    @hk.name_like("__call__")
    def token_losses(
        self,
        batch: Batch[Array],
        *,
        dtype: DTypeLike = jnp.float32,
        num_shards: int = 1,
        rng: Array | None = None,
    ) -> Float32[Array, "B T"]:
        """Returns -log p(token l+1 | tokens and images before it), T = L - 1 (paper, equation 1).

        Arguments as in `models.api.Model`. A batch of text alone (N = 0) runs no vision encoder and
        no cross-attention; the dense parts of the layers see it. The loss of a new token that is
        never predicted is 0.
        """
        pool = None
        if batch.media_slot.shape[1]:
            pool = self.encode(batch.frames, batch.frame_mask, dtype=dtype, rng=rng)
        media = MediaContext(batch.media_index, pool, batch.media_slot, num_shards)
        logits, _ = self.decode(batch.tokens, self_attention.packed_context(batch.segment), media)
        losses = next_token_losses(*logits, batch.tokens, self.config.lm.vocab_size)
        if self.config.predicts_new_tokens:
            return losses
        return jnp.where(batch.tokens[:, 1:] < self.config.lm.vocab_size, losses, 0.0)

    @hk.name_like("__call__")
    def extend(
        self,
        cache: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float32[Array, "B T V"], Cache]:
        """Reads the next tokens of each sequence; arguments as in `models.api.Model`."""
        context = self_attention.cached_context(
            positions, layer_slice(cache.lm["key"], 0).shape[1], is_empty=cache.is_empty
        )
        seen = (
            MediaContext(media_index)
            if media is None
            else MediaContext(media_index, *media, chunk=chunk, keep=True)
        )
        logits, updated = self.decode(tokens, context, seen, cache)
        assert updated is not None  # a cache goes in, a cache comes out
        return joined_logits(*logits, self.config.lm.vocab_size), updated

    @hk.name_like("__call__")
    def decode(
        self,
        tokens: Int[Array, "B T"],
        context: lm_lib.Context,
        media: MediaContext,
        cache: Cache | None = None,
    ) -> tuple[tuple[Float32[Array, "B T V"], Float32[Array, "B T X"] | None], Cache | None]:
        """Returns ((logits of the vocabulary, those of the X new tokens), the updated cache).

        Args:
            tokens: of a batch, or the next tokens of each sequence.
            context: their positions and mask.
            media: the visual inputs that they may attend.
            cache: of the tokens before; None in training.
        """
        config = self.config
        new = None
        if config.new_tokens:
            size = (len(config.new_tokens), config.lm.width)
            new = lm_lib.NewTokens(*size, are_predicted=config.predicts_new_tokens)()
        lm = lm_lib.LM(config.lm, new)
        x = lm.embed(tokens, context.positions)
        media = as_layers_take(
            media, config.xattn, context.segment, has_padding=config.resampler is None
        )
        xattn = Stack(
            config.xattn.num_layers(config.lm.num_layers),
            lambda x, cached: GatedXattn(config.xattn, config.lm.num_heads, media)(x, cached),
            name="xattn",
            remat=config.lm.remat,
        )
        cached = cache.media if cache is not None and media.pool is None else None
        weights = xattn.weights(x, layer_slice(cached, 0))
        own = None if cache is None else cache.of_blocks()
        if config.grafted is None:

            def between(blocks: Stack, weights: Any, x: Array, inputs: Any) -> tuple[Array, Any]:
                split = _split(weights, self._trains)
                run = _by_halves if halves.are_possible(config.lm, x, own) else Stack.scan_of
                return interleave(config.xattn, (blocks, split, inputs), layers, x, run)

            # With a cache nothing is trained.
            layers = (xattn, (weights, {}) if cache is None else ({}, weights), cached)
            x, (rows, kept) = lm.run(x, context, own, between)
        else:

            def in_order(blocks: Stack, weights: Any, x: Array, inputs: Any) -> tuple[Array, Any]:
                trained, frozen = _split(weights, self._trains)
                return blocks.scan_of(frozen, x, (blocks.numbers(weights), inputs, trained))

            x, rows = lm.run(x, context, own, in_order)
            blocks = lm_lib.block_stack(config.grafted, context, name="grafted")
            own = None if cache is None else cache.of_blocks(GRAFTED)
            inputs = lm_lib.inputs_of(config.grafted, own)
            own_weights = blocks.weights(x, layer_slice(inputs, 0))
            of_blocks = (blocks, own_weights, inputs)
            x, (of_grafted, kept) = graft(of_blocks, (xattn, weights, cached), x)
            if cache is not None:
                rows |= {f"{GRAFTED}{name}": leaf for name, leaf in of_grafted.items()}
        if cache is not None:
            written = self_attention.written(cache.lm, rows, context.positions)
            cache = Cache(written, kept if media.keep else cache.media, cache.shared)
        return lm.logits(x), cache


def _split(
    weights: trees.Params, trains: Callable[[str], bool]
) -> tuple[trees.Params, trees.Params]:
    """Splits the weights of the LM's blocks into (trained ones, frozen ones)."""
    return trees.partition(weights, {path: trains(path) for path in trees.flatten(weights)})


def _by_halves(
    blocks: Stack, frozen: trees.Params, x: Float[Array, "B T D"], own: Any
) -> tuple[Float[Array, "B T D"], None]:
    """Runs some of the LM's blocks as `Stack.scan_of` does, with the halves of the rows in turn."""
    return halves.join(blocks.body_of(frozen, halves.split(x), own)), None


def graft(
    blocks: tuple[Stack, Any, Any], xattn: tuple[Stack, Any, Any], x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
    """Runs the trained stack on top of the LM: n x [xattn, block] ("grafting", Table 3, row iv).

    The input is the LM's residual stream, the output goes to its norm and its head. So the frozen
    table of embeddings makes the logits (v1, the ablation's footnote). All layers start at random
    (paper, 3.3); the gates of cross-attention are as `XattnConfig` says, self-attention and
    feed-forward have none. So the model does not start as the language model.

    Args:
        blocks: (the stack of new blocks, its weights, its inputs or None), stacked or unrolled.
        xattn: the same for the cross-attention layers; as many.
        x: what the LM returns.

    Returns:
        (x, (outputs of the blocks, outputs of the cross-attention layers)).
    """
    (own_blocks, *of_blocks), (layers, *of_layers) = blocks, xattn

    def pair(x: Array, both: Any) -> tuple[Array, Any]:
        (block, inputs), (layer, cached) = both
        x, kept = layers.layer(layer, x, cached)
        x, outputs = own_blocks.layer(block, x, inputs)
        return x, (outputs, kept)

    with jax.named_scope("xattn"):  # a part of the planner's table
        return stack.scan(pair, x, (of_blocks, of_layers))


def interleave(
    config: XattnConfig,
    lm: tuple[Stack, tuple[trees.Params, trees.Params], Any],
    xattn: tuple[Stack, tuple[trees.Params, trees.Params], Any],
    x: Float[Array, "B T D"],
    run_blocks: Callable[..., tuple[Array, Any]] = Stack.scan_of,
) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
    """Runs the LM's blocks, with a cross-attention layer before block i if i % every == offset.

        blocks before the offset, n x [xattn, `every` blocks], [an incomplete last group]

    The n groups are scanned, so that 80 layers compile as fast as one of each. A layer reads its
    frozen weights from the whole stack, by index. A scan over a part of a stack would copy all
    weights of that part in each pass. Trained weights are sliced (`Stack.layer_of`).

    Args:
        config: has `every` and `offset`.
        lm: (the stack of blocks, its weights, its inputs or None), stacked or unrolled. The weights
            are (trained ones, frozen ones).
        xattn: the same for the cross-attention layers, of which training trains all.
        x: the embedded text.
        run_blocks: runs the blocks of a group; arguments as of `Stack.scan_of`.

    Returns:
        (x, (outputs of the blocks, outputs of the cross-attention layers)), stacked or unrolled
        like the weights.
    """
    (blocks, (trained, frozen), inputs), (layers, (xattn_trained, xattn_frozen), cached) = lm, xattn
    every, offset, num_blocks = config.every, config.offset, blocks.num_layers
    full = (num_blocks - offset) // every
    border = offset + full * every
    of_blocks = (blocks.numbers((trained, frozen)), inputs, trained)
    numbers = layers.numbers((xattn_trained, xattn_frozen))
    of_layers = (numbers, cached, xattn_trained)

    run = functools.partial(run_blocks, blocks, frozen)

    def group(x: Array, both: Any) -> tuple[Array, Any]:
        (number, inputs, weights), theirs = both
        with jax.named_scope("xattn"):
            x, kept = layers.layer_of(xattn_frozen, number, x, inputs, trained=weights)
        x, outputs = run(x, theirs)
        return x, (outputs, kept)

    outputs, last = [], []
    if offset:
        x, head = run(x, layer_slice(of_blocks, slice(0, offset)))
        outputs.append(head)
    if full:
        own = of_layers if border == num_blocks else layer_slice(of_layers, slice(0, full))
        theirs = stack.grouped(layer_slice(of_blocks, slice(offset, border)), full)
        x, (middle, kept) = stack.scan(group, x, (own, theirs))
        outputs.append(stack.ungrouped(middle))
        last.append(kept)
    if border < num_blocks:
        x, (tail, kept) = group(
            x, (layer_slice(of_layers, full), layer_slice(of_blocks, slice(border, None)))
        )
        outputs.append(tail)
        last.append(stack.single(kept, numbers))
    return x, (stack.concatenate(outputs), stack.concatenate(last))

"""The contrastive stage: an image and a text encoder in one space (paper, Section 2.1, B.1.3).

    frames [B 1 S S 3] --NFNet--> [B h w E] --mean--> --linear--> --to length 1--> V [B J]
    tokens [B L] --BERT--> [B L W] --mean over tokens--> --linear--> --to length 1--> T [B J]

    loss = cross_entropy(beta T V^T) + cross_entropy(beta V T^T)        target: the diagonal

As in CLIP and ALIGN. Flamingo keeps only the image encoder ("contrastive/vision").
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core import ranges
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.core.params import param
from flamingo_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from flamingo_jax.models.vision import VisionConfig, encode_frames
from flamingo_jax.nn.linear import linear


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """The joint space of the two encoders, and the loss.

    Attributes:
        joint_dim: J, size of the joint space (1376 in the paper).
        initial_temperature: beta at the start, the inverse temperature; it is learnt.
        label_smoothing: share of the target that is spread over the whole batch (0.1 in the paper).
        duplicates: how two pairs of a batch with the same caption count for each other: as
            "negatives" (the paper), or as "positives", for small worlds in which captions repeat.
        text_pooling: the text's embedding: the "mean" over its tokens (the paper), or the "last"
            one, which is the only one that attends all tokens in CLIP's causal encoder.
        chunk: the field of version 0.4.0 for `data.datasets.NAME.chunks`, for its configs and
            checkpoints: rows of each data shard that are encoded at a time; 0 = by `chunks`.
    """

    joint_dim: int = 1376
    initial_temperature: float = 10.0
    label_smoothing: float = 0.1
    duplicates: Literal["negatives", "positives"] = "negatives"
    text_pooling: Literal["mean", "last"] = "mean"
    chunk: int = 0

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "joint_dim")
        ranges.check(self, ranges.whole(0), "chunk")
        ranges.check(self, ranges.POSITIVE, "initial_temperature")
        ranges.check(self, ranges.SHARE_BELOW_ONE, "label_smoothing")


class Contrastive(hk.Module):
    """Both encoders with their projections."""

    def __init__(
        self,
        vision: VisionConfig,
        text: TextEncoderConfig,
        config: ContrastiveConfig,
        name: str = "contrastive",
    ):
        super().__init__(name=name)
        self.vision, self.text, self.config = vision, text, config

    def __call__(
        self,
        frames: UInt8[Array, "B 1 S S 3"],
        tokens: Int[Array, "B L"],
        segment: Int[Array, "B L"],
        *,
        is_training: bool = False,
        rng: Array | None = None,
    ) -> tuple[Float32[Array, "B J"], Float32[Array, "B J"], Float32[Array, ""]]:
        """Returns (V, T, beta): image and text embeddings of length 1, and the inverse temperature.

        Args:
            frames: one image for each caption.
            tokens: captions.
            segment: 0 where a token is padding; a caption has at least one real token.
            is_training: whether the image encoder drops blocks (stochastic depth).
            rng: for stochastic depth: one key, or one for each image.
        """
        words = TextEncoder(self.text, name="text")(tokens, segment)
        v = self.embed_images(frames[:, 0], words.dtype, is_training=is_training, rng=rng)
        t = self._joined(words, segment)
        start = hk.initializers.Constant(math.log(self.config.initial_temperature))
        beta = jnp.exp(param("log_temperature", (), (), start).astype(jnp.float32))
        return v, t, beta

    @hk.name_like("__call__")
    def embed_images(
        self,
        frames: UInt8[Array, "B S S 3"],
        dtype: DTypeLike,
        *,
        is_training: bool = False,
        rng: Array | None = None,
    ) -> Float32[Array, "B J"]:
        """Returns V, the images' embeddings, computed in `dtype`; other arguments as above."""
        frames = constrain(frames, "images", None, None, None)
        features = encode_frames(self.vision, frames, dtype, is_training=is_training, rng=rng)
        picture = jnp.mean(features, axis=1, dtype=jnp.float32).astype(features.dtype)
        shape, axes = (self.config.joint_dim,), ("vision", "joint")
        v = linear(picture, shape, axes=axes, name="vision_projection")
        return constrain(to_length_one(v), "images", "joint")

    @hk.name_like("__call__")
    def embed_visuals(
        self, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"], dtype: DTypeLike
    ) -> Float32[Array, "M J"]:
        """Returns embeddings of images and videos, of length 1.

        A video has the mean of its frames' embeddings (paper, Table 7: Kinetics).
        """
        each = self.embed_images(frames.reshape(-1, *frames.shape[2:]), dtype)
        each = each.reshape(*frames.shape[:2], -1)
        return to_length_one(jnp.sum(jnp.where(frame_mask[:, :, None], each, 0.0), axis=1))

    @hk.name_like("__call__")
    def embed_texts(
        self, tokens: Int[Array, "B L"], segment: Int[Array, "B L"]
    ) -> Float32[Array, "B J"]:
        """Returns T, the texts' embeddings; arguments as above."""
        return self._joined(TextEncoder(self.text, name="text")(tokens, segment), segment)

    @hk.name_like("__call__")
    def _joined(
        self, words: Float[Array, "B L W"], segment: Int[Array, "B L"]
    ) -> Float32[Array, "B J"]:
        if self.config.text_pooling == "last":
            last = jnp.sum(segment > 0, axis=1) - 1
            sentence = jnp.take_along_axis(words, last[:, None, None], axis=1)[:, 0]
        else:
            real = jnp.broadcast_to((segment > 0)[:, :, None], words.shape)
            sentence = jnp.mean(words, axis=1, where=real, dtype=jnp.float32).astype(words.dtype)
        shape, axes = (self.config.joint_dim,), ("embed", "joint")
        t = linear(sentence, shape, axes=axes, name="text_projection")
        return constrain(to_length_one(t), "images", "joint")


def same_caption(tokens: Int[Array, "B L"]) -> Bool[Array, "B B"]:
    """Returns True for two rows with the same tokens."""
    return jnp.all(tokens[:, None, :] == tokens[None, :, :], axis=-1)


def contrastive_loss(
    v: Float[Array, "B J"],
    t: Float[Array, "B J"],
    beta: Float[Array, ""],
    *,
    label_smoothing: float,
    same: Bool[Array, "B B"] | None = None,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Returns the two-term InfoNCE: text-to-image and image-to-text cross-entropy (paper, B.1.3).

    With `same`, a row's target is spread evenly over its positives. Label smoothing takes its share
    from the target and spreads it over the batch, so that the loss cannot reach 0.

    Args:
        v: image embeddings of length 1.
        t: text embeddings of length 1.
        beta: inverse temperature.
        label_smoothing: share in 0..1.
        same: pairs that count as positives; symmetric and True on the diagonal. None = the
            diagonal.

    Returns:
        (loss, metrics): the two terms, recall@1 in both directions, and beta.
    """
    # No chip has all of [B, B]. Each has the rows of its texts, which are columns of the transpose:
    # they need not move.
    by_text, by_image = ("pairs", None), (None, "pairs")
    positives = constrain(jnp.eye(v.shape[0], dtype=bool) if same is None else same, *by_text)
    targets = positives / jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.float32)
    targets = (1.0 - label_smoothing) * targets + label_smoothing / v.shape[0]
    similarity = jnp.einsum(
        "ij,kj->ik", t, v, precision="highest", preferred_element_type=jnp.float32
    )
    similarity = constrain(similarity, *by_text)

    def cross_entropy(logits: Array, place: tuple[str | None, ...]) -> Array:
        log_probs = jax.nn.log_softmax(logits, axis=1)
        return -jnp.mean(jnp.sum(constrain(targets, *place) * log_probs, axis=1))

    text_to_image = cross_entropy(beta * similarity, by_text)
    image_to_text = cross_entropy(beta * constrain(similarity.T, *by_image), by_image)
    metrics = {
        "text_to_image_loss": text_to_image,
        "image_to_text_loss": image_to_text,
        "text_to_image_recall": _recall(similarity, positives),
        "image_to_text_recall": _recall(
            constrain(similarity.T, *by_image), constrain(positives, *by_image)
        ),
        "inverse_temperature": beta.astype(jnp.float32),
    }
    return text_to_image + image_to_text, metrics


def _recall(similarity: Float[Array, "B B"], positives: Bool[Array, "B B"]) -> Float32[Array, ""]:
    """Share of rows with a positive as their most similar column (recall@1 within the batch)."""
    best = jnp.argmax(similarity, axis=1)
    found = positives & (jnp.arange(len(similarity))[None, :] == best[:, None])
    return jnp.mean(jnp.any(found, axis=1).astype(jnp.float32))


def to_length_one(x: Float[Array, "B J"]) -> Float32[Array, "B J"]:
    """Returns each row divided by its length, in float32; a row of zeros stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

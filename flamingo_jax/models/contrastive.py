"""The contrastive stage: an image encoder and a text encoder meet in one space (paper, Section 2.1, B.1.3; CLIP, ALIGN).

    frames [B 1 S S 3] --NFNet--> [B h w E] --mean--linear--L2--> V [B J] --+
                                                                            +-- beta V T^T --> two cross-entropies
    tokens [B L] --BERT--> [B L W] --mean over tokens--linear--L2--> T [B J] --+

Of this model Flamingo keeps the image encoder alone ("contrastive/vision").
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.core.params import param
from flamingo_jax.models.nfnet import NFNet, NFNetConfig, normalise
from flamingo_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from flamingo_jax.nn.linear import linear


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """What joins the two encoders, and the loss.

    Attributes:
        joint_dim: J, size of the joint space (1376 in the paper).
        initial_temperature: beta at the start, the inverse temperature; it is learnt.
        label_smoothing: share of the target that is spread over the whole batch (0.1 in the paper).
        duplicates: what another pair of the batch with the very same caption counts as; "negatives" is the paper's
            loss, "positives" suits small worlds in which captions repeat.
    """

    joint_dim: int = 1376
    initial_temperature: float = 10.0
    label_smoothing: float = 0.1
    duplicates: Literal["negatives", "positives"] = "negatives"


class Contrastive(hk.Module):
    """Both encoders with their projections."""

    def __init__(
        self, vision: NFNetConfig, text: TextEncoderConfig, config: ContrastiveConfig, name: str = "contrastive"
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
        """Returns (V, T, beta): image and text embeddings of length 1 in float32, and the inverse temperature.

        Args:
            frames: UInt8[B, 1, S, S, 3] one image for each caption.
            tokens: Int[B, L] captions.
            segment: Int[B, L] 0 where a token is padding; a caption has at least one real token.
            is_training: passed to NFNet (stochastic depth).
            rng: passed to NFNet.
        """
        words = TextEncoder(self.text, name="text")(tokens, segment)
        images = normalise(frames[:, 0], words.dtype)
        grid = NFNet(self.vision, name="vision")(images, is_training=is_training, rng=rng)

        real = jnp.broadcast_to((segment > 0)[:, :, None], words.shape)
        sentence = jnp.mean(words, axis=1, where=real, dtype=jnp.float32).astype(words.dtype)
        picture = jnp.mean(grid, axis=(1, 2), dtype=jnp.float32).astype(grid.dtype)
        joint = (self.config.joint_dim,)
        v = linear(picture, joint, axes=("vision", "joint"), name="vision_projection")
        t = linear(sentence, joint, axes=("embed", "joint"), name="text_projection")
        start = hk.initializers.Constant(math.log(self.config.initial_temperature))
        beta = jnp.exp(param("log_temperature", (), (), start).astype(jnp.float32))
        return _to_length_one(v), _to_length_one(t), beta


def same_caption(tokens: Int[Array, "B L"]) -> Bool[Array, "B B"]:
    """Returns which pairs of rows hold the same tokens."""
    return jnp.all(tokens[:, None, :] == tokens[None, :, :], axis=-1)


def contrastive_loss(
    v: Float[Array, "B J"],
    t: Float[Array, "B J"],
    beta: Float[Array, ""],
    *,
    label_smoothing: float,
    same: Bool[Array, "B B"] | None = None,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Two-term InfoNCE (paper, B.1.3): the sum of the text-to-image and the image-to-text cross-entropy.

    With `same`, a row's target is spread evenly over all its positives. Label smoothing takes its share from the
    target and spreads it over the batch, which makes 0 unreachable.

    Args:
        v: image embeddings of length 1.
        t: text embeddings of length 1.
        beta: inverse temperature.
        label_smoothing: share in 0..1.
        same: which pairs count as positives; symmetric and True on the diagonal. None is the diagonal alone.

    Returns:
        (loss, metrics): the two terms, recall@1 both ways, and beta.
    """
    positives = jnp.eye(v.shape[0], dtype=bool) if same is None else same
    targets = positives / jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.float32)
    targets = (1.0 - label_smoothing) * targets + label_smoothing / v.shape[0]
    similarity = jnp.einsum("ij,kj->ik", t, v, precision="highest", preferred_element_type=jnp.float32)

    text_to_image = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(beta * similarity, axis=1), axis=1))
    image_to_text = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(beta * similarity.T, axis=1), axis=1))
    metrics = {
        "text_to_image_loss": text_to_image,
        "image_to_text_loss": image_to_text,
        "text_to_image_recall": _recall(similarity, positives),
        "image_to_text_recall": _recall(similarity.T, positives),
        "inverse_temperature": beta.astype(jnp.float32),
    }
    return text_to_image + image_to_text, metrics


def _recall(similarity: Float[Array, "B B"], positives: Bool[Array, "B B"]) -> Float32[Array, ""]:
    """Share of rows whose most similar column is a positive (recall@1 within the batch)."""
    best = jnp.argmax(similarity, axis=1)
    return jnp.mean(jnp.take_along_axis(positives, best[:, None], axis=1).astype(jnp.float32))


def _to_length_one(x: Float[Array, "B J"]) -> Float32[Array, "B J"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

"""What a stage minimises: a pair of pure functions, and three tables.

The training loop knows nothing else.

    language_model   next token of packed text                               (Chinchilla's recipe)
    contrastive      two-term InfoNCE over one dataset's batch               (paper, B.1.3)
    captioning       next token given the images before it, towers frozen    (paper, equation 1 and section 2.4)

The loss of a dataset's batch is sum(w * nll) / sum(w) over the whole batch, on however many devices
it lies: the mean over the tokens that are predicted. The paper writes a sum over tokens inside an
expectation and leaves the normalisation open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.data.config import NO_AUGMENTATION, AugmentConfig
from flamingo_jax.data.images.augment import augment
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import contrastive as contrastive_lib
from flamingo_jax.models.api import Model
from flamingo_jax.models.encoders import ContrastiveModel
from flamingo_jax.models.flamingo import FROZEN
from flamingo_jax.training.gradient_cache import in_chunks

Metrics = dict[str, Array]


def _no_gauges(params: trees.Params) -> Metrics:
    del params
    return {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A stage, as the training loop sees it.

    Attributes:
      name: "language_model", "contrastive" or "captioning"; for messages.
      init: init(rng) -> weights, a tree {module: {name: float32 array}}, all born by
          `core.params.param`.
      loss: loss(weights, batch, rng) -> (float32 scalar, metrics); pure. The weights arrive in the
          compute dtype.
      frozen: table (regular expression, bool) over all weights: which get no gradient.
      decay: table (regular expression, float) over the trainable weights: the share of
          `optimizer.weight_decay` that each gets.
      groups: table (regular expression, "vision" or "rest") over the trainable weights: whose
          settings of the optimizer each has.
      compute_form: compute_form(weights) -> the weights as `loss` takes them: frozen ones may be in
          another form (`models.frozen`).
      compute_form_init: compute_form_init(rng) -> weights in that form, for their names and axes;
          None: the same as `init`.
      gauges: gauges(weights) -> numbers to log that need no batch, such as the gates of Figure 6;
          scalars or one value per layer.
    """

    name: str
    init: Callable[[Array], trees.Params]
    loss: Callable[[trees.Params, Any, Array], tuple[Array, Metrics]]
    frozen: trees.Table
    decay: trees.Table
    groups: trees.Table = ((r".*", "rest"),)
    compute_form: Callable[[trees.Params], trees.Params] = lambda params: params
    compute_form_init: Callable[[Array], trees.Params] | None = None
    gauges: Callable[[trees.Params], Metrics] = _no_gauges


def weighted_mean(nll: Float[Array, "B T"], weights: Float[Array, "B T"]) -> Float[Array, ""]:
    """Returns sum(weights * nll) / sum(weights), in float32.

    0 for a batch in which nothing is predicted.
    """
    total = jnp.sum(weights.astype(jnp.float32))
    return jnp.sum(nll.astype(jnp.float32) * weights) / jnp.maximum(total, 1e-8)


def language_model(model: Model) -> Objective:
    """The language model alone, on packed text; `model` has its weights under "lm/"."""
    return Objective(
        name="language_model",
        init=model.init,
        loss=_next_token_loss(model, num_shards=1),  # text has no pool of images
        frozen=((r"lm(/.*)?", False),),
        decay=((r"lm(/.*)?", 1.0),),
    )


def captioning(
    model: Model,
    *,
    num_shards: int = 1,
    augmentation: AugmentConfig = NO_AUGMENTATION,
    trains_vision: bool = False,
) -> Objective:
    """Flamingo: both towers frozen.

    No decay on the resampler, 0.1 on all else that is trained (paper, B.1.2).

    In fine-tuning the vision encoder is trained too (B.2.2). The decay that it gets there is not
    stated: here none, as the resampler.

    Args:
        model: with its weights under "flamingo/"; built for what is trained.
        num_shards: data shards, each with its own pool of images in the batch.
        augmentation: random flip and colours of the images.
        trains_vision: whether the vision encoder is trained too.
    """
    vision = r"flamingo/vision/.*"
    decay: trees.Table = (
        (r"flamingo/resampler(/.*)?", 0.0),
        (r"flamingo/(media|xattn|new_tokens)(/.*)?", 1.0),
    )
    groups: trees.Table = ((r"flamingo/(?!vision/).*", "rest"),)
    return Objective(
        name="captioning",
        init=model.init,
        loss=_next_token_loss(model, num_shards, augmentation),
        frozen=tuple(
            (row, is_frozen and not (trains_vision and row == vision)) for row, is_frozen in FROZEN
        ),
        decay=(*decay, (vision, 0.0)) if trains_vision else decay,
        groups=(*groups, (vision, "vision")) if trains_vision else groups,
        compute_form=model.compute_form,
        compute_form_init=model.compute_form_init,
        gauges=_gates,
    )


def contrastive(
    model: ContrastiveModel,
    *,
    num_shards: int = 1,
    augmentation: AugmentConfig = NO_AUGMENTATION,
) -> Objective:
    """The two towers against each other, over the whole batch of one dataset.

    The temperature is not decayed.

    Each row has one image, and the pool holds the rows' images in order (M = B).

    Args:
        model: the two towers, their joint space and the loss.
        num_shards: data shards, each with its part of the rows.
        augmentation: random flip and colours of the images.
    """
    config = model.config

    def loss(params: trees.Params, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
        if len(batch.frames) != len(batch.tokens):
            raise ValueError(
                f"The contrastive batch has {len(batch.tokens)} texts and a pool of "
                f"{len(batch.frames)} images; expected one image for each text: use datasets of "
                "kind 'captions' and leave their pool unset."
            )
        # Augmented and dropped out by a key of its own, a row is embedded the same in any chunk.
        rows = (batch, jax.random.split(rng, len(batch.tokens)))

        def embed_rows(
            params: trees.Params, rows: tuple[Batch, Array]
        ) -> tuple[Array, Array, Array]:
            part, keys = _augmented(rows[0], augmentation), rows[1]
            v, t, beta = model.embed(params, part.frames, part.tokens, part.segment, rng=keys)
            return v, t, jnp.broadcast_to(beta, len(v))

        v, t, beta = in_chunks(embed_rows, params, rows, chunk=config.chunk, num_shards=num_shards)
        same = (
            contrastive_lib.same_caption(batch.tokens) if config.duplicates == "positives" else None
        )
        return contrastive_lib.contrastive_loss(
            v, t, beta[0], label_smoothing=config.label_smoothing, same=same
        )

    return Objective(
        name="contrastive",
        init=model.init,
        loss=loss,
        frozen=((r"contrastive(/.*)?", False),),
        decay=((r"contrastive/log_temperature", 0.0), (r"contrastive/(?!log_temperature$).*", 1.0)),
        # What clip the projections and the temperature get is not stated (B.1.3 has AGC on the
        # NFNet, a global norm on BERT).
        groups=(
            (r"contrastive/vision(/.*)?", "vision"),
            (r"contrastive/(?!vision(/|$)).*", "rest"),
        ),
    )


def _next_token_loss(
    model: Model, num_shards: int, augmentation: AugmentConfig = NO_AUGMENTATION
) -> Callable[..., tuple[Array, Metrics]]:
    def loss(params: trees.Params, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
        weights = batch.loss_weights[:, 1:]  # a token's weight stands where the token is the target
        nll = model.token_losses(
            params, _augmented(batch, augmentation), num_shards=num_shards, rng=rng
        )
        return weighted_mean(nll, weights), {"tokens": jnp.sum(weights)}

    return loss


def _augmented(batch: Batch, augmentation: AugmentConfig) -> Batch:
    with jax.named_scope("augment"):
        return dataclasses.replace(
            batch, frames=augment(batch.frames, batch.media_key, augmentation)
        )


def _gates(params: trees.Params) -> Metrics:
    """Returns tanh(alpha) of each layer, the curves of the paper's Figure 6: {"gates/attention".

    [layers], "gates/dense": ...}.

    Of a gate for each channel, the mean of its absolute values.
    """
    flat = trees.flatten(params)
    of_layer = lambda gate: jnp.mean(jnp.abs(gate), axis=1) if gate.ndim > 1 else gate
    return {
        f"gates/{path.rpartition('/')[2].removesuffix('_gate')}": of_layer(
            jnp.tanh(leaf.astype(jnp.float32))
        )
        for path, leaf in flat.items()
        if path.startswith("flamingo/xattn/") and path.endswith("_gate")
    }

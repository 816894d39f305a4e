"""What a stage minimises: a model, a pure loss, and one table of its weights.

The training loop knows nothing else of a stage.

    language_model   next token of packed text                       (Chinchilla's recipe)
    contrastive      two-term InfoNCE over one dataset's batch       (paper, B.1.3)
    flamingo         next token given the images before it, towers   (paper, equation 1
                     frozen                                           and section 2.4)

The loss of a dataset's batch is the mean over the tokens that are predicted in the whole batch, on
any number of devices and in any number of chunks; `models.losses` has other divisors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.trees import Params
from flamingo_jax.data.config import NO_AUGMENTATION, AugmentConfig
from flamingo_jax.data.images.augment import augment
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import contrastive as contrastive_lib
from flamingo_jax.models.api import Model
from flamingo_jax.models.encoders import ContrastiveModel
from flamingo_jax.models.frozen import Unfrozen
from flamingo_jax.models.losses import DIVISORS, Normalisation, weighted_sum
from flamingo_jax.training import chunks
from flamingo_jax.training.gradient_cache import in_chunks, number_of_chunks
from flamingo_jax.training.optimizer import Group

Metrics = dict[str, Array]


class WeightRule(NamedTuple):
    """How the weights with certain paths are trained: one row of an objective's table.

    Attributes:
      pattern: regular expression that matches whole paths.
      frozen: True if they get no gradient; the other fields are ignored.
      decay: their share of `optimizer.weight_decay`.
      group: the optimizer's settings that they have.
    """

    pattern: str
    frozen: bool = False
    decay: float = 1.0
    group: Group = "rest"


@runtime_checkable
class HasWeights(Protocol):
    """What every objective's model can do; `models.api.Model` does more."""

    def init(self, rng: Array) -> Params:
        """Returns new weights, float32, all made by `core.params.param`."""
        ...

    def compute_form_init(self, rng: Array) -> Params:
        """Returns new weights in the compute form, for their names and logical axes."""
        ...

    def compute_form(self, params: Params) -> Params:
        """Changes weights as `init` makes them into the form that the loss takes."""
        ...


def _no_gauges(params: Params) -> Metrics:
    del params
    return {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """All that the training loop knows of a stage.

    Attributes:
      name: the stage; for messages.
      model: makes the weights, a tree {module: {name: float32 array}}.
      loss: loss(weights, batch, rng) -> (float32 scalar, metrics); pure. The weights arrive in the
          compute dtype, frozen ones in the compute form (`models.frozen`).
      table: how each weight is trained; exactly one row matches it.
      split: cuts a batch and its key into the arguments of the loss. With chunks these are several,
          and their losses sum up to the loss of the batch.
      gauges: gauges(weights) -> numbers to log that need no batch, such as the gates of Figure 6;
          scalars or one value per layer.
    """

    name: str
    model: HasWeights
    loss: Callable[..., tuple[Array, Metrics]]
    table: tuple[WeightRule, ...]
    split: chunks.Split = chunks.whole
    gauges: Callable[[Params], Metrics] = _no_gauges

    def rules(self, paths: Iterable[str], *, allow_unused: bool = False) -> dict[str, WeightRule]:
        """Returns the row of the table for each path; see `rules_of`."""
        return rules_of(self.table, paths, name=self.name, allow_unused=allow_unused)


def rules_of(
    table: tuple[WeightRule, ...], paths: Iterable[str], *, name: str, allow_unused: bool = False
) -> dict[str, WeightRule]:
    """Returns the row of a table that matches each path.

    Args:
        table: of an objective.
        paths: of all its weights.
        name: of the objective; for messages.
        allow_unused: True if `paths` are a part of the weights, so that a row may match no path.

    Raises:
        TableError: if a weight is matched by no row or by more than one, or a row by no weight.
    """
    rows = tuple((rule.pattern, rule) for rule in table)
    return trees.match_once(list(paths), rows, what=f"weights ({name})", allow_unused=allow_unused)


LANGUAGE_MODEL = (WeightRule(r"lm(/.*)?"),)


def language_model(
    model: Model,
    *,
    num_shards: int = 1,
    normalise: Normalisation = "tokens",
    split: Callable[..., chunks.Parts] = chunks.split,
) -> Objective:
    """The language model alone, on packed text; its weights are named "lm/...".

    Args:
        model: with weights named "lm/...".
        num_shards: data shards, each with its part of the rows.
        normalise: what the loss of a batch is divided by.
        split: cuts a batch in chunks.
    """
    return Objective(
        "language_model",
        model,
        _next_token_loss(model, num_shards, normalise),
        LANGUAGE_MODEL,
        functools.partial(split, num_shards=num_shards, total=_divisor(normalise)),
    )


FLAMINGO = (
    WeightRule(r"flamingo/vision/.*", frozen=True),
    WeightRule(r"flamingo/lm(/.*)?", frozen=True),
    WeightRule(r"flamingo/resampler(/.*)?", decay=0.0),
    WeightRule(r"flamingo/(media|xattn|grafted|new_tokens)(/.*)?"),
)
"""Both towers are frozen (paper, 2.2); no decay on the resampler (paper, B.1.2)."""

UNFROZEN: Mapping[Unfrozen, tuple[WeightRule, ...]] = {
    "vision": (WeightRule(FLAMINGO[0].pattern, decay=0.0, group="vision"),),
    "lm": (WeightRule(FLAMINGO[1].pattern, group="lm"),),
    "lm.lora": (
        WeightRule(r"flamingo/lm/.*_lora/[ab]", decay=0.0),
        WeightRule(r"flamingo/lm(/(?!.*_lora/).*)?", frozen=True),
    ),
}
"""How towers are trained that are not frozen: fine-tuning (paper, B.2.2) and Table 3, row viii.

The paper does not state the decay of the vision encoder: here 0, as on the resampler. All but the
resampler is decayed (paper, B.1.2), and so is the language model. Adapters are not: decay would
draw the model back to its frozen weights, which are not decayed either.
"""


def flamingo_table(
    unfrozen: Collection[Unfrozen] = (), *, has_resampler: bool = True
) -> tuple[WeightRule, ...]:
    """Returns `FLAMINGO` with the rows of `unfrozen` towers in the places of their frozen ones.

    Without a resampler there is no row for it.
    """
    rules = {name: UNFROZEN[name] for name in unfrozen}
    vision = rules.get("vision", FLAMINGO[:1])
    lm = rules.get("lm", rules.get("lm.lora", FLAMINGO[1:2]))
    return (*vision, *lm, *FLAMINGO[2 if has_resampler else 3 :])


def flamingo(
    model: Model,
    *,
    num_shards: int = 1,
    augmentation: AugmentConfig = NO_AUGMENTATION,
    normalise: Normalisation = "tokens",
    unfrozen: Collection[Unfrozen] = (),
    has_resampler: bool = True,
    split: Callable[..., chunks.Parts] = chunks.split,
) -> Objective:
    """Flamingo on interleaved pages, pairs and videos.

    Args:
        model: with weights named "flamingo/..."; built for what is trained.
        num_shards: data shards, each with its own pool of images in the batch.
        augmentation: random flip and colours of the images.
        normalise: what the loss of a batch is divided by.
        unfrozen: towers that are trained too.
        has_resampler: whether the model has one.
        split: cuts a batch in chunks.
    """
    return Objective(
        "flamingo",
        model,
        _next_token_loss(model, num_shards, normalise, augmentation),
        flamingo_table(unfrozen, has_resampler=has_resampler),
        functools.partial(split, num_shards=num_shards, total=_divisor(normalise)),
        gauges=_gates,
    )


CONTRASTIVE = (
    WeightRule(r"contrastive/vision(/.*)?", group="vision"),
    WeightRule(r"contrastive/log_temperature", decay=0.0),
    WeightRule(r"contrastive/(?!(vision|log_temperature)(/|$)).*"),
)
"""The paper clips the NFNet by AGC and BERT by a global norm (paper, B.1.3).

It does not state how the projections and the temperature are clipped: here as BERT. The temperature
is not decayed.
"""


def contrastive(
    model: ContrastiveModel,
    *,
    num_shards: int = 1,
    augmentation: AugmentConfig = NO_AUGMENTATION,
) -> Objective:
    """The two towers against each other, over the whole batch of one dataset.

    Each row has one image, and the pool has the rows' images in order (M = B).

    Args:
        model: the two towers, their joint space and the loss.
        num_shards: data shards, each with its part of the rows.
        augmentation: random flip and colours of the images.
    """
    config = model.config

    def embed(params: Params, rows: tuple[Batch[Array], Array]) -> tuple[Array, Array, Array]:
        batch, keys = _augmented(rows[0], augmentation), rows[1]
        v, t, beta = model.embed(params, batch.frames, batch.tokens, batch.segment, rng=keys)
        return v, t, jnp.broadcast_to(beta, len(v))

    def loss(params: Params, batch: Batch[Array], rng: Array) -> tuple[Array, Metrics]:
        if len(batch.frames) != len(batch.tokens):
            raise ConfigError(
                f"The contrastive batch has {len(batch.tokens)} texts and a pool of "
                f"{len(batch.frames)} images; expected one image for each text: use datasets of "
                "kind 'captions' and leave their pool unset."
            )
        # Each row has its own key for dropout, so that it is embedded the same in any chunk.
        rows = (batch, jax.random.split(rng, len(batch.tokens)))
        number = batch.chunks
        if config.chunk:
            number = number_of_chunks(
                chunk=config.chunk, rows=len(batch.tokens), num_shards=num_shards
            )
        v, t, beta = in_chunks(embed, params, rows, number=number, num_shards=num_shards)
        same = (
            contrastive_lib.same_caption(batch.tokens) if config.duplicates == "positives" else None
        )
        return contrastive_lib.contrastive_loss(
            v, t, beta[0], label_smoothing=config.label_smoothing, same=same
        )

    return Objective("contrastive", model, loss, CONTRASTIVE)


def _next_token_loss(
    model: Model,
    num_shards: int,
    normalise: Normalisation,
    augmentation: AugmentConfig = NO_AUGMENTATION,
) -> Callable[..., tuple[Array, Metrics]]:
    divisor = DIVISORS[normalise]

    def loss(
        params: Params, batch: Batch[Array], rng: Array, total: Array | None = None
    ) -> tuple[Array, Metrics]:
        weights, pools = _target_weights(batch), num_shards * batch.chunks
        nll = model.token_losses(params, _augmented(batch, augmentation), num_shards=pools, rng=rng)
        if total is None and divisor is not None:
            total = divisor(weights)
        return weighted_sum(nll, weights, total), {"tokens": jnp.sum(weights)}

    return loss


def _target_weights(batch: Batch[Array]) -> Float[Array, "B T"]:
    """Returns the weights [:, l] of the targets tokens[:, l + 1]."""
    return batch.loss_weights[:, 1:]


def _divisor(normalise: Normalisation) -> chunks.Total | None:
    of_weights = DIVISORS[normalise]
    return None if of_weights is None else lambda batch: of_weights(_target_weights(batch))


def _augmented(batch: Batch[Array], augmentation: AugmentConfig) -> Batch[Array]:
    with jax.named_scope("augment"):
        return dataclasses.replace(
            batch, frames=augment(batch.frames, batch.media_key, augmentation)
        )


def _gates(params: Params) -> Metrics:
    """Returns tanh(alpha) of each layer, the curves of the paper's Figure 6.

    The result is {"gates/attention": [layers], "gates/dense": [layers]}. For a gate with one value
    per channel it is the mean of |tanh(alpha)|.
    """
    gates = {
        path: jnp.tanh(leaf.astype(jnp.float32))
        for path, leaf in trees.flatten(params).items()
        if path.startswith("flamingo/xattn/") and path.endswith("_gate")
    }
    of_layer = lambda gate: jnp.mean(jnp.abs(gate), axis=1) if gate.ndim > 1 else gate
    return {
        f"gates/{path.rpartition('/')[2].removesuffix('_gate')}": of_layer(gate)
        for path, gate in gates.items()
    }

"""The kinds of models that an export may have, and how each makes its weights."""

from __future__ import annotations

from collections.abc import Callable

from flamingo_jax.core.notation import Array
from flamingo_jax.core.trees import Params
from flamingo_jax.models import api, encoders
from flamingo_jax.models.config import ModelConfig, required

Init = Callable[[Array], Params]

_INITS: dict[str, Callable[[ModelConfig], Init]] = {
    "language_model": lambda config: api.language_model(required(config.lm, "lm")).init,
    "contrastive": lambda config: encoders.contrastive(config).init,
    "flamingo": lambda config: api.flamingo(config.flamingo()).init,
    "vision": lambda config: encoders.vision_encoder(config.encoder()).init,
}
KINDS = tuple(_INITS)


def init_of(kind: str, config: ModelConfig) -> Init:
    """Returns the function that makes the weights of a model, in the stored form.

    Args:
        kind: one of KINDS; "vision" is an encoder alone.
        config: the model.

    Raises:
        ValueError: if there is no such kind, or a part is missing.
    """
    if kind not in _INITS:
        raise ValueError(f"There is no model of kind {kind!r}; expected one of {', '.join(KINDS)}.")
    return _INITS[kind](config)

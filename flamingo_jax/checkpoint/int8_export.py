"""Writes an export again, with its towers in 8 bits."""

from __future__ import annotations

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import describe_checkpoint, export, open_checkpoint
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.precision import Policy
from flamingo_jax.models import int8, kinds
from flamingo_jax.models.config import ModelConfig


def write(source: PathLike, target: PathLike) -> Path:
    """Writes a copy of an export with the products of its towers in 8 bits (`models.int8`).

    The weights are rounded while they are read. All others keep their dtype.

    Args:
        source: an export, or the WORKDIR that contains it.
        target: the new export.

    Raises:
        CheckpointError: if `source` is no export, is damaged, or is in 8 bits already; or `target`
            exists.
    """
    directory, card = read_card(source)
    if card.get("int8"):
        raise CheckpointError(f"{directory} is in 8 bits already.")
    if Path(target).exists():
        raise CheckpointError(f"{target} exists already. Give the path of a new directory.")
    described = describe_checkpoint(directory)
    config = from_dict(ModelConfig, described.model_config, where="model")
    policy = Policy(frozen="int8")
    contracted = int8.contracted_axes(kinds.init_of(described.kind, config), policy)
    opened = open_checkpoint(directory, change=lambda some: int8.rounded(some, contracted))
    return export(
        target,
        opened.params,
        kind=opened.kind,
        config=opened.model_config,
        tokenizer=opened.tokenizer,
        preprocessing=opened.preprocessing,
        step=opened.step,
        run=card.get("run"),
    )

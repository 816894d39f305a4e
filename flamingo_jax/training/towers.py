"""The frozen towers of the flamingo stage: where they come from, and whether they are what the config says.

language_model export  lm/...                    --> flamingo/lm/...
contrastive export     contrastive/vision/...    --> flamingo/vision/...     (its text side goes nowhere)
"""

from __future__ import annotations

from typing import Any

from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint import partial
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.data import tokenizer as tokenizer_lib
from flamingo_jax.training.config import TrainConfig

# tower: (prefix in its export, prefix in Flamingo, the stage that makes it, its part of the model config)
TOWERS = {
    "lm": ("lm", "flamingo/lm", "language_model", "lm"),
    "vision": ("contrastive/vision", "flamingo/vision", "contrastive", "vision"),
}
_SKIP = {"lm": (), "vision": (r"contrastive/(?!vision/).*",)}
_FREE = ("remat", "vocab_multiple")  # fields that do not change what a tower computes


def frozen_records(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Returns what a run's config keeps of its towers: path, hash and prefixes of each; {} in a stage without towers.

    Raises:
        CheckpointError: if a tower's checkpoint is missing.
        ConfigError: if a tower is not given, or was made with another model config or tokenizer.
    """
    if config.stage != "flamingo":
        return {}
    records = {}
    for name, (source, target, stage, part) in TOWERS.items():
        path = getattr(config.towers, name)
        if path is None:
            raise config_lib.ConfigError(
                f"config.towers.{name} is None; the flamingo stage needs the export of a {stage} run: --config.towers.{name}=WORKDIR/export."
            )
        try:
            records[name] = partial.frozen_record(path, source, target)
        except CheckpointError as error:
            raise CheckpointError(f"config.towers.{name}: {error} It is made by the {stage} stage.") from error
        _check(name, part, path, config)
    return records


def load(config: TrainConfig, abstract: trees.Params) -> dict[str, dict[str, Any]]:
    """Returns the frozen weights, from the towers' exports onto the shardings and in the dtypes of `abstract`.

    Raises:
        CheckpointError: if a tower does not have exactly these weights.
    """
    sources = {target: (getattr(config.towers, name), source) for name, (source, target, _, _) in TOWERS.items()}
    return partial.load_towers(abstract, sources, skip=tuple(row for rows in _SKIP.values() for row in rows))


def _check(name: str, part: str, path: str, config: TrainConfig) -> None:
    """Weights of equal shapes may still mean another model (positions, activation, another vocabulary)."""
    directory, card = export_lib.read_card(path)
    theirs, ours = card["config"].get(part) or {}, config_lib.to_dict(getattr(config.model, part))
    drop = lambda fields: {key: value for key, value in fields.items() if key not in _FREE}  # noqa: E731
    if changed := config_lib.differences(drop(theirs), drop(ours)):
        raise config_lib.ConfigError(
            f"The tower config.towers.{name} = {directory} was made with another config.model.{part} (tower -> now):\n  "
            + "\n  ".join(changed)
            + "\nGive this config the tower's values, or another tower."
        )
    if name == "lm" and card.get("tokenizer") and _pieces(directory) != _pieces(config.data.tokenizer):
        raise config_lib.ConfigError(
            f"The tokenizer {config.data.tokenizer} is not the one that the language model {directory} was trained with. "
            f"Set --config.data.tokenizer={directory}."
        )


def _pieces(path: paths.PathLike) -> bytes:
    return tokenizer_lib.find(path).read_bytes()

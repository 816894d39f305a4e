"""Where a run's weights come from: frozen towers, and the values that trained weights start with.

    config         kind of export     weights there                   weights of the run
    towers.lm      "language_model"   lm/...                          flamingo/lm/...
    towers.vision  "contrastive"      contrastive/vision/...          flamingo/vision/...
                   "vision"           vision/...                      flamingo/vision/...
    either         "flamingo"         flamingo/lm/, flamingo/vision/  the same
    initial        of the same stage  every trained weight            the same

The text side of a contrastive export is not used. A flamingo run takes a tower from `initial` if
`towers` does not name one. A tower that is trained starts with the weights of its export, or with
random ones (`towers.random`); from then on the run's checkpoints store it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flamingo_jax.checkpoint import arrays, partial
from flamingo_jax.checkpoint import card as card_lib
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.models.config import ENCODERS, ModelConfig
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.training.config import TrainConfig

# Fields that do not change what a tower computes.
_FREE = ("remat", "vocab_multiple", "loop", "stochastic_depth", "lora")


@dataclasses.dataclass(frozen=True)
class _Tower:
    """A tower.

    Attributes:
      stage: the stage that trains it.
      parts: its parts of the model config.
      places: {kind of export: prefix of its weights there}.
    """

    stage: str
    parts: tuple[str, ...]
    places: Mapping[str, str]


_TOWERS = {
    "lm": _Tower("language_model", ("lm",), {"language_model": "lm", "flamingo": "flamingo/lm"}),
    "vision": _Tower(
        "contrastive",
        ENCODERS,
        {"contrastive": "contrastive/vision", "vision": "vision", "flamingo": "flamingo/vision"},
    ),
}


class _Trained(NamedTuple):
    """The weights that a stage always trains.

    Attributes:
      places: prefixes of the weights.
      parts: parts of the model config that decide what the weights mean.
    """

    places: tuple[str, ...]
    parts: tuple[str, ...]


_TRAINED = {
    "language_model": _Trained(("lm",), ("lm",)),
    "contrastive": _Trained(("contrastive",), (*ENCODERS, "text_encoder")),
    "flamingo": _Trained(
        tuple(
            f"flamingo/{part}" for part in ("resampler", "media", "xattn", "grafted", "new_tokens")
        ),
        ("resampler", "xattn", "new_tokens"),
    ),
}


def frozen_records(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Returns what checkpoints record of the frozen towers: path, hash and prefixes of each.

    It is {} in a stage without towers.

    Raises:
        CheckpointError: if a tower's export is missing, or is of another kind.
        ConfigError: if a tower is not given, or was made with another model config or tokenizer.
    """
    sources = _sources(config, trained=False)
    return {
        name: partial.frozen_record(path, place, f"flamingo/{name}")
        for name, (path, place) in sources.items()
    }


def load(
    config: TrainConfig, abstract: trees.Params, *, rounded: arrays.Change | None = None
) -> dict[str, dict[str, Any]]:
    """Reads the frozen weights from the towers' exports.

    Args:
        config: the run.
        abstract: the frozen weights, with the dtypes and shardings with which they are read.
        rounded: `StateLayout.rounded`, applied to some modules at a time; None changes nothing.

    Raises:
        CheckpointError: if a tower does not have exactly these weights.
    """
    sources = _sources(config, trained=False)
    targets = {f"flamingo/{name}": source for name, source in sources.items()}
    return _read(abstract, targets, change=rounded)


def check_start(config: TrainConfig) -> None:
    """Checks all that a new run will read, except the weights themselves (`check_files`).

    Raises:
        CheckpointError: if an export is missing, or is of another kind.
        ConfigError: if it was made with another model config or tokenizer.
    """
    frozen_records(config)
    _sources(config, trained=True)
    if config.initial is None:
        return
    directory, card = _card("initial", config.initial, config.stage)
    if card["kind"] != config.stage:
        raise CheckpointError(
            f"config.initial: {directory} is the export of kind {card['kind']!r}; expected one of "
            f"a {config.stage} run."
        )
    parts = _TRAINED[config.stage].parts
    xattn = config.model.xattn
    if config.stage == "flamingo" and xattn is not None and xattn.grafted_layers:
        parts += ("lm",)  # the grafted blocks are like its blocks
    _check("initial", parts, directory, card, config)
    _check_tokenizer(directory, card, config)


def check_files(config: TrainConfig, *, is_new: bool) -> None:
    """Checks the files of all exports that a run reads; its processes call it together.

    Args:
        config: the run, the same in all processes.
        is_new: True if the run reads what its trained weights start with, too.

    Raises:
        CheckpointError: if a file is missing, cut off or changed.
    """
    exports = {f"tower {name!r}": path for name, path in _paths(config, trained=False).items()}
    if is_new:
        exports |= {f"tower {name!r}": path for name, path in _paths(config, trained=True).items()}
        if config.initial is not None:
            exports["config.initial"] = config.initial
    for what, path in exports.items():
        directory, card = card_lib.read_card(path, what=what)
        card_lib.check_files(directory, card, what=what, only=card_lib.is_of_model)


def start_records(config: TrainConfig) -> dict[str, str]:
    """Returns the hashes of the exports that the trained weights start with.

    The keys are names of trained towers, and "initial".

    Raises:
        CheckpointError: if an export is missing, or is of another kind.
        ConfigError: if it was made with another model config or tokenizer.
    """
    exports = _paths(config, trained=True)
    if config.initial is not None:
        exports["initial"] = config.initial
    return {name: card_lib.read_card(path)[1]["content_hash"] for name, path in exports.items()}


def start(config: TrainConfig, trainable: trees.Params) -> dict[str, dict[str, Any]]:
    """Returns the trained weights that a new run starts with.

    They are read from `config.initial` and from the exports of trained towers.

    Args:
        config: the run.
        trainable: new weights, on their shardings; weights that no export has stay as they are.

    Raises:
        CheckpointError: if an export does not have exactly these weights.
    """
    sources = {
        f"flamingo/{name}": source for name, source in _sources(config, trained=True).items()
    }
    if config.initial is not None:
        sources |= {place: (config.initial, place) for place in _TRAINED[config.stage].places}
    return _read(trainable, sources)


def _sources(config: TrainConfig, *, trained: bool) -> dict[str, tuple[str, str]]:
    """Checks the trained or the frozen towers; returns {tower: (export, its prefix there)}."""
    if config.stage != "flamingo":
        return {}
    sources = {}
    for name, tower in _TOWERS.items():
        if (name in config.unfrozen) != trained or name in config.towers.random:
            continue
        path, field = getattr(config.towers, name), f"towers.{name}"
        if path is None:
            path, field = config.initial, "initial"
        if path is None:
            raise config_lib.ConfigError(
                f"config.towers.{name} is None; the flamingo stage needs the export of a "
                f"{tower.stage} run: --config.towers.{name}=WORKDIR/export. (Or a whole Flamingo "
                "to go on from, as --config.initial.)"
                + (f" Or train it from nothing: --config.towers.random={name}." if trained else "")
            )
        directory, card = _card(field, path, tower.stage)
        if card["kind"] not in tower.places:
            raise CheckpointError(
                f"config.{field}: {directory} is the export of kind {card['kind']!r}, which has no "
                f"tower {name!r}; expected one of {', '.join(tower.places)}."
            )
        _check(field, tower.parts, directory, card, config)
        if name == "lm":
            _check_tokenizer(directory, card, config)
        sources[name] = (path, tower.places[card["kind"]])
    return sources


def _paths(config: TrainConfig, *, trained: bool) -> dict[str, str]:
    """Returns {tower: its export} of the trained or the frozen towers."""
    return {name: path for name, (path, _) in _sources(config, trained=trained).items()}


def _card(field: str, path: str, stage: str) -> tuple[paths.Path, dict[str, Any]]:
    try:
        directory, card = card_lib.read_card(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"config.{field}: {error} It is made by the {stage} stage."
        ) from error
    if card.get("int8"):
        raise CheckpointError(
            f"config.{field}: {directory} is in 8 bits, and a run rounds its towers itself: give "
            "the export that it was made from, with --config.precision.frozen=int8."
        )
    return directory, card


def _read(
    params: trees.Params, sources: partial.Sources, *, change: arrays.Change | None = None
) -> dict[str, dict[str, Any]]:
    """Reads one export after the other, without the weights that the run does not use."""
    loaded = {module: dict(weights) for module, weights in params.items()}
    for path in dict.fromkeys(path for path, _ in sources.values()):
        of_export = {target: source for target, source in sources.items() if source[0] == path}
        skip = _others([place for _, place in of_export.values()])
        loaded = partial.load_towers(loaded, of_export, skip=skip, change=change)
    return loaded


def _others(places: Sequence[str]) -> tuple[str, ...]:
    """Returns a pattern for all weights of an export except those at `places`.

    A place is a part, such as "contrastive/vision", or the whole export, such as "lm"; a whole
    export has no others.
    """
    root, _, part = places[0].partition("/")
    parts = "|".join(place.partition("/")[2] for place in places)
    return (rf"{root}/(?!(?:{parts})/).*",) if part else ()


def _check(
    field: str,
    parts: Sequence[str],
    directory: paths.Path,
    card: Mapping[str, Any],
    config: TrainConfig,
) -> None:
    """Compares parts of the model config; equal shapes may hide another model.

    Positions, the activation and the vocabulary may differ in weights of equal shapes.
    """
    for part in parts:
        theirs, ours = _plain(card["config"], part), _plain(config_lib.to_dict(config.model), part)
        if changed := config_lib.differences(theirs, ours):
            what = "tower " if field != "initial" else "run of "
            raise config_lib.ConfigError(
                f"The {what}config.{field} = {directory} was made with another config.model.{part} "
                f"({what.split()[0]} -> now):\n"
                "  "
                + "\n  ".join(changed)
                + "\nGive this config the values from there, or give another one."
            )


def _plain(model: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns the fields of a part of a model's config that decide what the part computes.

    Fields that came after the export was written have their defaults.
    """
    if not isinstance(model.get(part), Mapping):
        return {part: model.get(part)}
    try:
        filled = config_lib.to_dict(config_lib.from_dict(ModelConfig, {part: model[part]}))[part]
    except config_lib.ConfigError:  # it has fields that are gone: the caller reports them
        filled = model[part]
    return {field: value for field, value in filled.items() if field not in _FREE}


def _check_tokenizer(directory: paths.Path, card: Mapping[str, Any], config: TrainConfig) -> None:
    if card.get("tokenizer") and _pieces(directory) != _pieces(config.data.tokenizer):
        raise config_lib.ConfigError(
            f"The tokenizer {config.data.tokenizer} is not the one that the language model "
            f"{directory} was trained with. Set --config.data.tokenizer={directory}."
        )


def _pieces(path: paths.PathLike) -> bytes:
    return paths.regular(tokenizer_lib.find(path)).read_bytes()

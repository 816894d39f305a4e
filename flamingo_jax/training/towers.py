"""Where a run's weights come from.

The frozen towers of the flamingo stage, and what the trained weights begin with.

towers.lm      export "language_model"   lm/...                          --> flamingo/lm/...
towers.vision  export "contrastive"      contrastive/vision/...          --> flamingo/vision/...     (its text side goes nowhere)
               export "vision"           vision/...                      --> flamingo/vision/...
either         export "flamingo"         flamingo/lm/, flamingo/vision/  --> the same place
initial        export of the same stage  every trained weight            --> the same place; and a flamingo run's towers, if not given

A tower that is trained begins as it is in its export, and is then the run's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint import partial
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.training.config import TrainConfig

# fields that do not change what a tower computes
_FREE = ("remat", "vocab_multiple", "loop", "stochastic_depth")


@dataclasses.dataclass(frozen=True)
class _Tower:
    """A tower.

    The stage that makes it, its parts of the model config, and its place in each kind of export.
    """

    stage: str
    parts: tuple[str, ...]
    places: Mapping[str, str]


_TOWERS = {
    "lm": _Tower("language_model", ("lm",), {"language_model": "lm", "flamingo": "flamingo/lm"}),
    "vision": _Tower(
        "contrastive",
        ("vision", "vit"),
        {"contrastive": "contrastive/vision", "vision": "vision", "flamingo": "flamingo/vision"},
    ),
}
# Of each stage: where the weights are that it always trains, and the parts of the model config that
# say what they mean.
_TRAINED = {
    "language_model": (("lm",), ("lm",)),
    "contrastive": (("contrastive",), ("vision", "vit", "text_encoder")),
    "flamingo": (
        ("flamingo/resampler", "flamingo/media", "flamingo/xattn", "flamingo/new_tokens"),
        ("resampler", "xattn", "new_tokens"),
    ),
}


def frozen_records(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Returns what a run's config keeps of its frozen towers: path, hash and prefixes of each.

    {} in a stage without towers.

    Raises:
        CheckpointError: if a tower's export is missing, or is of another kind.
        ConfigError: if a tower is not given, or was made with another model config or tokenizer.
    """
    sources = _sources(config, trained=False)
    return {
        name: partial.frozen_record(path, place, f"flamingo/{name}")
        for name, (path, place) in sources.items()
    }


def load(config: TrainConfig, abstract: trees.Params) -> dict[str, dict[str, Any]]:
    """Returns the frozen weights, from the towers' exports onto the shardings and in the dtypes of `abstract`.

    Raises:
        CheckpointError: if a tower does not have exactly these weights.
    """
    sources = _sources(config, trained=False)
    return _read(abstract, {f"flamingo/{name}": source for name, source in sources.items()})


def check_start(config: TrainConfig) -> None:
    """Checks what `start` will read, but for the weights themselves.

    Raises:
        CheckpointError: if an export is missing, or is of another kind.
        ConfigError: if it was made with another model config or tokenizer.
    """
    _sources(config, trained=True)
    if config.initial is None:
        return
    directory, card = _card("initial", config.initial, config.stage)
    if card["kind"] != config.stage:
        raise CheckpointError(
            f"config.initial: {directory} is the export of kind {card['kind']!r}; expected one of "
            f"a {config.stage} run."
        )
    _check("initial", _TRAINED[config.stage][1], directory, card, config)
    _check_tokenizer(directory, card, config)


def start(config: TrainConfig, trainable: trees.Params) -> dict[str, dict[str, Any]]:
    """Returns the trained weights that a new run begins with.

    Those of `config.initial` and of trained towers, or as they are.

    Args:
        config: the run.
        trainable: at birth, on their shardings; each that has no source stays.

    Raises:
        CheckpointError: if an export does not have exactly these weights.
    """
    sources = {
        f"flamingo/{name}": source for name, source in _sources(config, trained=True).items()
    }
    if config.initial is not None:
        sources |= {place: (config.initial, place) for place in _TRAINED[config.stage][0]}
    return _read(trainable, sources)


def _sources(config: TrainConfig, *, trained: bool) -> dict[str, tuple[str, str]]:
    """Returns {tower.

    (export, place of its weights there)} of the towers that are trained, or of those that are
    frozen, checked.
    """
    if config.stage != "flamingo":
        return {}
    sources = {}
    for name, tower in _TOWERS.items():
        if (name in config.unfrozen) != trained:
            continue
        own = getattr(config.towers, name)
        path, field = (own, f"towers.{name}") if own is not None else (config.initial, "initial")
        if path is None:
            raise config_lib.ConfigError(
                f"config.towers.{name} is None; the flamingo stage needs the export of a "
                f"{tower.stage} run: --config.towers.{name}=WORKDIR/export. (Or a whole Flamingo "
                "to go on from, as --config.initial.)"
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


def _card(field: str, path: str, stage: str) -> tuple[paths.Path, dict[str, Any]]:
    try:
        return export_lib.read_card(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"config.{field}: {error} It is made by the {stage} stage."
        ) from error


def _read(params: trees.Params, sources: partial.Sources) -> dict[str, dict[str, Any]]:
    """Reads export by export: what the run does not take of one is named for that one alone."""
    loaded = {module: dict(weights) for module, weights in params.items()}
    for path in dict.fromkeys(path for path, _ in sources.values()):
        own = {target: source for target, source in sources.items() if source[0] == path}
        loaded = partial.load_towers(
            loaded, own, skip=_others([place for _, place in own.values()])
        )
    return loaded


def _others(places: Sequence[str]) -> tuple[str, ...]:
    """Returns the row that names all weights of an export beside those at `places`, "contrastive/vision" or a whole "lm"."""
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
    """Weights of equal shapes may still mean another model (positions, activation, another vocabulary)."""
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
    """Returns the fields of a part of a model's config that decide what it computes.

    Those that it was made without have their defaults.
    """
    if not isinstance(model.get(part), Mapping):
        return {part: model.get(part)}
    try:
        filled = config_lib.to_dict(config_lib.from_dict(ModelConfig, {part: model[part]}))[part]
    except config_lib.ConfigError:  # of a version that has other fields: they will differ
        filled = model[part]
    return {field: value for field, value in filled.items() if field not in _FREE}


def _check_tokenizer(directory: paths.Path, card: Mapping[str, Any], config: TrainConfig) -> None:
    if card.get("tokenizer") and _pieces(directory) != _pieces(config.data.tokenizer):
        raise config_lib.ConfigError(
            f"The tokenizer {config.data.tokenizer} is not the one that the language model "
            f"{directory} was trained with. Set --config.data.tokenizer={directory}."
        )


def _pieces(path: paths.PathLike) -> bytes:
    return tokenizer_lib.find(path).read_bytes()

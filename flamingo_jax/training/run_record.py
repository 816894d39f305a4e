"""The record of a run: what decides which model it makes. Checkpoints and exports store it.

    all fields of the config
    frozen      {tower: path, hash and place of its weights}
    start       {"initial" or a trained tower: hash of the export that the weights started with}
    records     {dataset: fingerprint}     see data.fingerprints
    tokenizer   {file: hash}
    deviations  where the run went on differently, see deviations

A run goes on, and its export is replaced, only with an equal record; MAY_DIFFER lists the fields
that may have other values. Data that only moved are the same data: their paths may differ if their
fingerprints are equal. Records of version 0.4.0 have no fingerprints; then the paths must be equal.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.checkpoint import manifest, store
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.data import fingerprints
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.training import towers
from flamingo_jax.training.config import TrainConfig

# Fields that do not change what is computed, in addition to the store's: what is measured, how the
# loader works, and in how many chunks a batch is computed (only rounding depends on it).
MAY_DIFFER = (
    *store.MAY_DIFFER,
    r"(until|evaluate)(\..*)?",
    r"data\.(num_threads|prefetch|max_corrupt)",
    r"data\.datasets\.[^.]+\.(pool|chunks)",
    r"model\.contrastive\.chunk",  # the former name of chunks
)
# Fields that may have other values in each process: hosts may mount the same files elsewhere.
_OF_A_HOST = (
    r"data\.(tokenizer|num_threads|prefetch)",
    r"data\.datasets\.[^.]+\.path",
    r"(initial|towers\.(lm|vision)|frozen\.[^.]+\.path)",
    r"evaluate\.data\..*",
)
_NO_FIELDS = ("frozen", "start", "records", "tokenizer", "deviations")
_MOST_NAMED = 6


def of(config: TrainConfig, mixture: Mixture, workdir: paths.Path) -> dict[str, Any]:
    """Returns the record of a run.

    Args:
        config: the resolved config.
        mixture: its datasets.
        workdir: of the run. Its checkpoints know what the weights started with.

    Raises:
        CheckpointError: if an export that the run starts with is missing, or is of another kind.
        ConfigError: if a tower is not given, or was made with another model config or tokenizer.
        PathError: if a file of the data cannot be read.
    """
    return {
        **config_lib.to_dict(config),
        "frozen": towers.frozen_records(config),
        "start": dict(newest(workdir).get("start", {}))
        if store.steps(workdir)
        else towers.start_records(config),
        "records": mixture.fingerprints(),
        "tokenizer": fingerprints.of_tokenizer(config.data.tokenizer),
    }


def shared(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must be equal in all processes of a run, by the names of the command line."""
    plain = dict(config_lib.leaves(record))
    kept = {name: value for name, value in plain.items() if not _matches(_OF_A_HOST, name)}
    return {
        name if name.split(".")[0] in _NO_FIELDS else f"config.{name}": value
        for name, value in kept.items()
    }


def completed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored record, ready to be compared with this run's.

    Fields that came after it was written have their defaults, which change nothing of what an older
    version computed. Data of equal fingerprints have this run's paths.
    """
    others = {name: theirs[name] for name in _NO_FIELDS if name in theirs}
    fields = {name: value for name, value in theirs.items() if name not in others}
    # ConfigError: it has fields that are gone, and the comparison names them
    with contextlib.suppress(config_lib.ConfigError):
        fields = config_lib.to_dict(config_lib.from_dict(TrainConfig, fields))
        if has_fingerprints(theirs):
            fields["data"] = _moved(fields["data"], theirs, ours)
    return {**{name: ours[name] for name in _NO_FIELDS if name in ours}, **fields, **others}


def has_fingerprints(record: Mapping[str, Any]) -> bool:
    """Returns False for a record of an older version, of which the data cannot be compared."""
    return "records" in record and "tokenizer" in record


def refuse_other_data(theirs: Mapping[str, Any], ours: Mapping[str, Any], whose: str) -> None:
    """Compares the data of two records, as far as both have fingerprints.

    Datasets of other names or splits are left out: these are differences of the config.

    Args:
        theirs: a stored record.
        ours: this run's.
        whose: what `theirs` describes, with its verb: "the export DIR was".

    Raises:
        CheckpointError: if they differ. It names what differs, as "records.text.count: 64 -> 96".
    """
    if not has_fingerprints(theirs):
        return
    names = [name for name in ours["records"] if _same_split(name, theirs, ours)]
    old, new = (
        {"records": {name: each["records"][name] for name in names}, "tokenizer": each["tokenizer"]}
        for each in (theirs, ours)
    )
    if changed := config_lib.differences(old, new):
        raise CheckpointError(
            f"The data are not those that {whose} trained with (there -> here): {few(changed)}. "
            "Give the former files, at their place or as --config.data.datasets.NAME.path=DIR and "
            "--config.data.tokenizer=DIR; or give another --workdir."
        )


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], may_differ: tuple[str, ...]
) -> list[str]:
    """Returns the differences by which two records are of two runs, as "config.seed: 0 -> 5".

    Args:
        theirs: a stored record.
        ours: this run's.
        may_differ: regular expressions of fields that are left out, in addition to MAY_DIFFER.
    """
    lines = config_lib.differences(completed(theirs, ours), ours)
    fields = [line.partition(": ")[0] for line in lines]
    return [
        line if field.split(".")[0] in _NO_FIELDS else f"config.{line}"
        for field, line in zip(fields, lines, strict=True)
        if not _matches((*MAY_DIFFER, *may_differ), field)
    ]


def few(lines: Sequence[str]) -> str:
    """Returns the first of some differences, and how many more there are, in one line."""
    more = len(lines) - _MOST_NAMED
    return "; ".join(lines[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def newest(workdir: paths.Path) -> dict[str, Any]:
    """Returns the record in the newest checkpoint that has it undamaged; {} if none has."""
    is_config = lambda name: name.startswith("config/")
    for step in reversed(store.steps(workdir)):
        with contextlib.suppress(CheckpointError):
            directory = store.step_directory(workdir, step)
            manifest.check(directory, required=False, only=is_config, alone=True)
            return store.read_item(workdir, step, "config")
    return {}


def _moved(
    data: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the field "data" with the paths of this run where the fingerprints are equal."""
    datasets = {
        name: {**fields, "path": ours["data"]["datasets"][name]["path"]}
        if name in ours["records"] and theirs["records"].get(name) == ours["records"][name]
        else fields
        for name, fields in data["datasets"].items()
    }
    same = theirs["tokenizer"] == ours["tokenizer"]
    tokenizer = ours["data"]["tokenizer"] if same else data["tokenizer"]
    return {**data, "datasets": datasets, "tokenizer": tokenizer}


def _same_split(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    old = theirs["data"]["datasets"].get(name, {})
    return name in theirs["records"] and old.get("split") == ours["data"]["datasets"][name]["split"]


def _matches(patterns: tuple[str, ...], field: str) -> bool:
    return any(re.fullmatch(pattern, field) for pattern in patterns)

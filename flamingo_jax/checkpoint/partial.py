"""Loads trained towers into a larger model.

    export "language_model": lm/...                      --->  flamingo/lm/...
    export "contrastive":    contrastive/vision/...      --->  flamingo/vision/...
                             contrastive/text/...        skipped, by name

Every weight below a target must be in its source, with the same shape. Every weight of a source
must have a target or match a row of `skip`. So a tower that does not fit is an error, and no part
of a model stays random by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import check_files, is_of_model, read_card
from flamingo_jax.core import trees
from flamingo_jax.core.paths import PathLike

Sources = Mapping[str, tuple[PathLike, str]]


def load_towers(
    params: trees.Params,
    sources: Sources,
    *,
    skip: tuple[str, ...] = (),
    change: arrays.Change | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns `params` with the weights below each target replaced by those of an export.

    Only these weights are read, each with the sharding and the dtype of the weight that it
    replaces.

    Args:
        params: {module: {name: leaf}}; leaves are arrays, or jax.ShapeDtypeStruct with shardings.
        sources: {target: (export, source)}, such as {"flamingo/lm": ("runs/lm/export", "lm")};
            target and source are prefixes of paths.
        skip: regular expressions that match whole paths of source weights without a target, such
            as "contrastive/text/.*".
        change: applied to some whole modules at a time, right after they are read, so that all
            weights never exist as they are stored.

    Raises:
        CheckpointError: if an export is missing or damaged; a weight below a target has no source;
            a source weight is used twice, or has no target and matches no row of `skip`; shapes
            differ; or a row of `skip` matches nothing.
    """
    flat = trees.flatten(params)
    exports = {}
    for target, (path, _) in sources.items():
        if str(path) not in exports:
            directory, card = read_card(path, what=f"tower for {target!r}")
            check_files(directory, card, what=f"tower for {target!r}", only=is_of_model)
            exports[str(path)] = directory
    stored = {key: arrays.describe(directory / "weights") for key, directory in exports.items()}
    skipped = _skipped(stored, skip)
    taken: dict[str, set[str]] = {key: set() for key in stored}
    loaded: dict[str, Any] = {}
    for target, (path, source) in sources.items():
        key = str(path)
        found = _under(stored[key], source)
        where = f"Tower {source!r} of {exports[key]} for {target!r}"
        if twice := sorted(
            f"{source}/{name}" for name in found if f"{source}/{name}" in taken[key] | skipped[key]
        ):
            raise CheckpointError(
                f"{where}: weights {arrays.few(twice)} are taken twice, or taken and skipped."
            )
        taken[key] |= {f"{source}/{name}" for name in found}
        wanted = _under(flat, target)
        arrays.compare(found, wanted, where=where)
        for some in [wanted] if change is None else arrays.chunks(wanted):
            like = {f"{source}/{name}": _abstract(leaf) for name, leaf in some.items()}
            weights = arrays.read(exports[key] / "weights", like)
            read = {f"{target}/{name}": weights[f"{source}/{name}"] for name in some}
            loaded |= trees.flatten(change(trees.unflatten(read))) if change else read
            for name in some:
                flat.pop(f"{target}/{name}")
    for key, names in stored.items():
        if left := sorted(names.keys() - taken[key] - skipped[key]):
            raise CheckpointError(
                f"Export {exports[key]} holds {len(left)} weights that go nowhere: "
                f"{arrays.few(left)}. Give them a target, or name them in `skip`."
            )
    return trees.unflatten(flat | loaded)


def frozen_record(path: PathLike, source: str, target: str) -> dict[str, str]:
    """Returns how a run's config describes a frozen tower, in config["frozen"]["lm"].

    Args:
        path: the tower's export (or the WORKDIR that contains it).
        source: prefix of its weights in the export ("lm", "contrastive/vision").
        target: prefix of its weights in the model ("flamingo/lm", "flamingo/vision").

    Raises:
        CheckpointError: if there is no export.
    """
    directory, card = read_card(path, what=f"tower for {target!r}")
    return {
        "path": str(directory),
        "hash": card["content_hash"],
        "source": source,
        "target": target,
    }


def _skipped(stored: Mapping[str, Mapping[str, Any]], skip: tuple[str, ...]) -> dict[str, set[str]]:
    matched = {
        key: {name for name in names if any(re.fullmatch(row, name) for row in skip)}
        for key, names in stored.items()
    }
    everything = [name for names in stored.values() for name in names]
    if unused := [row for row in skip if not any(re.fullmatch(row, name) for name in everything)]:
        raise CheckpointError(
            f"Rows of `skip` name no weight of the towers: {unused}. Delete or mend them."
        )
    return matched


def _under(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the entries under `prefix/`, by the rest of their path."""
    return {
        path.removeprefix(f"{prefix}/"): leaf
        for path, leaf in flat.items()
        if path.startswith(f"{prefix}/")
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

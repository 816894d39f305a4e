"""Writes a model as a self-contained directory, and opens any checkpoint for use.

    DIR/weights/         all weights, as named arrays (orbax): {"flamingo/lm/...": array}; a weight
                         in 8 bits is two, PATH/int8 and PATH/scale
    DIR/tokenizer.model  SentencePiece; or Hugging Face's tokenizer.json with the files next to it;
                         absent for a model without text
    DIR/model.json       kind, config, new_tokens, preprocessing, content_hash, step, parameters,
                         manifest, created_by, run, int8 (true if some weights are in 8 bits)
    DIR/manifest.json    size and hash of each file, by which it is checked when it is opened

An export appears as a whole: it is written under another name and renamed. On gs://, where a
directory cannot be renamed at once, it is written in place: model.json, without which there is no
export, is deleted first and written last.

`open_checkpoint` opens an export, a run's WORKDIR or one of its steps. `describe_checkpoint` reads
everything but the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from flamingo_jax.checkpoint import arrays, content_hash, fetched, manifest, store
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import (
    CARD,
    MODEL_CARD,
    check_files,
    is_of_model,
    read_card,
)
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.checkpoint.moves import move_directory
from flamingo_jax.checkpoint.streamed import Streamed
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.precision import arrays_of, is_int8, joined
from flamingo_jax.core.version import __version__
from flamingo_jax.models.kinds import KINDS
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers.chat_template import TURNS
from flamingo_jax.tokenizers.markers import Markers

# placement(path of a weight, its stored shape and dtype) -> the shape, dtype and sharding of the
# array that it is read into
Placement = Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]


class _Reading(NamedTuple):
    """How weights are read; see `open_checkpoint`."""

    placement: Placement | None = None
    change: arrays.Change | None = None


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
    """A model for use: its weights, and what is needed to build it and to make its inputs.

    Attributes:
        kind: the model that `model_config` describes: one of `models.kinds.KINDS`.
        params: all weights, {module: {name: array}}.
        model_config: `core.config.to_dict` of `models.config.ModelConfig`.
        tokenizer: the tokenizer's file, for `tokenizers.load.load_tokenizer`; None if the model has
            no text.
        preprocessing: {"image_size": pixels, "image_fit": how an image becomes a square (absent:
            "pad"), "background": what is behind transparent pixels (absent: "mean"), "chat"}.
        step: number of updates.
        path: the export, or WORKDIR/checkpoints/STEP.
    """

    kind: str
    params: dict[str, dict[str, Any]]
    model_config: dict[str, Any]
    tokenizer: Path | None
    preprocessing: dict[str, Any]
    step: int
    path: Path

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """The tokens that were added to the vocabulary, in the order of their ids."""
        return tuple(self.model_config.get("new_tokens") or ())


def export(
    directory: PathLike,
    params: trees.Params,
    *,
    kind: str,
    config: Mapping[str, Any],
    tokenizer: PathLike | Mapping[str, bytes] | None,
    preprocessing: Mapping[str, Any],
    step: int,
    markers: Markers | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model directory, or replaces it; all processes of a cluster call it together.

    Args:
        directory: the model directory, such as WORKDIR/export.
        params: all weights, in the dtypes in which they are stored; or all of them `Streamed`.
        kind: one of `models.kinds.KINDS`.
        config: `core.config.to_dict` of `models.config.ModelConfig`.
        tokenizer: the tokenizer (a file, or the directory that contains it), which is copied; or
            the content of its files by name, the vocabulary first; None without text.
        preprocessing: {"image_size": pixels, "image_fit": how an image becomes a square (absent:
            "pad"), "background": what is behind transparent pixels (absent: "mean"), "chat"}.
        step: number of updates.
        markers: the tokens around texts and images; None = those stored with the tokenizer.
        run: names the training run that made the weights.

    Returns:
        `directory`.

    Raises:
        CheckpointError: if the kind is unknown, a weight has zero size or a dtype that JAX does not
            have, or the tokenizer is missing.
        PathError: if the directory cannot be written.
    """
    if kind not in KINDS:
        raise CheckpointError(
            f"Cannot export the kind {kind!r}; expected one of {', '.join(KINDS)}."
        )
    flat = arrays_of(trees.flatten(params))
    named = arrays.named(flat)
    flat = {path: named[path] for path in flat}  # the order of the content hash
    for path, leaf in flat.items():
        if (dtype := jax.dtypes.canonicalize_dtype(leaf.dtype)) != leaf.dtype:
            raise CheckpointError(
                f"Weight {path!r} is {leaf.dtype}, which JAX would read back as {dtype}. Cast it."
            )
    if isinstance(tokenizer, Mapping):
        pieces = dict(tokenizer)
    else:
        pieces = {} if tokenizer is None else tokenizer_lib.files(_tokenizer_file(tokenizer))
    if pieces and markers is not None:
        pieces[markers_lib.FILE_NAME] = json.dumps(
            config_lib.to_dict(markers), indent=2, allow_nan=False
        ).encode()
    target = paths.absolute(directory)
    # the same name in every process
    place = target.parent / f".{target.name}.tmp" if paths.is_local(target) else target
    is_primary = ocp.multihost.process_index() == 0
    if is_primary:
        if place == target:
            (target / CARD).unlink(missing_ok=True)
        else:
            place.rmtree(missing_ok=True)
        paths.make_directory(place)
    ocp.multihost.sync_global_processes("flamingo_jax:export:begin")
    digest = hashlib.sha256()
    try:
        arrays.write(
            place / "weights",
            {path: content_hash.hashed(path, leaf, digest) for path, leaf in flat.items()},
        )
    except CheckpointError:
        if is_primary and place != target:
            with contextlib.suppress(OSError):  # clean up; the first error is raised below
                place.rmtree(missing_ok=True)
        raise
    if is_primary:
        for name, content in pieces.items():
            paths.write_atomically(place / name, content)
        is_streamed = all(isinstance(leaf, Streamed) for leaf in flat.values())
        card = {
            "kind": kind,
            "config": dict(config),
            "new_tokens": list(config.get("new_tokens") or ()),
            "preprocessing": dict(preprocessing),
            # the vocabulary; its other files are next to it
            "tokenizer": next(iter(pieces), None),
            "content_hash": digest.hexdigest()
            if is_streamed
            else content_hash.hash_of(flat, place / "weights"),
            "step": int(step),
            "parameters": trees.count(params),
            "manifest": manifest.NAME,
            "created_by": f"flamingo_jax {__version__}",
            **({} if run is None else {"run": dict(run)}),
            **({"int8": True} if any(map(is_int8, trees.flatten(params).values())) else {}),
        }
        content = paths.json_text(place / CARD, card).encode()
        entries = manifest.entries(place, manifest.files(place))
        manifest.write(place, entries | {CARD: manifest.entry_of(content)})
        paths.write_atomically(place / CARD, content)
        if place != target:
            if (target / MODEL_CARD).exists():  # a person may have written in it
                (target / MODEL_CARD).copy(place / MODEL_CARD)
            move_directory(place, target)
    ocp.multihost.sync_global_processes("flamingo_jax:export:end")
    return Path(directory)


def describe_checkpoint(
    path: PathLike,
    towers: Mapping[str, PathLike | None] | None = None,
    *,
    tokenizer: PathLike | None = None,
) -> OpenedCheckpoint:
    """`open_checkpoint` without reading a weight: `params` are jax.ShapeDtypeStruct, as stored.

    A program builds the model from this description, and from the model the `placement` that opens
    a model larger than one host.

    Args:
        path: as for `open_checkpoint`, like the other arguments.
        towers: frozen towers that have moved.
        tokenizer: where the tokenizer is, if it has moved.

    Raises:
        CheckpointError: as `open_checkpoint`, except that damaged weights are not noticed.
    """
    return open_checkpoint(path, towers, tokenizer=tokenizer, placement=_describe)


def open_checkpoint(
    path: PathLike,
    towers: Mapping[str, PathLike | None] | None = None,
    *,
    tokenizer: PathLike | None = None,
    placement: Placement | None = None,
    change: arrays.Change | None = None,
) -> OpenedCheckpoint:
    """Opens a model for use.

    Args:
        path: an export or its name (`checkpoint.hub`), WORKDIR/checkpoints/STEP, or a WORKDIR,
            for the newest step, or its export without a step. Of a step only the weights are read,
            not the optimizer state, and the frozen towers from the paths in the run's config.
        towers: {"lm": PATH} for towers that have moved since; None entries are ignored. They must
            be the same towers.
        tokenizer: where the tokenizer of a run's step is, if it has moved.
        placement: dtype and sharding of each weight, for models larger than one device. Without it
            weights are read as stored, on the default device, and those of an export are checked
            against the content hash too.
        change: applied to some whole modules at a time, right after they are read, so that all
            weights never exist as they are stored.

    Raises:
        CheckpointError: if `path` is no checkpoint, a file is missing, cut off or changed, or a
            tower is missing or not the one of the run.
    """
    reading = _Reading(placement, change)
    moved = {name: tower for name, tower in (towers or {}).items() if tower is not None}
    location = fetched.local(path)
    if (location / CARD).exists():
        return _open_export(location, moved, tokenizer, reading)
    if there := store.steps(location):
        return _open_step(location, there[-1], moved, tokenizer, reading)
    if (location / "export" / CARD).exists():
        return _open_export(location / "export", moved, tokenizer, reading)
    # "." may be the directory of a step
    one = location if location.parent.name == "checkpoints" else paths.absolute(location)
    if one.parent.name == "checkpoints" and one.name.isdigit():
        return _open_step(one.parent.parent, int(one.name), moved, tokenizer, reading)
    expected = "an export, a WORKDIR with checkpoints/ or export/, or WORKDIR/checkpoints/STEP"
    if not location.exists():
        raise CheckpointError(
            f"There is no checkpoint at {location}: no such directory. Expected {expected}."
        )
    raise CheckpointError(
        f"{location} is not a checkpoint, or not a complete one. Expected {expected}."
    )


def _open_export(
    directory: Path,
    towers: Mapping[str, PathLike],
    tokenizer: PathLike | None,
    reading: _Reading,
) -> OpenedCheckpoint:
    if towers:
        raise CheckpointError(
            f"Export {directory} is self-contained: towers {sorted(towers)} cannot be put into it."
        )
    directory, card = read_card(directory)
    check_files(directory, card, only=_read_of_export(reading, with_tokenizer=tokenizer is None))
    flat = _read_weights(directory / "weights", "", reading)
    params = trees.unflatten(flat)
    is_whole = reading == _Reading()
    if is_whole and (got := _hash_of(params)) != card["content_hash"]:
        raise CheckpointError(
            f"The weights of export {directory} were changed since it was made: got hash "
            f"{got[:12]}, expected {card['content_hash'][:12]}. Make the export again."
        )
    if tokenizer is None and card.get("tokenizer"):
        tokenizer = directory / card["tokenizer"]
    return OpenedCheckpoint(
        kind=card["kind"],
        params=params,
        model_config=card["config"],
        tokenizer=None if tokenizer is None else _tokenizer_file(tokenizer),
        preprocessing=card["preprocessing"],
        step=card["step"],
        path=directory,
    )


def _open_step(
    workdir: Path,
    step: int,
    towers: Mapping[str, PathLike],
    tokenizer: PathLike | None,
    reading: _Reading,
) -> OpenedCheckpoint:
    directory = store.step_directory(workdir, step)
    if step in (there := store.steps(workdir)):
        try:
            all_files = lambda name: True
            only = manifest.is_small if reading.placement is _describe else all_files
            store.check_step(workdir, step, only=only)
        except DamageError as error:
            others = [each for each in there if each != step]
            raise CheckpointError(
                f"Checkpoint {directory} is damaged: {error}. Steps {others or 'none'} are there "
                "too."
            ) from error
    config = store.read_item(workdir, step, "config")
    frozen = config.get("frozen") or {}
    if unknown := sorted(set(towers) - set(frozen)):
        raise CheckpointError(
            f"Checkpoint {directory} has no towers {unknown}; it has {sorted(frozen) or 'none'}."
        )
    flat = _read_weights(directory / "state", "trainable/", reading)
    for name, record in frozen.items():
        tower = _read_tower(name, record, towers.get(name), directory, reading)
        flat = tower | flat  # a weight of the tower that the run trained is the trained one
    try:
        kind, model_config, data = config["stage"], config["model"], config["data"]
        defaults = {"image_fit": "pad", "background": "mean"}  # are not stored
        preprocessing = {"image_size": data["image_size"]} | {
            name: data[name]
            for name, default in defaults.items()
            if data.get(name, default) != default
        }
        if any(each.get("kind") == "conversations" for each in data.get("datasets", {}).values()):
            preprocessing["chat"] = dataclasses.asdict(TURNS)
        tokenizer = tokenizer if tokenizer is not None else data["tokenizer"]
    except KeyError as error:
        raise CheckpointError(
            f"Checkpoint {directory} is damaged: its config lacks {error}."
        ) from error
    return OpenedCheckpoint(
        kind=kind,
        params=trees.unflatten(flat),
        model_config=model_config,
        tokenizer=None
        if tokenizer is None
        else _tokenizer_file(tokenizer, "An export has its own. "),
        preprocessing=preprocessing,
        step=step,
        path=directory,
    )


def _read_tower(
    name: str,
    record: Mapping[str, Any],
    moved: PathLike | None,
    checkpoint: Path,
    reading: _Reading,
) -> dict[str, Any]:
    """Returns a frozen tower's weights, by their paths in the larger model."""
    override = (
        f"{{{name!r}: PATH}} as `towers` of Flamingo.load, --config.towers.{name}=PATH of evaluate"
    )
    try:
        directory, card = read_card(
            moved if moved is not None else record["path"], what=f"tower {name!r}"
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"Tower {name!r} of {checkpoint}: {error} If it has moved, give {override}, or the "
            "run's export."
        ) from error
    if card["content_hash"] != record["hash"]:
        raise CheckpointError(
            f"Tower {name!r} at {directory} is not the one that {checkpoint} was trained with: got "
            f"hash {card['content_hash'][:12]}, expected {record['hash'][:12]}. Give the right "
            f"one: {override}."
        )
    only = _read_of_export(reading, with_tokenizer=False)
    check_files(directory, card, what=f"tower {name!r}", only=only)
    return _read_weights(
        directory / "weights", f"{record['source']}/", reading, to=f"{record['target']}/"
    )


def _read_weights(
    directory: Path, prefix: str, reading: _Reading, *, to: str = ""
) -> dict[str, Any]:
    """Reads the arrays under `prefix`, with `prefix` replaced by `to`."""
    stored = {
        name: leaf for name, leaf in arrays.describe(directory).items() if name.startswith(prefix)
    }
    if not stored:
        raise CheckpointError(
            f"The arrays at {directory} hold nothing under {prefix!r}. It is not the right model."
        )
    stored = {to + name.removeprefix(prefix): leaf for name, leaf in stored.items()}
    if reading.placement is _describe:
        return joined(stored)
    if reading.placement is not None:
        stored = {name: reading.placement(name, leaf) for name, leaf in stored.items()}
    found: dict[str, Any] = {}
    for some in [stored] if reading.change is None else arrays.chunks(stored):
        like = {prefix + name.removeprefix(to): leaf for name, leaf in some.items()}
        leaves = arrays.read(directory, like)
        read = joined({to + name.removeprefix(prefix): leaf for name, leaf in leaves.items()})
        change = reading.change
        found |= trees.flatten(change(trees.unflatten(read))) if change else read
    return found


def _hash_of(params: trees.Params) -> str:
    return trees.content_hash(trees.unflatten(arrays_of(trees.flatten(params))))


def _read_of_export(reading: _Reading, *, with_tokenizer: bool) -> Callable[[str], bool]:
    """Returns which files of an export are read, and so are checked."""
    of_model = lambda name: with_tokenizer or is_of_model(name)
    if reading.placement is _describe:
        return lambda name: of_model(name) and manifest.is_small(name)
    return of_model


def _describe(path: str, stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The placement of `describe_checkpoint`: nothing is read."""
    return stored


def _tokenizer_file(path: PathLike, hint: str = "") -> Path:
    try:
        return tokenizer_lib.find(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no tokenizer at {path}. {hint}Put it there again; a link is enough."
        ) from error

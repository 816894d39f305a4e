"""The export of a run, WORKDIR/export: another run's is refused, this run's is kept up to date.

model.json names the run that made it:

    "run": {"id": of the start, see run_id; "hash" and "record": see run_record}

The record is stored without paths, and with one hash for the list of a dataset's shards. Version
0.4.0 wrote no "run".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from flamingo_jax.checkpoint import card as card_lib
from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.data import fingerprints
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.nn import lora
from flamingo_jax.training import deviations, run_record, towers
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run_id import RunId, hash_of
from flamingo_jax.training.run_record import few
from flamingo_jax.training.state import StateLayout, TrainState

Report = Callable[[str], None]


def check(
    config: TrainConfig, record: Mapping[str, Any], workdir: paths.Path, report: Report
) -> None:
    """Refuses a workdir with the export of another run, before anything is trained.

    Args:
        config: of this run.
        record: of this run.
        workdir: of this run.
        report: receives a line if the export does not name its run.

    Raises:
        CheckpointError: if the export is of another run. It names what differs.
    """
    target, newest = workdir / "export", run_record.newest(workdir)
    may_differ = _may_differ(config, newest)
    if newest and run_record.differences(newest, record, may_differ):
        return  # the workdir is another run's, and `Store` says more about it
    try:
        card = card_lib.read_card(target)[1]
    except CheckpointError:  # there is none, or it is damaged: then it is made again at the end
        return
    if theirs := _record_in(card):
        run_record.refuse_other_data(theirs, _stored(record), f"the export {target} was")
        if changed := run_record.differences(theirs, _stored(record), may_differ):
            raise CheckpointError(_refusal(target, "of another run", changed))
        return
    if changed := _other_model(target, card, record):
        raise CheckpointError(_refusal(target, "of another model", changed))
    if not newest:
        raise CheckpointError(
            f"{target} does not name the run that made it, and {workdir} has no checkpoint of that "
            "run to go on from. Give another --workdir, or move the export away."
        )
    report(
        f"{target} does not name the run that made it: an older version wrote it. It is replaced "
        "when the training ends, unless it has the same weights."
    )


def write(
    config: TrainConfig,
    layout: StateLayout,
    state: TrainState[Any],
    step: int,
    *,
    claim: RunId,
    record: Mapping[str, Any],
    was_trained: bool,
    report: Report,
) -> None:
    """Writes WORKDIR/export, unless it is of this state; frozen towers as in their own exports.

    Adapters are merged into the weights that they are for (`nn.lora`), which are then float32.

    All processes call it together.

    Args:
        config: of the run.
        layout: of the state.
        state: the last one.
        step: the updates done.
        claim: on the workdir.
        record: of the run.
        was_trained: whether this start did any update. If it did not, an export of this run and
            step is of this state.
        report: receives a line.

    Raises:
        WorkdirTaken: if another run took the workdir over; then nothing is written.
        CheckpointError: if it cannot be written, or if its tokenizer or a tower was replaced since
            the run began.
    """
    claim.check()
    _refuse_replaced(config, record)
    target, stored = claim.workdir / "export", layout.stored_frozen
    adapters = config.model.lm.lora if config.model.lm else None

    def weights() -> trees.Params:
        if adapters is None:
            return trees.merge(state.trainable, towers.load(config, stored) if stored else {})
        frozen = towers.load(config, lora.float32_where_adapted(stored, state.trainable))
        return lora.merged(trees.merge(state.trainable, frozen), adapters)

    card = card_lib.whole(target, report=report)
    if card and not was_trained and card["step"] == step and _is_of(card, weights):
        report(f"{target} is of step {step} already.")
        return
    export_lib.export(
        target,
        weights(),
        kind=config.stage,
        config=config_lib.to_dict(config.model.without_adapters()),
        tokenizer=config.data.tokenizer,
        preprocessing=config.data.preprocessing,
        step=step,
        run={"id": claim.id, "hash": hash_of(record), "record": _stored(record)},
    )
    report(f"Exported step {step} to {target}.")


def _refuse_replaced(config: TrainConfig, record: Mapping[str, Any]) -> None:
    """Refuses files that the export takes from their paths, and that are others or gone by now."""
    hashes = lambda found: {name: tower["hash"] for name, tower in found.items()}
    theirs = {"frozen": hashes(record["frozen"]), "tokenizer": record["tokenizer"]}
    export_later = (
        "All steps are saved. Put the former files back, and start the same command: it exports."
    )
    try:
        now = {
            "tokenizer": fingerprints.of_tokenizer(config.data.tokenizer),
            "frozen": hashes(towers.frozen_records(config)),
        }
    except (CheckpointError, FileNotFoundError, config_lib.ConfigError, paths.PathError) as error:
        raise CheckpointError(
            f"Files of the run cannot be read any more, and are needed for its export: {error} "
            f"{export_later}"
        ) from error
    if changed := config_lib.differences(theirs, now):
        raise CheckpointError(
            f"Files of the run were replaced since it began (then -> now): {few(changed)}. "
            f"{export_later}"
        )


def _is_of(card: Mapping[str, Any], weights: Callable[[], trees.Params]) -> bool:
    """Returns True if an export of this run's step is of this run.

    One that names its run was compared at the start. Where the weights are on several hosts, one
    that does not is made again.
    """
    if _record_in(card):
        return True
    return jax.process_count() == 1 and card["content_hash"] == trees.content_hash(weights())


def _may_differ(config: TrainConfig, newest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns patterns of the fields that this run changed, or may change, on its way."""
    if not newest:
        return (r"resume\.allow", r"deviations")
    return (*deviations.patterns(config), *deviations.recorded_patterns(newest))


def _stored(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an export stores of a record: without the paths of this machine."""
    data = record["data"]
    datasets = {name: {**fields, "path": ""} for name, fields in data["datasets"].items()}
    kept = {name: value for name, value in record.items() if name not in ("hooks", "evaluate")}
    return kept | {
        "initial": None,
        "towers": {"random": record["towers"]["random"]},
        "until": None,
        "data": {**data, "tokenizer": "", "datasets": datasets},
        "frozen": {
            name: {field: value for field, value in tower.items() if field != "path"}
            for name, tower in record["frozen"].items()
        },
        "records": {
            name: {**found, "files": hash_of(found["files"])}
            for name, found in record["records"].items()
        },
    }


def _record_in(card: Mapping[str, Any]) -> dict[str, Any] | None:
    run = card.get("run")
    record = run.get("record") if isinstance(run, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else None


def _other_model(
    target: paths.Path, card: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str]:
    """Returns how the model of an export that names no run differs from this run's."""
    model, tokenizer = card["config"], {}
    # ConfigError: it has fields that are gone, and the comparison names them
    with contextlib.suppress(config_lib.ConfigError):
        model = config_lib.to_dict(config_lib.from_dict(ModelConfig, model))
    with contextlib.suppress(FileNotFoundError):
        tokenizer = fingerprints.of_tokenizer(target / card["tokenizer"])
    common = tokenizer.keys() & record["tokenizer"].keys()
    mine = {name: record["tokenizer"][name] for name in common}
    return config_lib.differences(
        {"stage": card["kind"], "model": model, "tokenizer": {n: tokenizer[n] for n in common}},
        {"stage": record["stage"], "model": record["model"], "tokenizer": mine},
    )


def _refusal(target: paths.Path, what: str, changed: Sequence[str]) -> str:
    return (
        f"{target} is the export {what} (there -> here): {few(changed)}. Give another "
        "--workdir, or move the export away."
    )

"""How a run begins or goes on: what is checked first, and the state it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.store import Store, read_item
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.core.notation import Array
from flamingo_jax.core.processes import from_first_process
from flamingo_jax.data.config import NO_AUGMENTATION
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import deviations, run_record, towers, unreported
from flamingo_jax.training.batches import positions_at
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.state import StateLayout, TrainState

Report = Callable[[str], None]


def tokenizer_of(config: TrainConfig) -> Tokenizer:
    """Returns the run's tokenizer; only the flamingo stage has rows for new tokens.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: its file is damaged, or is no tokenizer.
    """
    new_tokens = config.model.new_tokens if config.stage == "flamingo" else ()
    try:
        return load_tokenizer(config.data.tokenizer, new_tokens)
    except ValueError as error:
        raise config_lib.ConfigError(
            f"config.data.tokenizer: {config.data.tokenizer} cannot be used: {error}"
        ) from error


def check(config: TrainConfig, tokenizer: Tokenizer, probes: Collection[str]) -> None:
    """Checks what the config says of the tokenizer, images, datasets, probes and deviations.

    The model and the tokenizer both count the ids of new tokens from V.

    Raises:
        ConfigError: if the vocabulary does not fit, tiles would be augmented, a Flamingo would
            learn from text alone, the probe of `config.until` is unknown, or `config.resume` names
            what cannot change.
    """
    deviations.check(config)
    lm, pieces = config.model.lm, tokenizer.vocab_size
    if lm and (pieces != lm.vocab_size if tokenizer.new_tokens else pieces > lm.vocab_size):
        raise config_lib.ConfigError(
            f"config.model.lm.vocab_size is {lm.vocab_size}, and the tokenizer "
            f"{config.data.tokenizer} has {pieces} pieces. Give the tokenizer of the language "
            "model's export: where a table has more rows than pieces, the prompt.json beside it "
            "says so."
        )
    if config.model.tiled_vit is not None and config.data.augment != NO_AUGMENTATION:
        raise config_lib.ConfigError(
            "config.model.tiled_vit sees an image as tiles, and tiles are not augmented: "
            f"config.data.augment is {config.data.augment}; expected zeros, as in "
            "--config.data.augment.flip=0."
        )
    kinds = {dataset.kind for dataset in config.data.datasets.values() if dataset.weight}
    if config.stage == "flamingo" and kinds == {"text"}:  # a plan may count it alone
        raise config_lib.ConfigError(
            "config.data.datasets has text alone with a weight above 0, and a Flamingo learns from "
            "images: expected a dataset of another kind beside it; or stage = 'language_model'."
        )
    if config.until and config.until.probe not in probes:
        raise config_lib.ConfigError(
            f"config.until.probe is {config.until.probe!r}; expected one of {sorted(probes)}."
        )


def open_store(
    config: TrainConfig, record: dict[str, Any], workdir: paths.Path, report: Report
) -> Store:
    """Opens the run's checkpoints.

    Raises:
        CheckpointError: if the newest checkpoint was made with another config or other data.
    """
    reported = False

    def completed(theirs: dict[str, Any]) -> dict[str, Any]:
        nonlocal reported
        run_record.refuse_other_data(theirs, record, f"the checkpoints in {workdir} were")
        if not run_record.has_fingerprints(theirs) and not reported:
            reported = True
            report(
                f"The checkpoints in {workdir} are of an older version, which stored no "
                "fingerprints of records and tokenizer: nothing shows whether these are the same."
            )
        return run_record.completed(theirs, record)

    return Store(
        workdir,
        record,
        keep=config.hooks.keep,
        # a checkpoint knows what its weights started with, and this run has it from there
        may_differ=(*run_record.MAY_DIFFER, r"start(\..*)?", *deviations.patterns(config)),
        completed=completed,
        advice=deviations.advice,
        on_damage=config.hooks.on_damage,
        report=report,
    )


def add_deviations(
    config: TrainConfig, record: dict[str, Any], store: Store, workdir: paths.Path
) -> list[deviations.Deviation]:
    """Returns all deviations of the run up to now; checkpoints store them from now on.

    Raises:
        ConfigError: if `config.resume.skip_batches` is another one for batches that were used.
    """
    if (step := store.latest_step()) is None:
        return []
    theirs = run_record.completed(read_item(workdir, step, "config"), record)
    uses = positions_at(config, step)
    found = deviations.of(config, theirs, record, step=step, uses=uses)
    if found:
        store.add_to_config({"deviations": found})
    return found


class Start(NamedTuple):
    """Where a run starts from.

    Attributes:
      state: after the updates done so far.
      positions: next batch of each dataset.
      unreported: metrics of the last updates, which no report has.
    """

    state: TrainState[Array]
    positions: dict[str, int]
    unreported: unreported.Rows = ()


def init(config: TrainConfig, layout: StateLayout, rng: jax.Array) -> Start:
    """Makes the state at step 0: random weights, and those of `config.initial` and of towers."""
    frozen = _frozen(config, layout)
    state = layout.init_trained(rng)
    trainable = towers.start(config, state.trainable)
    state = dataclasses.replace(state, trainable=trainable, frozen=frozen)
    return Start(state, positions_at(config, 0))


def restore(config: TrainConfig, layout: StateLayout, store: Store) -> Start:
    """Reads the newest checkpoint; frozen towers come from their exports again.

    Raises:
        CheckpointError: if it is damaged, or is the copy of another step.
    """
    frozen = _frozen(config, layout)
    saved, positions = store.restore(None, layout.abstract.saved())
    state = TrainState(**saved, frozen=frozen)
    step = from_first_process(str(store.latest_step()))  # others may see an old list of names
    if step != str(int(state.step)):
        raise CheckpointError(
            f"Checkpoint {step} of this run is the state after {int(state.step)} updates: it was "
            f"renamed or copied. Name it {int(state.step)} again, or move it out of "
            "WORKDIR/checkpoints."
        )
    return Start(state, positions, store.unreported(int(state.step), unreported.from_json))


def _frozen(config: TrainConfig, layout: StateLayout) -> Any:
    read = layout.read_frozen
    return layout.compute_form(towers.load(config, read, rounded=layout.rounded)) if read else {}

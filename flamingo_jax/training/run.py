"""A stage from its config to its export.

Everything that the loop needs, put together in the one order that works.

config --> mesh, tokenizer, towers --> resolved config --> Store (refuses another run's workdir) --> mixture
--> objective --> abstract state, shardings --> towers loaded --> state restored or made --> loop --> export
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.store import MAY_DIFFER, Store, steps
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import BrokenDataset, describe_reasons
from flamingo_jax.data.to_device import to_device
from flamingo_jax.models import api, encoders
from flamingo_jax.models.config import required
from flamingo_jax.sharding import mesh as mesh_lib
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import callbacks, datasets_per_step, loop, objective, optimizer, towers
from flamingo_jax.training import logs as metrics
from flamingo_jax.training import state as state_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.step import Step, make_step

Tell = Callable[[str], None]

# Beside Store's: what is looked at, and how the loader works, change nothing of what is computed.
_MAY_DIFFER = (
    r"(until|evaluate)(\..*)?",
    r"data\.(num_threads|prefetch|max_corrupt)",
    r"data\.datasets\.[^.]+\.pool",
)

# What a program shows its user as one message, without a traceback.
EXPECTED_ERRORS = (
    config_lib.ConfigError,
    paths.PathError,
    CheckpointError,
    FileNotFoundError,
    BrokenDataset,
    metrics.NonFiniteError,
    callbacks.ProbeNotReached,
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a probe or an evaluation, handed in by the program, sees of a run.

    Attributes:
      config: the resolved config.
      tokenizer: of the run.
      model: the model as pure functions; None in the contrastive stage.
      objective: what is minimised.
      mesh: the devices.
    """

    config: TrainConfig
    tokenizer: Tokenizer
    model: api.Model | None
    objective: objective.Objective
    mesh: Mesh


Measurer = Callable[[Stage], callbacks.Measure]  # a run -> (its weights -> numbers)


def train(
    config: TrainConfig,
    workdir: paths.PathLike,
    *,
    probes: Mapping[str, Measurer] | None = None,
    evaluation: Measurer | None = None,
    devices: Sequence[jax.Device] | None = None,
    tell: Tell = lambda line: None,
) -> state_lib.TrainState:
    """Runs a stage, from its newest checkpoint if there is one, and exports the model.

    Args:
        config: the run.
        workdir: receives checkpoints/, export/, config.json, metrics.jsonl and tensorboard/.
        probes: what `config.until.probe` may name.
        evaluation: few-shot evaluation, done as `config.evaluate` says.
        devices: the devices; all of them by default.
        tell: receives a line for people now and then.

    Returns:
        The last state.

    Raises:
        PathError: if the workdir cannot be written; before anything is compiled, as for all that
            follow but the last three.
        ConfigError: if the config does not fit its towers, or names an unknown probe.
        CheckpointError: for a missing or damaged tower or checkpoint, or one of another config.
        BrokenDataset: if too many records are corrupt.
        NonFiniteError: if a loss or gradient is not finite.
        ProbeNotReached: if the steps are used up, and `config.until` asks for more.
    """
    workdir = paths.make_directory(workdir)
    # How to begin: the order is important. What can be wrong comes first, what takes time last.
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    tokenizer = _load_tokenizer(config)
    config = config.resolved(tokenizer.vocab_size)
    _check_vocabulary(config, tokenizer)
    if config.until and config.until.probe not in (probes or {}):
        raise config_lib.ConfigError(
            f"config.until.probe is {config.until.probe!r}; expected one of {sorted(probes or {})}."
        )
    record = {**config_lib.to_dict(config), "frozen": towers.frozen_records(config)}
    if not steps(workdir):
        towers.check_start(config)

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(
            Store(
                workdir,
                record,
                keep=config.hooks.keep,
                may_differ=(*MAY_DIFFER, *_MAY_DIFFER),
                completed=_completed,
            )
        )
        index, count = mesh_lib.reader(mesh)
        num_shards = mesh_lib.num_batch_shards(mesh)
        mixture = Mixture(
            config.data,
            seed=config.seed,
            tokenizer=tokenizer,
            process_index=index,
            process_count=count,
            num_shards=num_shards,
        )
        prepared = prepare(config, mesh)
        stage = Stage(config, tokenizer, prepared.model, prepared.objective, mesh)
        plan = prepared.plan
        keys = jax.jit(
            lambda: tuple(jax.random.split(jax.random.key(config.seed))),
            out_shardings=mesh_lib.replicated(mesh),
        )
        init_key, step_key = keys()
        state, positions = _restore_or_init(config, store, plan, init_key)
        start = int(state.step)
        tell(_describe(config, stage, state, mixture, start))

        log = _open_logs(config, workdir, start, stack)
        stream = batches(config, mixture, mesh, positions, start, local_shards=num_shards // count)
        state, done, stopped = loop.run(
            prepared.step,
            state,
            stack.enter_context(contextlib.closing(stream)),
            step_key,
            start=start,
            steps=config.steps,
            log_every=config.hooks.log_every,
            log=log,
            hooks=_hooks(config, stage, store, log, evaluation, _tell_rejected(mixture, tell)),
            stop=_stop(config, stage, log, probes),
        )
    if config.until and config.until.required and not stopped:
        until = config.until
        raise callbacks.ProbeNotReached(
            f"{until.probe}: {until.metric} is still not below {until.below} after all {done} "
            f"steps of the {config.stage} stage, so nothing was exported. Go on with a larger "
            "--config.steps, or export all the same with --config.until.required=False; see "
            f"{workdir}/metrics.jsonl."
        )
    _export(config, workdir, state, plan, done, tell)
    return state


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A stage on its mesh, before any array exists.

    What trains, what `plan` compiles, what the tests run.

    Attributes:
      model: the model as pure functions; None in the contrastive stage.
      objective: what is minimised.
      plan: the abstract state, its shardings, its init.
      step: one update, jitted: step(state, {dataset: batch}, rng).
    """

    model: api.Model | None
    objective: objective.Objective
    plan: state_lib.StateLayout
    step: Step


def prepare(config: TrainConfig, mesh: Mesh) -> Prepared:
    """Lays a run out on a mesh; the devices may be those of a topology that is described only.

    Args:
        config: a resolved run.
        mesh: the device mesh.

    Raises:
        TableError: if a table of the objective does not match each weight exactly once.
        ValueError: if the mesh does not divide a weight.
    """
    model, goal = build_objective(config, mesh_lib.num_batch_shards(mesh))
    schedules = optimizer.make_schedules(config.optimizer, config.steps)
    plan, transformation = state_lib.plan_state(
        goal,
        lambda traits: optimizer.make_optimizer(
            config.optimizer, schedules["learning_rate"], traits
        ),
        mesh,
        config.precision,
        zero=config.mesh.zero,
    )
    weights = {name: dataset.weight for name, dataset in config.data.datasets.items()}
    step = make_step(
        plan,
        config.mesh.layout(mesh),
        objective=goal,
        optimizer=transformation,
        schedules=schedules,
        weights={"merged": 1.0} if config.mixing == "merged" else weights,
        policy=config.precision,
    )
    return Prepared(model, goal, plan, step)


def build_objective(
    config: TrainConfig, num_shards: int
) -> tuple[api.Model | None, objective.Objective]:
    """Returns (the model as pure functions, or None, and the stage's objective) of a resolved config."""
    model = config.model
    if config.stage == "contrastive":
        return None, objective.contrastive(
            encoders.contrastive(model), num_shards=num_shards, augmentation=config.data.augment
        )
    if config.stage == "language_model":
        lm = api.language_model(required(model.lm, "lm"))
        return lm, objective.language_model(lm)
    functions = api.flamingo(
        model.flamingo(), compute_form=True, trains_vision=config.trains_vision
    )
    return functions, objective.captioning(
        functions,
        num_shards=num_shards,
        augmentation=config.data.augment,
        trains_vision=config.trains_vision,
    )


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a run that an older version began, with the fields that have come since: their defaults change nothing."""
    frozen = {"frozen": record["frozen"]}
    try:
        config = config_lib.from_dict(
            TrainConfig, {name: record[name] for name in record if name not in frozen}
        )
    # it has fields that are no more: they will be told as differences
    except config_lib.ConfigError:
        return record
    return config_lib.to_dict(config) | frozen


def _load_tokenizer(config: TrainConfig) -> Tokenizer:
    """The towers know no new tokens: only Flamingo has rows for them."""
    return load_tokenizer(
        config.data.tokenizer, config.model.new_tokens if config.stage == "flamingo" else ()
    )


def _check_vocabulary(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """The ids of new tokens are counted from V by model and tokenizer alike."""
    lm, pieces = config.model.lm, tokenizer.vocab_size
    if lm and (pieces != lm.vocab_size if tokenizer.new_tokens else pieces > lm.vocab_size):
        raise config_lib.ConfigError(
            f"config.model.lm.vocab_size is {lm.vocab_size}, and the tokenizer "
            f"{config.data.tokenizer} has {pieces} pieces. Give the tokenizer of the language "
            "model's export: where a table has more rows than pieces, the prompt.json beside it "
            "says so."
        )


def _restore_or_init(
    config: TrainConfig, store: Store, plan: state_lib.StateLayout, key: jax.Array
) -> tuple[state_lib.TrainState, dict[str, int]]:
    """Returns (state, data positions); frozen towers come from their exports either way."""
    frozen = plan.compute_form(towers.load(config, plan.kept)) if plan.kept else {}
    if store.latest_step() is None:
        state = plan.init_trained(key)
        state = dataclasses.replace(state, trainable=towers.start(config, state.trainable))
        positions = datasets_per_step.positions_at(config.mixing, list(config.data.datasets), 0)
    else:
        saved, positions = store.restore(None, plan.abstract.saved())
        state = state_lib.TrainState(**saved, frozen={})
    return dataclasses.replace(state, frozen=frozen), positions


def batches(
    config: TrainConfig,
    mixture: Mixture,
    mesh: Mesh,
    positions: Mapping[str, int],
    start: int,
    *,
    local_shards: int,
) -> Generator[dict[str, Any], None, None]:
    """Yields {dataset: batch} for update `start`, `start` + 1, ... on the devices, without end.

    Args:
        config: the run; its `mixing` says which datasets an update gets.
        mixture: the datasets.
        mesh: the devices.
        positions: next batch of each dataset.
        start: the updates done.
        local_shards: data shards that this process reads for.
    """
    if config.mixing == "round_robin":
        streams = {name: mixture.iterate({name: position}) for name, position in positions.items()}
        for update in itertools.count(start):
            (name,) = datasets_per_step.datasets_of_step(config.mixing, list(positions), update)
            yield {name: to_device(next(streams[name])[name], mesh)}
    weights = {name: dataset.weight for name, dataset in config.data.datasets.items()}
    for read in mixture.iterate(positions):
        merged = (
            {"merged": datasets_per_step.merge(read, weights, local_shards)}
            if config.mixing == "merged"
            else read
        )
        yield {name: to_device(batch, mesh) for name, batch in merged.items()}


def _open_logs(
    config: TrainConfig, workdir: paths.Path, start: int, stack: contextlib.ExitStack
) -> metrics.Log:
    """Returns one log for all that are wanted; the first process alone writes."""
    if jax.process_index():
        return lambda step, numbers: None
    logs = [metrics.jsonl_log(workdir / "metrics.jsonl", start)]
    opened = []
    if config.hooks.tensorboard:
        opened.append(metrics.tensorboard_log(workdir / "tensorboard", start))
    if config.hooks.progress:
        opened.append(metrics.progress_log(config.steps, start, config.name or config.stage))
    for log, close in opened:
        logs.append(log)
        stack.callback(close)

    def log_all(step: int, numbers: metrics.Numbers) -> None:
        for log in logs:
            log(step, numbers)

    return log_all


def _hooks(
    config: TrainConfig,
    stage: Stage,
    store: Store,
    log: metrics.Log,
    evaluation: Measurer | None,
    tell_rejected: callbacks.Hook,
) -> list[callbacks.Hook]:
    names = list(config.data.datasets)
    save = callbacks.save(
        store, lambda step: datasets_per_step.positions_at(config.mixing, names, step)
    )
    chosen = [
        callbacks.every(config.hooks.save_every, hook, at_end=True)
        for hook in (save, tell_rejected)
    ]
    if evaluation and config.evaluate.every:
        chosen.append(
            callbacks.every(
                config.evaluate.every, callbacks.measure(evaluation(stage), log), at_end=True
            )
        )
    return chosen


def _tell_rejected(mixture: Mixture, tell: Tell) -> callbacks.Hook:
    """Says in one line how many records were skipped so far, if they have become more."""
    told: dict[str, dict[str, int]] = {}

    def hook(moment: callbacks.Moment) -> None:
        nonlocal told
        if (rejected := mixture.rejected) != told:
            told = rejected
            counts = "; ".join(
                f"{name}: {describe_reasons(reasons)}" for name, reasons in rejected.items()
            )
            tell(f"Corrupt records, skipped up to step {moment.step}: {counts}.")

    return hook


def _stop(
    config: TrainConfig, stage: Stage, log: metrics.Log, probes: Mapping[str, Measurer] | None
) -> callbacks.Stop | None:
    until = config.until
    if until is None:
        return None
    measure = (probes or {})[until.probe](stage)
    return callbacks.below(measure, log, metric=until.metric, bound=until.below, steps=until.every)


def _describe(
    config: TrainConfig, stage: Stage, state: state_lib.TrainState, mixture: Mixture, start: int
) -> str:
    trained, frozen = trees.count(state.trainable), trees.count(state.frozen)
    sizes = ", ".join(f"{name} {size:,}" for name, size in mixture.sizes.items())
    mesh = " x ".join(f"{name} {size}" for name, size in stage.mesh.shape.items())
    born = f"starts from {config.initial}," if config.initial else "starts"
    begin = f"resumes at step {start}" if start else born
    return (
        f"{config.name or config.stage} {begin} of {config.steps}: {trained:,} weights trained, "
        f"{frozen:,} frozen, {config.precision.compute}; mesh {mesh}; records: {sizes}."
    )


def _export(
    config: TrainConfig,
    workdir: paths.Path,
    state: state_lib.TrainState,
    plan: state_lib.StateLayout,
    step: int,
    tell: Tell,
) -> None:
    """Writes WORKDIR/export, unless it is of this very step.

    Frozen towers as they are in their own exports.
    """
    target = workdir / "export"
    if (target / export_lib.CARD).exists() and export_lib.read_card(target)[1]["step"] == step:
        tell(f"{target} is of step {step} already.")
        return
    frozen = towers.load(config, plan.kept) if plan.kept else {}
    export_lib.export(
        target,
        trees.merge(state.trainable, frozen),
        kind=config.stage,
        config=config_lib.to_dict(config.model),
        tokenizer=config.data.tokenizer,
        preprocessing=config.data.preprocessing,
        step=step,
    )
    tell(f"Exported step {step} to {target}.")

"""Trains a stage, from its config to its export.

    config --> mesh, tokenizer, checks --> Mixture --> one run: record, processes, workdir --> Store
           --> Run: shapes, shardings, functions --> state: restored or made --> batches --> loop
           --> export

`train` does these in order; `Run` is what they share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.store import Store, steps
from flamingo_jax.core import agreement, paths, trees
from flamingo_jax.core import config as config_lib
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.guard import Guard
from flamingo_jax.core.notation import Array
from flamingo_jax.core.phases import Phase
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.models import api, encoders
from flamingo_jax.models.config import required
from flamingo_jax.sharding import mesh as mesh_lib
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.training import (
    callbacks,
    chunks,
    datasets_per_step,
    deviations,
    loop,
    not_finite,
    resume,
    run_export,
    run_id,
    run_record,
    towers,
)
from flamingo_jax.training import logs as logs_lib
from flamingo_jax.training import objective as objective_lib
from flamingo_jax.training import optimizer as optimizer_lib
from flamingo_jax.training import state as state_lib
from flamingo_jax.training.batches import (
    batches,
    batches_of_update,
    dataset_weights,
    positions_at,
)
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.loggers import chosen
from flamingo_jax.training.objective import Objective
from flamingo_jax.training.profile import Profile
from flamingo_jax.training.run_id import RunId
from flamingo_jax.training.step import Accumulate, Step, make_step
from flamingo_jax.training.utilisation import Utilisation

Report = Callable[[str], None]

# What a program shows its user as one message, without a traceback.
EXPECTED_ERRORS = (
    config_lib.ConfigError,
    paths.PathError,
    CheckpointError,
    FileNotFoundError,
    BrokenDataset,
    NonFiniteError,
    callbacks.ProbeNotReached,
    agreement.AgreementError,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is needed to train one stage on a mesh, before any array exists.

    `train` runs it, `plan` compiles it for other devices, the tests run it on eight simulated ones.

    Attributes:
      config: the resolved config.
      mesh: the devices.
      objective: the model and what is minimised.
      layout: shapes and shardings of the state, and the functions that make it.
      step: one update, jitted: step(state, {dataset: batch}, rng).
    """

    config: TrainConfig
    mesh: Mesh
    objective: Objective
    layout: state_lib.StateLayout
    step: Step


# A probe or an evaluation that a program passes to `train`: it makes a function weights -> numbers.
Measurer = Callable[[Run, Tokenizer], callbacks.Measure]


def train(
    config: TrainConfig,
    workdir: paths.PathLike,
    *,
    probes: Mapping[str, Measurer] | None = None,
    evaluation: Measurer | None = None,
    utilisation: Callable[[Run], Utilisation | None] = lambda run: None,
    devices: Sequence[jax.Device] | None = None,
    report: Report = lambda line: None,
    guard: Guard | None = None,
) -> state_lib.TrainState[Array]:
    """Trains a stage, from its newest checkpoint if there is one, and exports the model.

    Args:
        config: the run.
        workdir: receives checkpoints/, export/, run.json, config.json, metrics.jsonl, tensorboard/
            and profile/.
        probes: {name: probe}; `config.until.probe` is one of the names.
        evaluation: evaluates the tasks of `config.evaluate`.
        utilisation: makes what adds "mfu" to the reports; None where the peak is not known.
        devices: the devices; all of them by default.
        report: receives lines for people.
        guard: ends the process if it is stuck; says if the run was asked to end.

    Returns:
        The state after the last update.

    Raises:
        PathError: if the workdir cannot be written. This and the next are raised before anything is
            compiled.
        ConfigError: if the config does not fit its towers, if its probe is unknown, or if a logger
            lacks its package.
        CheckpointError: if a tower, checkpoint or export is missing or of another run (raised
            before anything is compiled), or damaged (raised when it is read).
        AgreementError: if the processes were given different things.
        WorkdirTaken: if another run took the workdir over, or if it is not one directory for all
            processes.
        BrokenDataset: if too many records are corrupt.
        NonFiniteError: if a loss or gradient is not finite.
        ProbeNotReached: if all steps are done and `config.until` is not reached.
        EndedAsAsked: if the run was asked to end, and its state is saved.
    """
    guard = guard or Guard(None, saves=False)
    guard.watch(config.hooks.stuck_seconds)
    # How to begin: the order is important. What can be wrong comes first, what takes time last.
    workdir = paths.make_directory(workdir)
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    tokenizer = resume.tokenizer_of(config)
    config = config.resolved(tokenizer.vocab_size)
    probes = probes or {}
    resume.check(config, tokenizer, probes)
    chosen.check(config.hooks.loggers)
    if not steps(workdir):
        towers.check_start(config)

    with run_id.lock(workdir) as locked, contextlib.ExitStack() as stack:
        shards, reader = mesh_lib.num_batch_shards(mesh), mesh_lib.reader(mesh)
        mixture = Mixture(
            config.data,
            seed=config.seed,
            tokenizer=tokenizer,
            process_index=reader.index,
            process_count=reader.count,
            num_shards=shards,
            max_tiles=0 if config.model.tiled_vit is None else config.model.tiled_vit.max_tiles,
        )

        # One run: its processes agree, and the workdir is its own.
        record = run_record.of(config, mixture, workdir)
        agreement.check(run_record.shared(record))
        towers.check_files(config, is_new=_is_new(workdir))
        run_export.check(config, record, workdir, report)
        claim = run_id.claim(workdir, record, locked=locked)
        with claim.given_back_after_an_error():
            store = stack.enter_context(resume.open_store(config, record, workdir, report))
            changed = resume.add_deviations(config, record, store, workdir)

        # Shapes, shardings and functions to compile: no array exists yet.
        run = compile(config, mesh)

        # The state: read or made on the devices that keep it.
        split_seed = lambda: tuple(jax.random.split(jax.random.key(config.seed)))
        init_key, step_key = jax.jit(split_seed, out_shardings=mesh_lib.replicated(mesh))()
        if store.latest_step() is None:
            state, positions, unreported = resume.init(config, run.layout, init_key)
        else:
            state, positions, unreported = resume.restore(config, run.layout, store)
        start = int(state.step)
        report(_describe(run, state, mixture, start))
        for line in deviations.describe(changed):
            report(line)

        # The loop, with its data from the same position on.
        log = stack.enter_context(
            logs_lib.all_logs(
                workdir,
                start,
                steps=config.steps,
                title=config.name or config.stage,
                others=lambda: chosen.sinks(config, workdir, start, report),
                progress=config.hooks.progress,
                report=report,
            )
        )
        stream = batches(
            config, mixture, mesh, positions, start, local_shards=shards // reader.count
        )
        save = _save(run, store, claim, log, guard)
        evaluations = _evaluations(run, tokenizer, evaluation, log, report)
        is_measured = any(name.startswith(callbacks.EVALUATION) for name in log.logged)
        profile = Profile(config.hooks.profile, paths.Path(workdir) / "profile", start, report)
        stack.enter_context(contextlib.closing(profile))
        step, write = profile.named(run.step), cast(logs_lib.Log, log)
        if rate := utilisation(run):
            step, write = rate.counted(step), rate.added(log)
        claim.check()
        ended = loop.run(
            step,
            state,
            stack.enter_context(contextlib.closing(stream)),
            step_key,
            start=start,
            steps=config.steps,
            log_every=config.hooks.log_every,
            log=write,
            hooks=[
                profile.end,
                save,
                _report_rejected(config, mixture, report),
                *evaluations,
                profile.begin,
            ],
            at_start=[*(evaluations if start and not is_measured else ()), profile.begin],
            check=_check_updates(config, mixture, log, report),
            stop=_stop(run, tokenizer, log, report, probes),
            should_end=guard.should_end,
            unreported=unreported,
            at=guard.at,
        )
        guard.at(Phase.CLOSING, ended.step)
        if ended.asked:
            at_end = callbacks.Moment(
                ended.step, ended.state, is_last=True, unreported=ended.unreported
            )
            save(at_end)
        stack.close()  # the last save is complete, and the logs are written
        if ended.asked:
            raise guard.ended_as_asked(ended.step)
        guard.is_saved(f"step {ended.step}, the last one, is saved, and only the export is left")
        guard.at(Phase.EXPORTING, ended.step)
        _check_probe(config, ended, workdir)
        run_export.write(
            config,
            run.layout,
            ended.state,
            ended.step,
            claim=claim,
            record={**record, "deviations": changed},
            was_trained=ended.step > start,
            report=report,
        )
    return ended.state


def compile(config: TrainConfig, mesh: Mesh) -> Run:
    """Lays out a run on a mesh. Nothing is computed, so the devices need not exist.

    Args:
        config: a resolved run.
        mesh: the device mesh.

    Raises:
        TableError: if the objective's table does not match each weight exactly once.
        ValueError: if the mesh does not divide a weight.
    """
    place, shards = config.mesh.layout(mesh), mesh_lib.num_batch_shards(mesh)
    if apart := datasets_per_step.apart(config):
        own = shards // math.prod(mesh.shape[name] for name in apart)
        objective = build_objective(config, own, datasets_per_step.split_apart)
        accumulate: Accumulate = functools.partial(
            datasets_per_step.accumulate_apart, layout=dataclasses.replace(place, apart=apart)
        )
    else:
        objective, accumulate = build_objective(config, shards), datasets_per_step.accumulate
    weights = state_lib.abstract_weights(objective)
    schedules = optimizer_lib.make_schedules(config.optimizer, config.steps)
    optimizer = optimizer_lib.make_optimizer(
        config.optimizer, schedules["learning_rate"], state_lib.traits(objective, weights)
    )
    layout = state_lib.lay_out(
        objective, weights, optimizer, mesh, config.precision, zero=config.mesh.zero
    )
    step = make_step(
        layout,
        place,
        layers=config.layers,
        objective=objective,
        optimizer=optimizer,
        schedules=schedules,
        weights={"merged": 1.0} if config.mixing == "merged" else dataset_weights(config),
        policy=config.precision,
        accumulate=accumulate,
        accept=not_finite.ACCEPT[config.hooks.on_nonfinite],
    )
    return Run(config, mesh, objective, layout, step)


def build_objective(
    config: TrainConfig, num_shards: int, split: Callable[..., chunks.Parts] = chunks.split
) -> Objective:
    """Returns what a resolved config minimises, with its model.

    Args:
        config: a resolved run.
        num_shards: data shards of the mesh, or of a part that computes by itself.
        split: cuts batches in chunks; a contrastive batch is never cut.
    """
    model, augmentation = config.model, config.data.augment
    normalise = config.loss.normalise
    if config.stage == "contrastive":
        return objective_lib.contrastive(
            encoders.contrastive(model), num_shards=num_shards, augmentation=augmentation
        )
    if config.stage == "language_model":
        return objective_lib.language_model(
            api.language_model(required(model.lm, "lm")),
            num_shards=num_shards,
            normalise=normalise,
            split=split,
        )
    return objective_lib.flamingo(
        api.flamingo(model.flamingo(), compute_form=True, unfrozen=config.unfrozen),
        num_shards=num_shards,
        augmentation=augmentation,
        normalise=normalise,
        unfrozen=config.unfrozen,
        has_resampler=model.resampler is not None,
        split=split,
    )


def _is_new(workdir: paths.Path) -> bool:
    """Returns in all processes whether the first one sees no checkpoint."""
    return bool(agreement.verdict("", lambda _: "" if steps(workdir) else "new"))


def _describe(run: Run, state: state_lib.TrainState[Array], mixture: Mixture, start: int) -> str:
    config = run.config
    trained, frozen = trees.count(state.trainable), trees.count(state.frozen)
    sizes = ", ".join(f"{name} {size:,}" for name, size in mixture.sizes.items())
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    begin = f"starts from {config.initial}," if config.initial else "starts"
    if start:
        begin = f"resumes at step {start}"
    return (
        f"{config.name or config.stage} {begin} of {config.steps}: {trained:,} weights trained, "
        f"{frozen:,} frozen, {config.precision.compute}; mesh {mesh}; records: {sizes}."
    )


def _save(run: Run, store: Store, claim: RunId, log: logs_lib.Logs, guard: Guard) -> callbacks.Hook:
    save = callbacks.save(
        store,
        lambda step: positions_at(run.config, step),
        check=not_finite.refuse_weights(mesh_lib.replicated(run.mesh)),
        flush=log.flush,
    )

    def of_this_run(moment: callbacks.Moment) -> None:
        guard.at(Phase.SAVING, moment.step)
        claim.check()
        save(moment)
        guard.at(Phase.MEASURING, moment.step)

    return callbacks.every(run.config.hooks.save_every, of_this_run, at_end=True)


def _report_rejected(config: TrainConfig, mixture: Mixture, report: Report) -> callbacks.Hook:
    count = callbacks.report_rejected(lambda: mixture.rejected, report)
    return callbacks.every(config.hooks.save_every, count, at_end=True)


def _evaluations(
    run: Run,
    tokenizer: Tokenizer,
    evaluation: Measurer | None,
    log: logs_lib.Log,
    report: Report,
) -> list[callbacks.Hook]:
    """Returns the hook that evaluates during training; [] if nothing is to be evaluated."""
    settings = run.config.evaluate
    if evaluation is None or not settings.every:
        return []
    measure = callbacks.measure(evaluation(run, tokenizer), log, report)
    return [callbacks.every(settings.every, measure, at_end=True)]


def _check_updates(
    config: TrainConfig, mixture: Mixture, log: logs_lib.Logs, report: Report
) -> not_finite.Check:
    batches_of = not_finite.Origin(
        lambda step, names: batches_of_update(config, step, names), mixture.origin
    )
    if config.hooks.on_nonfinite == "stop":
        return not_finite.stop_at_once(batches_of)
    return not_finite.Skipped(
        batches_of, report, before=log.skipped, most_in_a_row=config.hooks.max_nonfinite_in_a_row
    )


def _stop(
    run: Run,
    tokenizer: Tokenizer,
    log: logs_lib.Logs,
    report: Report,
    probes: Mapping[str, Measurer],
) -> callbacks.Stop | None:
    until = run.config.until
    if until is None:
        return None
    measure = probes[until.probe](run, tokenizer)
    return callbacks.below(
        measure,
        log,
        report,
        metric=until.metric,
        bound=until.below,
        steps=until.every,
        logged=log.logged,
    )


def _check_probe(config: TrainConfig, ended: loop.Ended, workdir: paths.Path) -> None:
    until = config.until
    if until and until.required and not ended.stopped:
        raise callbacks.ProbeNotReached(
            f"{until.probe}: {until.metric} is still not below {until.below} after all "
            f"{ended.step} steps of the {config.stage} stage, so nothing was exported. Go on with "
            "a larger --config.steps, or export all the same with --config.until.required=False; "
            f"see {workdir}/metrics.jsonl."
        )

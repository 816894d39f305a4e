"""Makes a plan from a config and the name of a slice: lowers, compiles, and reads the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import temporary_directory
from flamingo_jax.planning import cost as cost_lib
from flamingo_jax.planning import memory as memory_lib
from flamingo_jax.planning import program as program_lib
from flamingo_jax.planning import topologies
from flamingo_jax.planning.flops import Needed
from flamingo_jax.planning.program import Prompts, RowContent
from flamingo_jax.planning.summary import Plan
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training.config import TrainConfig


def make_plan(
    config: TrainConfig,
    topology: str,
    *,
    program: str = "train",
    fill: Mapping[str, RowContent] | None = None,
    datasets: Sequence[str] | None = None,
    prompts: Prompts | None = None,
) -> Plan:
    """Plans one program of a run.

    Args:
        config: the run. Its mesh must have as many devices as the slice; or as mesh.slices of them.
        topology: name of the slice, for example "v4:8x12x16".
        program: "train", "prefill" or "decode".
        fill: real content of the rows, by name of the dataset. The rows of other datasets are full.
        datasets: the datasets of the config that an update uses; None = all. Where they are mixed
            by round_robin, the plan is of a round: one update with each.
        prompts: the prompts of prefill and decode; None = the defaults.

    Raises:
        ConfigError: there is no such slice, the config does not fit it, the TPU compiler is not
            installed, or it has no implementation for this mesh.
    """
    slice_ = topologies.describe(topology, config.mesh.slices)
    config = _only(config, datasets)
    names = sorted(config.data.datasets)
    if program == "train" and config.mixing == "round_robin" and len(names) > 1:
        if unknown := set(fill or {}) - set(names):
            raise ConfigError(f"--fill names {sorted(unknown)}; expected some of {names}.")
        rows = {name: {name: fill[name]} if fill and name in fill else {} for name in names}
        return _round(
            [make_plan(config, topology, fill=rows[name], datasets=[name]) for name in names]
        )
    mesh = make_mesh(config.mesh, topologies.devices(slice_))
    try:
        if program == "train":
            lowered = program_lib.train(config, mesh, fill or {})
        else:
            lowered = program_lib.inference(config, mesh, program, prompts or Prompts())
    except ConfigError:
        raise
    except ValueError as error:  # the mesh does not divide a dimension
        raise ConfigError(str(error)) from error
    with topologies.uncached():
        return _compile(slice_, mesh, lowered, config.steps if program == "train" else 0)


def _compile(
    topology: topologies.Topology, mesh: Mesh, program: program_lib.Program, steps: int
) -> Plan:
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" in str(error):
            raise ConfigError(
                f"The TPU compiler cannot compile this program for {topology.num_slices} slice(s) "
                f"{topology.name} and config.mesh = {dict(mesh.shape)}: {str(error).strip()} "
                "Choose other sizes of the mesh, or another slice."
            ) from error
        if not memory_lib.is_too_large(error):
            raise
        with temporary_directory("flamingo_plan_") as notes:
            memory, buffers = memory_lib.of_refused(program.lowered, notes)
        return Plan(topology, mesh, program, steps, memory, None, tuple(buffers))
    cost = cost_lib.analyse(compiled.as_text(), mesh, topology)
    return Plan(topology, mesh, program, steps, memory_lib.of_compiled(compiled), cost)


def _round(plans: Sequence[Plan]) -> Plan:
    """Returns the plan of a round of "round_robin": an update with each dataset, one by one.

    The sums of their times and FLOPs, and the memory of the largest. One that does not fit is
    returned as it is.
    """
    size = lambda plan: plan.memory.total if plan.memory else 0
    for plan in plans:
        if not plan.fits:
            return plan
    largest, cost = max(plans, key=size), cost_lib.Cost()
    flops: dict[str, float | int] = {}
    for plan in plans:
        assert plan.cost is not None
        cost.add(plan.cost)
        for part, number in plan.program.needed.flops.items():
            flops[part] = flops.get(part, 0) + number
    needed = [plan.program.needed for plan in plans]
    sentences = [sentence for plan in plans for sentence in plan.program.assumptions]
    program = dataclasses.replace(
        largest.program,
        needed=Needed(flops, sum(one.tokens for one in needed), sum(one.images for one in needed)),
        assumptions=(
            f"A step is a round of {len(plans)} updates, one with each dataset (round_robin).",
            *dict.fromkeys(sentences),
        ),
    )
    return dataclasses.replace(largest, program=program, cost=cost, updates=len(plans))


def parse_fill(entries: Sequence[str]) -> dict[str, RowContent]:
    """Reads entries NAME=TOKENS[:IMAGES], the mean content of a row of a dataset.

    Raises:
        ConfigError: an entry has another form.
    """
    fill: dict[str, RowContent] = {}
    for entry in entries:
        name, _, numbers = entry.partition("=")
        tokens, _, images = numbers.partition(":")
        try:
            fill[name] = RowContent(float(tokens), float(images) if images else None)
        except ValueError as error:
            raise ConfigError(
                f"--fill has {entry!r}; expected NAME=TOKENS[:IMAGES], as in m3w=210:3.5."
            ) from error
    return fill


def _only(config: TrainConfig, datasets: Sequence[str] | None) -> TrainConfig:
    if datasets is None:
        return config
    if unknown := set(datasets) - set(config.data.datasets):
        raise ConfigError(
            f"--datasets names {sorted(unknown)}; expected some of {sorted(config.data.datasets)}."
        )
    chosen = {name: config.data.datasets[name] for name in datasets}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=chosen))

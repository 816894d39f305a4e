"""From a config and the name of a slice to a plan.

Lower, compile for the slice, read the result.
"""

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
from flamingo_jax.planning.program import Prompts
from flamingo_jax.planning.summary import Plan
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training.config import TrainConfig

Fill = Mapping[str, tuple[float, float | None]]


def make_plan(
    config: TrainConfig,
    topology: str,
    *,
    program: str = "train",
    fill: Fill | None = None,
    datasets: Sequence[str] | None = None,
    prompts: Prompts | None = None,
) -> Plan:
    """Plans one program of a run.

    Args:
        config: the run; its mesh must be as large as the slice.
        topology: name of the slice, "v4:8x12x16".
        program: "train", "prefill" or "decode".
        fill: real content of the datasets' rows, by name: (tokens, images or None); others are
            full.
        datasets: which of the config's datasets an update uses; None is all.
        prompts: what evaluation is planned for; None is the defaults.

    Raises:
        ConfigError: if there is no such slice, the config does not fit it, or the TPU compiler is
            not installed.
    """
    slice_ = topologies.describe(topology)
    config = _only(config, datasets)
    mesh = make_mesh(config.mesh, topologies.devices(slice_))
    try:
        if program == "train":
            lowered = program_lib.train(config, mesh, fill or {})
        else:
            lowered = program_lib.inference(config, mesh, program, prompts or Prompts())
    except ConfigError:
        raise
    except ValueError as error:  # a dimension that the mesh does not divide
        raise ConfigError(str(error)) from error
    with topologies.uncached():
        return _compile(slice_, mesh, lowered, config.steps if program == "train" else 0)


def _compile(
    topology: topologies.Topology, mesh: Mesh, program: program_lib.Program, steps: int
) -> Plan:
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not memory_lib.is_too_large(error):
            raise
        with temporary_directory("flamingo_plan_") as notes:
            memory, buffers = memory_lib.of_refused(program.lowered, notes)
        return Plan(topology, mesh, program, steps, memory, None, tuple(buffers))
    cost = cost_lib.analyse(compiled.as_text(), mesh, topology)
    return Plan(topology, mesh, program, steps, memory_lib.of_compiled(compiled), cost)


def parse_fill(entries: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    """Reads NAME=TOKENS[:IMAGES], the mean content of one row of a dataset.

    Raises:
        ConfigError: for anything else.
    """
    fill: dict[str, tuple[float, float | None]] = {}
    for entry in entries:
        name, _, numbers = entry.partition("=")
        tokens, _, images = numbers.partition(":")
        try:
            fill[name] = (float(tokens), float(images) if images else None)
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

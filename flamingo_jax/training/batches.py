"""The batches of each update, on the devices, from any position on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence

from jax.sharding import Mesh

from flamingo_jax.core.notation import Array
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.to_device import to_device
from flamingo_jax.training import datasets_per_step, left_out
from flamingo_jax.training.config import TrainConfig


def dataset_weights(config: TrainConfig) -> dict[str, float]:
    """Returns lambda_m of each dataset."""
    return {name: dataset.weight for name, dataset in config.data.datasets.items()}


def positions_at(config: TrainConfig, step: int) -> dict[str, int]:
    """Returns how many batches of each dataset the first `step` updates use."""
    return datasets_per_step.positions_at(config.mixing, list(config.data.datasets), step)


def batches_of_update(config: TrainConfig, step: int, names: Sequence[str]) -> dict[str, int]:
    """Returns the number of the batch that an update used, of each dataset.

    It is not the number of batches used before where some are left out (`training.left_out`).

    Args:
        config: the run.
        step: number of updates after it.
        names: datasets; "merged" is all of them.
    """
    positions, number = positions_at(config, step - 1), _numbering(config)
    chosen = positions if "merged" in names and "merged" not in positions else names
    return {name: number(name, positions[name]) for name in chosen}


def _numbering(config: TrainConfig) -> Callable[[str, int], int]:
    """Returns a function (dataset, batches used before) -> number of the next batch."""
    return functools.partial(left_out.batch_number, left_out.spans(config.resume.skip_batches))


def batches(
    config: TrainConfig,
    mixture: Mixture,
    mesh: Mesh,
    positions: Mapping[str, int],
    start: int,
    *,
    local_shards: int,
) -> Generator[dict[str, Batch[Array]], None, None]:
    """Yields {dataset: batch} for update `start`, `start` + 1, ... on the devices, without end.

    Args:
        config: its `mixing` says which datasets an update uses.
        mixture: the datasets.
        mesh: the devices.
        positions: batches of each dataset that were used before.
        start: the updates done.
        local_shards: data shards that this process reads.
    """
    number = _numbering(config)
    if config.mixing == "round_robin":
        streams = {
            name: mixture.iterate({name: position}, number) for name, position in positions.items()
        }
        for update in itertools.count(start):
            (name,) = datasets_per_step.datasets_of_step(config.mixing, list(positions), update)
            yield {name: to_device(next(streams[name])[name], mesh)}
    for read in mixture.iterate(positions, number):
        if config.mixing == "merged":
            merged = datasets_per_step.merge(read, dataset_weights(config), local_shards)
            yield {"merged": to_device(merged, mesh)}
        else:
            yield {name: to_device(batch, mesh) for name, batch in read.items()}

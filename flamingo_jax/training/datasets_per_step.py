"""Gradients of a mixture.

For each dataset in turn its own batch, loss and gradient, times lambda_m, summed (paper, section
2.4).

Datasets whose batches have equal shapes (ALIGN and LTIP) share one compiled body.

accumulate   every update sums over all datasets (the paper's choice, Table 3 row (ii) and Table 11)
round_robin  every update uses one dataset, in turn (ablation)
merged       every update is one batch that holds the rows of all datasets (ablation); see `merge`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array
from flamingo_jax.data.schema import Batch
from flamingo_jax.training.config import Mixing
from flamingo_jax.training.objective import Metrics


def accumulate(
    loss: Callable[[trees.Params, Any, Array], tuple[Array, Metrics]],
    params: trees.Params,
    batches: Mapping[str, Any],
    weights: Mapping[str, float],
    rng: Array,
) -> tuple[trees.Params, Metrics]:
    """Sums the datasets' gradients, weighted, in float32.

    Args:
        loss: loss(params, batch, rng) -> (scalar, metrics).
        params: the weights to differentiate by, in the compute dtype; so are the gradients of each
            dataset.
        batches: {dataset: batch}; batches may differ in shape.
        weights: {dataset: lambda_m}.
        rng: key of this update; dataset i of the sorted names gets fold_in(rng, i).

    Returns:
        (gradients in float32, metrics): "loss" is the weighted sum, "<dataset>/loss" and
        "<dataset>/<metric>" each dataset's own.
    """
    names = sorted(batches)
    keys = {name: jax.random.fold_in(rng, i) for i, name in enumerate(names)}

    def add(
        total: trees.Params, one: tuple[Any, Any, Any]
    ) -> tuple[trees.Params, tuple[Array, Metrics]]:
        batch, weight, key = one
        (value, extra), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return jax.tree.map(lambda t, g: t + weight * g.astype(jnp.float32), total, gradients), (
            value,
            extra,
        )

    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    metrics: Metrics = {"loss": jnp.zeros((), jnp.float32)}
    for group in _of_equal_shape(batches):
        rows = [(batches[name], jnp.float32(weights[name]), keys[name]) for name in group]
        if len(group) == 1:
            total, results = add(total, rows[0])
            found = [results]
        else:
            total, results = jax.lax.scan(
                add, total, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
            )
            found = [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(group))]
        # One dataset after the other: otherwise the compiler may keep the activations of several at
        # once.
        params, total = jax.lax.optimization_barrier((params, total))
        for name, (value, extra) in zip(group, found, strict=True):
            metrics["loss"] += weights[name] * value
            metrics[f"{name}/loss"] = value
            metrics |= {f"{name}/{key}": number for key, number in extra.items()}
    return total, metrics


def _of_equal_shape(batches: Mapping[str, Any]) -> list[list[str]]:
    """Groups the datasets whose batches have the same shapes.

    One body is compiled for them, and run in a loop.
    """
    groups: dict[Any, list[str]] = {}
    for name in sorted(batches):
        leaves, structure = jax.tree.flatten(batches[name])
        groups.setdefault(
            (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)), []
        ).append(name)
    return list(groups.values())


def datasets_of_step(mixing: Mixing, names: Sequence[str], step: int) -> list[str]:
    """Returns the datasets whose next batch update `step` (0, 1, ...) uses."""
    ordered = sorted(names)
    return [ordered[step % len(ordered)]] if mixing == "round_robin" else ordered


def positions_at(mixing: Mixing, names: Sequence[str], step: int) -> dict[str, int]:
    """Returns how many batches of each dataset the first `step` updates have used.

    The data position of a checkpoint.
    """
    ordered = sorted(names)
    if mixing == "round_robin":
        return {
            name: (step + len(ordered) - 1 - i) // len(ordered) for i, name in enumerate(ordered)
        }
    return dict.fromkeys(ordered, step)


def merge(
    batches: Mapping[str, Batch[np.ndarray]], weights: Mapping[str, float], num_shards: int = 1
) -> Batch[np.ndarray]:
    """Puts the rows of all datasets in one batch.

    A token's loss weight is multiplied by its dataset's lambda_m.

    Shard by shard, since the pool of images and its slots are per data shard. Shorter rows are
    padded with segment 0, missing images with slot -1, missing frames with mask 0.

    Args:
        batches: {dataset: batch} of numpy arrays.
        weights: {dataset: lambda_m}.
        num_shards: over how many data shards these rows are spread.
    """
    ordered = [batches[name] for name in sorted(batches)]
    scaled = [
        dataclasses.replace(
            batches[name],
            loss_weights=np.asarray(batches[name].loss_weights * weights[name], np.float32),
        )
        for name in sorted(batches)
    ]
    capacities = [batch.frames.shape[0] // num_shards for batch in ordered]
    offsets = [sum(capacities[:i]) for i in range(len(capacities))]
    shifted = [
        dataclasses.replace(
            batch,
            media_slot=np.where(
                batch.media_slot < 0, -1, batch.media_slot + np.int32(offset)
            ).astype(np.int32),
        )
        for batch, offset in zip(scaled, offsets, strict=True)
    ]
    blank = {"media_slot": -1}
    return Batch(
        **{
            field.name: _concatenate(
                [np.asarray(getattr(batch, field.name)) for batch in shifted],
                num_shards,
                blank.get(field.name, 0),
            )
            for field in dataclasses.fields(Batch)
        }
    )


def _concatenate(arrays: Sequence[np.ndarray], num_shards: int, blank: int) -> np.ndarray:
    """Joins along axis 0 within each shard, after padding the other axes to the longest."""
    largest = np.max([array.shape[1:] for array in arrays], axis=0) if arrays[0].ndim > 1 else ()
    padded = [
        np.pad(
            array,
            [
                (0, 0),
                *((0, int(big) - size) for big, size in zip(largest, array.shape[1:], strict=True)),
            ],
            constant_values=blank,
        )
        for array in arrays
    ]
    split = [
        array.reshape(num_shards, array.shape[0] // num_shards, *array.shape[1:])
        for array in padded
    ]
    joined = np.concatenate(split, axis=1)
    return joined.reshape(-1, *joined.shape[2:])

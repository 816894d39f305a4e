"""Which datasets an update uses, and how their gradients are summed (paper, section 2.4).

    accumulate    every update sums the gradients of all datasets, each times lambda_m
                  (the paper's choice: Table 3 row (ii) and Table 11)
    round_robin   every update uses one dataset, in turn (ablation)
    merged        every update uses one batch with the rows of all datasets (ablation); see `merge`

Datasets with batches of equal shapes (ALIGN and LTIP) share one compiled body. A batch in chunks
(`chunks`) has one for all of them.

The order of the sum: from zero, in float32, one dataset after the other (by name; those of equal
shapes together, in the place of the first), and of each dataset one chunk after the other. A term
is lambda_m times the gradient of a chunk, which has the compute dtype.

A gradient is summed over the chips of a slice before this sum, once for each dataset; and over the
network between slices after it, once per update:

    a batch [B ...] --cut--> [parts, B / parts, ...]
                                |   each part by itself: every dataset, every chunk
                                v
    gradients [parts, ...], float32
                                |   once per update
                                v
                            their sum
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.core import trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.notation import Array
from flamingo_jax.data.schema import Batch
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import BATCH_AXES
from flamingo_jax.training import chunks
from flamingo_jax.training.config import Mixing, TrainConfig
from flamingo_jax.training.objective import Metrics


def accumulate(
    loss: Callable[..., tuple[Array, Metrics]],
    params: trees.Params,
    batches: Mapping[str, Any],
    weights: Mapping[str, float],
    rng: Array,
    split: chunks.Split = chunks.whole,
) -> tuple[trees.Params, Metrics]:
    """Sums the gradients of the datasets in float32, each times its lambda_m.

    Args:
        loss: loss(params, batch, rng) -> (scalar, metrics); what `split` makes of a batch may have
            more arguments.
        params: the weights to differentiate by, in the compute dtype. The gradients of each dataset
            have this dtype before they are summed.
        batches: {dataset: batch}; batches may differ in shape.
        weights: {dataset: lambda_m}.
        rng: key of this update; dataset i of the sorted names gets fold_in(rng, i).
        split: cuts (batch, key) into parts, of which the losses and metrics sum up to those of the
            batch.

    Returns:
        (gradients in float32, metrics). "loss" is the weighted sum; "<dataset>/loss" and
        "<dataset>/<metric>" are of one dataset.
    """
    names = sorted(batches)
    keys = {name: jax.random.fold_in(rng, i) for i, name in enumerate(names)}

    def add(
        total: trees.Params, one: tuple[Any, Any, Any]
    ) -> tuple[trees.Params, tuple[Array, Metrics]]:
        batch, weight, key = one
        parts = split(batch, key)

        def add_part(
            total: trees.Params, number: Array | int
        ) -> tuple[trees.Params, tuple[Array, Metrics]]:
            arguments = parts.arguments(number)
            results, gradients = jax.value_and_grad(loss, has_aux=True)(params, *arguments)
            weighted = lambda t, g: t + weight * g.astype(jnp.float32)
            return jax.tree.map(weighted, total, gradients), results

        if parts.number == 1:
            return add_part(total, 0)
        total, results = jax.lax.scan(add_part, total, jnp.arange(parts.number))
        return total, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), results)

    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    metrics: Metrics = {"loss": jnp.zeros((), jnp.float32)}
    for group in _of_equal_shape(batches):
        rows = [(batches[name], jnp.float32(weights[name]), keys[name]) for name in group]
        if len(group) == 1:
            total, results = add(total, rows[0])
            found = [results]
        else:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
            total, results = jax.lax.scan(add, total, stacked)
            found = [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(group))]
        # The barrier makes one dataset follow the other. Without it the compiler may keep the
        # activations of several datasets in memory at once.
        params, total = jax.lax.optimization_barrier((params, total))
        for name, (value, extra) in zip(group, found, strict=True):
            metrics["loss"] += weights[name] * value
            metrics[f"{name}/loss"] = value
            metrics |= {f"{name}/{key}": number for key, number in extra.items()}
    return total, metrics


_PARTS = "parts"  # the dimension of the parts, to sum over it


def apart(config: TrainConfig) -> tuple[str, ...]:
    """Returns the axes of the mesh over which gradients are summed once per update.

    None where a vision encoder is trained: XLA has no fast gradient of grouped convolutions for
    each part, and the contrastive loss compares the rows of all parts.
    """
    if config.trains_vision:
        return ()
    return ("replica",) if config.mesh.slices > 1 else ()


def accumulate_apart(
    loss: Callable[..., tuple[Array, Metrics]],
    params: trees.Params,
    batches: Mapping[str, Any],
    weights: Mapping[str, float],
    rng: Array,
    split: chunks.Split,
    *,
    layout: Layout,
) -> tuple[trees.Params, Metrics]:
    """Sums the gradients of the datasets for each part of the mesh, and then those of the parts.

    Each part divides its losses by the divisor of the whole batch (`models.losses`).

    Args:
        loss, params, batches, weights: as of `accumulate`.
        rng: key of this update; each part has its own key from it.
        split: cuts the rows of a part in chunks, as `split_apart` does.
        layout: of a part's activations and gradients; `layout.apart` are the axes of the parts.
    """
    mesh, axes = layout.mesh, layout.apart
    number = math.prod(mesh.shape[name] for name in axes)
    others = tuple(name for name in BATCH_AXES if name not in axes)
    place = NamedSharding(mesh, PartitionSpec(axes, others or None))

    def cut(leaf: Array) -> Array:
        rows = leaf.reshape(number, len(leaf) // number, *leaf.shape[1:])
        return jax.lax.with_sharding_constraint(rows, place)

    def of_part(rows: Mapping[str, Any], key: Array) -> tuple[trees.Params, Metrics]:
        with with_layout(layout):
            return accumulate(loss, params, rows, weights, key, split)

    of_each = jax.vmap(of_part, axis_name=_PARTS, spmd_axis_name=axes)
    parts = of_each(jax.tree.map(cut, batches), jax.random.split(rng, number))
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), parts)


def split_apart(
    batch: Batch[Array],
    rng: Array,
    *,
    num_shards: int,
    total: chunks.Total | None,
) -> chunks.Parts:
    """Returns the chunks (rows, keys, divisor of all parts) of the rows of a part.

    Args:
        batch: these rows.
        rng: key of the part.
        num_shards: data shards of the part.
        total: returns the divisor of rows; the loss is divided by that of all parts. None: losses
            are not divided.
    """
    of_all = None if total is None else lambda rows: jax.lax.psum(total(rows), _PARTS)
    if batch.chunks == 1:
        divisor = None if of_all is None else of_all(batch)
        return chunks.Parts(1, lambda number: (batch, rng, divisor))
    return chunks.split(batch, rng, num_shards=num_shards, total=of_all)


def _of_equal_shape(batches: Mapping[str, Any]) -> list[list[str]]:
    """Groups the datasets by the shapes of their batches."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(batches):
        leaves, structure = jax.tree.flatten(batches[name])
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        groups.setdefault((structure, shapes), []).append(name)
    return list(groups.values())


def datasets_of_step(mixing: Mixing, names: Sequence[str], step: int) -> list[str]:
    """Returns the names of the datasets that update `step` (0, 1, ...) uses."""
    ordered = sorted(names)
    return [ordered[step % len(ordered)]] if mixing == "round_robin" else ordered


def positions_at(mixing: Mixing, names: Sequence[str], step: int) -> dict[str, int]:
    """Returns how many batches of each dataset the first `step` updates use.

    A checkpoint stores this as its data position.
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
    """Puts the rows of all datasets in one batch, data shard by data shard.

    Each data shard, or each chunk of one, has its own pool of images, with its own slots. Loss
    weights are multiplied by the dataset's lambda_m. Shorter rows are padded with segment 0,
    missing images with slot -1, missing frames with mask 0.

    Args:
        batches: {dataset: batch} of numpy arrays, all in as many chunks.
        weights: {dataset: lambda_m}.
        num_shards: number of data shards that these rows are split over.
    """
    (in_chunks,) = {batch.chunks for batch in batches.values()}
    num_pools = num_shards * in_chunks
    moved, offset = [], 0
    for name in sorted(batches):
        batch = batches[name]
        loss_weights = np.asarray(batch.loss_weights * weights[name], np.float32)
        slot = np.where(batch.media_slot < 0, -1, batch.media_slot + np.int32(offset))
        slot = slot.astype(np.int32)
        moved.append(dataclasses.replace(batch, loss_weights=loss_weights, media_slot=slot))
        offset += batch.frames.shape[0] // num_pools
    blank = {"media_slot": -1}

    def join(field: str) -> np.ndarray:
        arrays = [np.asarray(getattr(batch, field)) for batch in moved]
        return _concatenate(arrays, num_pools, blank.get(field, 0))

    arrays = [field.name for field in dataclasses.fields(Batch) if field.name != "chunks"]
    return Batch(**{name: join(name) for name in arrays}, chunks=in_chunks)


def _concatenate(arrays: Sequence[np.ndarray], num_pools: int, blank: int) -> np.ndarray:
    """Joins arrays along axis 0 within each pool's part; pads the other axes to the longest."""
    longest = np.max([array.shape[1:] for array in arrays], axis=0) if arrays[0].ndim > 1 else ()

    def padded(array: np.ndarray) -> np.ndarray:
        missing = (int(most) - n for most, n in zip(longest, array.shape[1:], strict=True))
        widths = [(0, 0), *((0, n) for n in missing)]
        array = np.pad(array, widths, constant_values=blank)
        return array.reshape(num_pools, array.shape[0] // num_pools, *array.shape[1:])

    joined = np.concatenate([padded(array) for array in arrays], axis=1)
    return joined.reshape(-1, *joined.shape[2:])

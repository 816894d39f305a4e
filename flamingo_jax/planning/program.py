"""Lowers the programs whose cost is estimated: a training step, and two of evaluation.

    train     one update on a batch of each dataset          (any stage)
    prefill   encode the images of the prompts and read them (stages flamingo and language_model)
    decode    one more token for each row

In evaluation, weights are split over "model" as in training, rows and caches over (replica, data),
and the heads of a cache over "model".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import ranges, trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.config import ConfigError
from flamingo_jax.data.config import DataConfig, DatasetConfig, check_chunks
from flamingo_jax.data.schema import Batch
from flamingo_jax.inference import decode as decode_lib
from flamingo_jax.models import int8
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Cache, Media, logical_axes
from flamingo_jax.models.vision import tiles_of
from flamingo_jax.planning import flops
from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding.mesh import BATCH_AXES, num_batch_shards
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig

VOCABULARY = 32_000  # the paper's, where the config leaves it to the tokenizer


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of prefill and decode.

    Attributes:
      rows: prompts of a batch, over all devices; 0 = one for each batch shard.
      shots: support examples, with one image each; the query has one more image.
      length: tokens of a prompt.
      new_tokens: room in the cache for the answer.
    """

    rows: int = 0
    shots: int = 4
    length: int = 256
    new_tokens: int = 20

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(0), "rows", "shots", "new_tokens")
        ranges.check(self, ranges.whole(1), "length")


class RowContent(NamedTuple):
    """The mean real content of a row of a dataset, without padding.

    Attributes:
      tokens: real tokens per row.
      images: images per row; None = the most that a row can have.
    """

    tokens: float
    images: float | None


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before it is compiled.

    Attributes:
      lowered: by `jax.jit(...).lower`.
      needed: model FLOPs of one run of the program.
      parameters: {group: number of weights}.
      assumptions: sentences that say what the numbers assume.
    """

    lowered: Any
    needed: flops.Needed
    parameters: dict[str, int]
    assumptions: tuple[str, ...]


def train(config: TrainConfig, mesh: Mesh, fill: Mapping[str, RowContent]) -> Program:
    """Lowers one update.

    Args:
        config: the run. If it does not state the size of the vocabulary, 32,000 is assumed, as in
            the paper.
        mesh: over the devices to plan for.
        fill: real content of the rows, by name of the dataset. The rows of other datasets are full.

    Raises:
        ConfigError: `fill` names an unknown dataset, the mesh does not divide a batch, or the
            datasets are mixed by round_robin.
    """
    if config.mixing == "round_robin" and len(config.data.datasets) > 1:
        raise ConfigError(
            "config.mixing is 'round_robin', in which each dataset has its own step; expected one "
            f"dataset, got {sorted(config.data.datasets)}."
        )
    if unknown := set(fill) - set(config.data.datasets):
        raise ConfigError(
            f"--fill names {sorted(unknown)}; expected some of {sorted(config.data.datasets)}."
        )
    assumptions = _vocabulary(config)
    config = config.resolved(VOCABULARY)
    shards = num_batch_shards(mesh)
    fills, batches = {}, {}
    for name, dataset in config.data.datasets.items():
        if dataset.batch_size % shards:
            raise ConfigError(
                f"config.data.datasets.{name}.batch_size is {dataset.batch_size}, which the "
                f"{shards} batch shards (replica x data) of the mesh do not divide; expected a "
                f"multiple of {shards}."
            )
        check_chunks(name, dataset, shards)
        fills[name] = _filled(dataset, shards, fill.get(name))
        batches[name] = abstract_batch(config.data, dataset, shards)
        tokens, images = fills[name].tokens, fills[name].images / dataset.batch_size
        assumptions.append(
            f"{name}: {tokens:g} real tokens of {dataset.length} and {images:g} images in each row."
        )
    if config.mixing == "merged":
        batches = {"merged": _merge(list(batches.values()))}
    run = run_lib.compile(config, mesh)
    rng = params_lib.abstract_key()
    step: Any = run.step  # a jitted function, which has `lower`
    lowered = step.lower(run.layout.abstract, batches, rng)
    needed = flops.of_update(config, run.objective, fills)
    return Program(lowered, needed, parameters(run.objective.model.init), tuple(assumptions))


def inference(config: TrainConfig, mesh: Mesh, name: str, prompts: Prompts) -> Program:
    """Lowers a program of evaluation: prefill, or the decoding of one token.

    Args:
        config: the run with the model that is evaluated.
        mesh: over the devices to plan for.
        name: "prefill" or "decode".
        prompts: number and size of the prompts.

    Raises:
        ConfigError: the stage has no decoder, or the mesh does not divide the prompts.
    """
    assumptions = _vocabulary(config)
    config = config.resolved(VOCABULARY)
    shards = num_batch_shards(mesh)
    rows = prompts.rows or shards
    if rows % shards:
        raise ConfigError(
            f"--batch_size is {rows}; expected a multiple of the {shards} batch shards of the mesh."
        )
    objective = run_lib.build_objective(config, shards)
    model = objective.model
    if not isinstance(model, Model):
        raise ConfigError(f"A {config.stage} run has nothing to decode; --program must be train.")
    images = rows * (prompts.shots + 1) if config.stage == "flamingo" else 0
    assumptions.append(
        f"{rows} prompts of {prompts.length} tokens and {images // rows} images, all real."
    )
    lower = _lower_prefill if name == "prefill" else _lower_decode
    lowered = lower(config, model, mesh, rows, prompts)
    read = (prompts.length, 0) if name == "prefill" else (1, prompts.length)
    frames = _frames_of_image(config)
    fill = flops.Fill(rows, read[0], images if name == "prefill" else 0, frames)
    seen = 0 if name == "prefill" else prompts.shots + 1
    needed = flops.of_inference(config, objective, fill, cached=read[1], seen=seen)
    return Program(lowered, needed, parameters(objective.model.init), tuple(assumptions))


def abstract_batch(
    config: DataConfig, dataset: DatasetConfig, num_shards: int
) -> Batch[jax.ShapeDtypeStruct]:
    """Returns the shapes of a dataset's batch over all devices, as in `data.rows.RowMaker`."""
    rows, length, images = dataset.batch_size, dataset.length, dataset.num_visuals
    per_shard = rows // num_shards * images if dataset.pool is None or not images else dataset.pool
    pool, frames, size = num_shards * per_shard, dataset.num_frames, config.image_size
    shape = jax.ShapeDtypeStruct
    return Batch(
        tokens=shape((rows, length), jnp.int32),
        segment=shape((rows, length), jnp.int32),
        loss_weights=shape((rows, length), jnp.float32),
        media_index=shape((rows, length), jnp.int32),
        media_slot=shape((rows, images), jnp.int32),
        frames=shape((pool, frames, size, size, 3), jnp.uint8),
        frame_mask=shape((pool, frames), jnp.bool_),
        media_key=shape((pool, 2), jnp.uint32),
        chunks=dataset.chunks,
    )


def parameters(init: Any) -> dict[str, int]:
    """Returns the number of weights in total, and by the first two parts of their path."""
    flat = trees.flatten(jax.eval_shape(init, params_lib.abstract_key()))
    groups: dict[str, int] = {}
    for path, leaf in flat.items():
        group = "/".join(path.split("/")[:2]) if path.count("/") > 1 else path.split("/")[0]
        groups[group] = groups.get(group, 0) + leaf.size
    return groups | {"total": sum(groups.values())}


def _vocabulary(config: TrainConfig) -> list[str]:
    """Returns a sentence about the vocabulary, if the config does not state its size."""
    parts = (config.model.lm, config.model.text_encoder)
    if all(part is None or part.vocab_size for part in parts):
        return []
    return [f"A vocabulary of {VOCABULARY:,} pieces, because the config does not set it."]


def _filled(dataset: DatasetConfig, shards: int, content: RowContent | None) -> flops.Fill:
    full = flops.Fill.full(dataset, shards)
    if content is None:
        return full
    tokens, images = content
    most = full.images / dataset.batch_size
    if not 0 < tokens <= dataset.length or (images is not None and not 0 <= images <= most):
        raise ConfigError(
            f"--fill says {tokens:g} tokens and {images} images in a row; it has room for "
            f"{dataset.length} and {most:g}."
        )
    return dataclasses.replace(
        full, tokens=tokens, images=full.images if images is None else images * dataset.batch_size
    )


def _merge(batches: list[Batch[jax.ShapeDtypeStruct]]) -> Batch[jax.ShapeDtypeStruct]:
    """Returns one batch with the rows of all datasets; its other axes have the largest size."""

    def join(*leaves: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        rest = tuple(max(sizes) for sizes in zip(*(leaf.shape[1:] for leaf in leaves), strict=True))
        return jax.ShapeDtypeStruct((sum(leaf.shape[0] for leaf in leaves), *rest), leaves[0].dtype)

    return jax.tree.map(join, *batches)


def _weights(config: TrainConfig, model: Model, mesh: Mesh) -> Any:
    """Returns the abstract weights in the compute form and dtype, with their shardings."""
    key = params_lib.abstract_key()
    axes = params_lib.axes_of(model.compute_form_init, key)
    abstract = jax.eval_shape(
        lambda rng: model.compute_form(int8.cast(model.init, model.init(rng), config.precision)),
        key,
    )
    return compile_lib.with_shardings(abstract, compile_lib.shardings_of(abstract, axes, mesh))


def _frames_of_image(config: TrainConfig) -> int:
    """Returns F of an image: 1, or the most tiles that it is cut into."""
    return max(tiles_of(config.model.encoder()), 1) if config.stage == "flamingo" else 1


def _placed(
    mesh: Mesh, shape: tuple[int, ...], dtype: Any, *partition: Any
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*partition))
    )


def _cache(
    config: TrainConfig, model: Model, mesh: Mesh, rows: int, prompts: Prompts, images: int = 1
) -> dict[str, dict[str, Any]]:
    """Returns the parts of an abstract cache, with the shardings of inference.

    `images` is the number of images of a prompt whose keys and values are kept.
    """
    dtype = jnp.dtype(config.precision.compute)

    def parts(params: Any) -> dict[str, dict[str, Any]]:
        cache = model.empty_cache(rows, prompts.length + prompts.new_tokens, dtype, params)
        media = jax.tree.map(lambda rows: jnp.repeat(rows, images, axis=2), cache.media)
        return {"lm": cache.lm, "media": media, "shared": cache.shared}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = logical_axes(path[-1].key, leaf.ndim)
        sharding = config.mesh.layout(mesh).sharding(leaf.shape, axes)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(
        place, jax.eval_shape(parts, _weights(config, model, mesh))
    )


def _lower_prefill(
    config: TrainConfig, model: Model, mesh: Mesh, rows: int, prompts: Prompts
) -> Any:
    cache = _cache(config, model, mesh, rows, prompts)
    size, images = config.data.image_size, rows * (prompts.shots + 1)
    text = _placed(mesh, (rows, prompts.length), jnp.int32, BATCH_AXES)
    lengths = _placed(mesh, (rows,), jnp.int32, BATCH_AXES)
    number = _frames_of_image(config)
    frames = _placed(mesh, (images, number, size, size, 3), jnp.uint8, BATCH_AXES)
    mask = _placed(mesh, (images, number), jnp.bool_, BATCH_AXES)
    slot = _placed(mesh, (rows, prompts.shots + 1), jnp.int32, BATCH_AXES)
    has_images = config.stage == "flamingo"

    def prefill(
        params: Any,
        cache: Any,
        tokens: Any,
        lengths: Any,
        phi: Any,
        frames: Any,
        mask: Any,
        slot: Any,
    ) -> Any:
        with with_layout(config.mesh.layout(mesh)):
            media = Media(model.encode(params, frames, mask), slot) if has_images else None
            extend = lambda *args: model.extend(params, *args)
            return decode_lib.prefill(extend, Cache(**cache), tokens, lengths, phi, media)

    options = compile_lib.compiler_options(mesh)
    return jax.jit(prefill, donate_argnums=1, compiler_options=options).lower(
        _weights(config, model, mesh), cache, text, lengths, text, frames, mask, slot
    )


def _lower_decode(
    config: TrainConfig, model: Model, mesh: Mesh, rows: int, prompts: Prompts
) -> Any:
    xattn = config.model.xattn
    keeps_all = xattn is not None and xattn.attend != "last"
    cache = _cache(config, model, mesh, rows, prompts, prompts.shots + 1 if keeps_all else 1)
    token = _placed(mesh, (rows, 1), jnp.int32, BATCH_AXES)

    def step(params: Any, cache: Any, tokens: Any, positions: Any, phi: Any) -> Any:
        with with_layout(config.mesh.layout(mesh)):
            logits, cache = model.extend(params, Cache(**cache), tokens, positions, phi)
        return jnp.argmax(logits[:, -1], axis=-1), cache

    options = compile_lib.compiler_options(mesh)
    return jax.jit(step, donate_argnums=1, compiler_options=options).lower(
        _weights(config, model, mesh), cache, token, token, token
    )

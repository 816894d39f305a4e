"""Updates and logits on one device, for gpu.py: seconds, MFU and memory.

The step is that of `training.run`. Batches are random and full.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import contrastive_f6, flamingo_3b, lm_1b4
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.to_device import to_device
from flamingo_jax.models.cache import Media
from flamingo_jax.planning import flops, peaks
from flamingo_jax.planning.program import VOCABULARY, abstract_batch
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.benchmarks.gpu import result
from tests.training import small

ROUNDS = 3
FITS = 0.95  # of the memory that XLA may use

# Images, or tokens where there are none, of the first micro-batches that are tried; they are halved
# until an update fits. A trained vision encoder keeps activations of its images.
IMAGES, IMAGES_TRAINED, TOKENS = 256, 64, 65_536


def random_batch(data: DataConfig, dataset: DatasetConfig, seed: int) -> Batch[np.ndarray]:
    """Returns a full batch of a dataset for one data shard.

    The images of a row are at even distances, and the text after an image attends it.
    """
    rng = np.random.default_rng(seed)
    shapes = abstract_batch(data, dataset, num_shards=1)
    rows, length = shapes.tokens.shape
    images = shapes.media_slot.shape[1]
    positions = np.arange(length) * images // length + min(images, 1)
    return Batch(
        tokens=rng.integers(4, small.VOCABULARY, (rows, length), np.int32),
        segment=np.ones((rows, length), np.int32),
        loss_weights=np.ones((rows, length), np.float32),
        media_index=np.broadcast_to(positions, (rows, length)).astype(np.int32),
        media_slot=np.arange(rows * images, dtype=np.int32).reshape(rows, images),
        frames=rng.integers(0, 256, shapes.frames.shape, np.uint8),
        frame_mask=np.ones(shapes.frame_mask.shape, bool),
        media_key=rng.integers(0, 1 << 32, shapes.media_key.shape, np.uint32),
    )


def in_parts(dataset: DatasetConfig, images: int, tokens: int) -> DatasetConfig:
    """Returns a dataset in as few equal parts as have at most so many images, or tokens."""
    per_row = dataset.num_visuals * dataset.num_frames
    most = images // per_row if per_row else tokens // dataset.length
    sizes = (rows for rows in range(1, dataset.batch_size + 1) if dataset.batch_size % rows == 0)
    rows = max((rows for rows in sizes if rows <= most), default=1)
    return dataclasses.replace(dataset, chunks=dataset.batch_size // rows)


def memory_limit() -> float:
    """Returns the bytes that XLA may use on the device; infinity where it does not say so."""
    stats = jax.devices()[0].memory_stats() or {}
    return FITS * stats.get("bytes_limit", float("inf"))


def bytes_of(compiled: Any) -> float:
    """Returns the memory of a compiled program."""
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + outputs


def compiled_step(config: TrainConfig) -> tuple[run_lib.Run, Any]:
    """Returns a run on one device and its compiled step, with micro-batches that fit its memory."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    images, tokens = IMAGES_TRAINED if config.trains_vision else IMAGES, TOKENS
    while True:
        datasets = {
            name: in_parts(dataset, images, tokens)
            for name, dataset in config.data.datasets.items()
        }
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, datasets=datasets), mesh=MeshConfig()
        )
        run = run_lib.compile(config, mesh)
        batches = {name: abstract_batch(config.data, data, 1) for name, data in datasets.items()}
        step: Any = run.step
        try:
            compiled = step.lower(
                run.layout.abstract, batches, jax.eval_shape(lambda: jax.random.key(0))
            ).compile()
            if bytes_of(compiled) <= memory_limit() or images <= 8:
                return run, compiled
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or images <= 8:
                raise
        images, tokens = images // 2, tokens // 2


def measure_update(name: str, config: TrainConfig) -> None:
    """Compiles an update, runs it, and hands on what was measured."""
    start = time.perf_counter()
    run, compiled = compiled_step(config)
    compiling = time.perf_counter() - start
    config = run.config
    batches = {
        key: to_device(random_batch(config.data, dataset, seed), run.mesh)
        for seed, (key, dataset) in enumerate(config.data.datasets.items())
    }
    state = run.layout.init(jax.random.key(0))
    key, times = jax.random.key(1), []
    for _ in range(ROUNDS + 1):  # the first one warms up
        start = time.perf_counter()
        state, metrics = compiled(state, batches, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    assert np.isfinite(float(metrics["loss"])), metrics
    seconds = statistics.median(times[1:])
    fills = {key: flops.Fill.full(dataset, 1) for key, dataset in config.data.datasets.items()}
    needed = flops.of_update(config, run.objective, fills)
    device = jax.devices()[0]
    peak, rate = peaks.peak_of(device.device_kind), needed.total / seconds
    chunks = {key: dataset.chunks for key, dataset in config.data.datasets.items()}
    share = "" if peak is None else f"MFU {rate / peak:.3f}, "
    peak_bytes = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result(
        name,
        f"{share}{seconds:.3f} s for {needed.total:.3g} FLOPs ({rate / 1e12:.4g} TFLOP/s), "
        f"{needed.tokens / seconds:,.0f} tokens and {needed.images / seconds:,.0f} images per "
        f"second; micro-batches {chunks}; {bytes_of(compiled) / 2**30:.1f} GiB; compiled in "
        f"{compiling:.0f} s",
        mfu=None if peak is None else rate / peak,
        seconds=seconds,
        flops=needed.total,
        chunks=chunks,
        bytes=bytes_of(compiled),
        peak_bytes_in_use=peak_bytes,
        device=device.device_kind,
        all_seconds=times[1:],
        compile_seconds=compiling,
    )


def configured(size: str, stage: str, full: Callable[[], config_dict.ConfigDict]) -> TrainConfig:
    """Returns the config of a part, with the size of its vocabulary."""
    config = full() if size == "full" else small.get_config(stage)
    vocabulary = VOCABULARY if size == "full" else small.VOCABULARY
    return from_dict(TrainConfig, config.to_dict()).resolved(vocabulary)


def with_datasets(config: TrainConfig, datasets: Mapping[str, DatasetConfig]) -> TrainConfig:
    """Returns the config with other datasets."""
    data = dataclasses.replace(config.data, datasets=dict(datasets))
    return dataclasses.replace(config, data=data)


def step(size: str) -> None:
    """Flamingo-3B: its pages alone, then all of its datasets."""
    config = configured(size, "flamingo", flamingo_3b.get_config)
    pages = next(iter(config.data.datasets))
    measure_update(
        f"step, {pages} alone", with_datasets(config, {pages: config.data.datasets[pages]})
    )
    measure_update("step, all datasets", config)


def lm(size: str) -> None:
    """The 1.4B language model, on 64 rows of 2,048 tokens."""
    config = configured(size, "language_model", lm_1b4.get_config)
    ((name, dataset),) = config.data.datasets.items()
    rows = min(dataset.batch_size, 64)
    measure_update(
        "lm", with_datasets(config, {name: dataclasses.replace(dataset, batch_size=rows)})
    )


def vision(size: str) -> None:
    """NFNet-F6 and BERT-Large: one dataset of 512 pairs."""
    config = configured(size, "contrastive", contrastive_f6.get_config)
    name, dataset = next(iter(config.data.datasets.items()))
    rows = min(dataset.batch_size, 512)
    measure_update(
        "vision", with_datasets(config, {name: dataclasses.replace(dataset, batch_size=rows)})
    )


def logits(size: str) -> None:
    """Flamingo's logits on two pages, in bfloat16 against float32 (full precision of products)."""
    config = configured(size, "flamingo", flamingo_3b.get_config)
    dataset = dataclasses.replace(next(iter(config.data.datasets.values())), batch_size=2)
    batch = jax.device_put(random_batch(config.data, dataset, 0))
    model = run_lib.build_objective(config, num_shards=1).model
    keys = iter(jax.random.split(jax.random.key(0), 10_000))
    # Gates are born closed; open ones let the images through.
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.random.normal(next(keys), leaf.shape) if "gate" in str(path) else leaf
        ),
        jax.jit(model.init)(jax.random.key(0)),
    )

    def forward(params: Any, batch: Any) -> jax.Array:
        rows, length = batch.tokens.shape
        latents = model.encode(params, batch.frames, batch.frame_mask)
        dtype = jax.tree.leaves(params)[0].dtype
        cache = model.empty_cache(rows, length, dtype, params)
        positions = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
        media = Media(latents, batch.media_slot)
        return model.extend(params, cache, batch.tokens, positions, batch.media_index, media)[0]

    found = {}
    for compute in ("float32", "bfloat16"):
        with jax.default_matmul_precision("highest" if compute == "float32" else "default"):
            cast = Policy(compute).cast
            params = jax.jit(lambda w, cast=cast: model.compute_form(cast(w)))(weights)
            found[compute] = np.asarray(jax.jit(forward)(params, batch), np.float64)
        del params
    difference = found["bfloat16"] - found["float32"]
    relative = float(np.linalg.norm(difference) / np.linalg.norm(found["float32"]))
    spread = found["float32"].std()
    same = float(np.mean(found["bfloat16"].argmax(-1) == found["float32"].argmax(-1)))
    result(
        "logits, bfloat16 against float32",
        f"relative difference {relative:.2e}, largest {np.abs(difference).max():.3g} at a "
        f"deviation of {spread:.3g}; the same best token at {same:.1%} of positions",
        relative=relative,
        largest=float(np.abs(difference).max()),
        same_best_token=same,
    )


PARTS = {"step": step, "lm": lm, "vision": vision, "logits": logits}

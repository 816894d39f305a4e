"""A config much smaller than tiny, for tests that run real stages.

It is also a config file: --config=tests/training/small.py:flamingo.
"""

import jax
import numpy as np
from etils import epath

from configs import tiny
from data_pipelines import tokenizer as tokenizer_pipeline
from data_pipelines import world as world_pipeline
from flamingo_jax.checkpoint.export import export
from flamingo_jax.core.config import editable, from_dict, to_dict
from flamingo_jax.data.config import AugmentConfig
from flamingo_jax.data.schema import Batch
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective

VOCABULARY = 120  # where no tokenizer is loaded
SIZE = 32


def get_config(stage="flamingo"):
    """Returns the tiny config with narrow layers and batches of four; tests set its paths."""
    config = narrow(tiny.get_config(stage))
    config.name = f"small_{stage}"
    config.data.augment = editable(AugmentConfig())
    if stage == "flamingo":
        config.data.datasets.pages.update(length=24, max_images=3)
    if stage == "language_model":
        config.data.datasets.text.length = 32
    return config


def narrow(config):
    """Reduces the tiny config to seconds: one or two narrow layers, batches of four, six steps."""
    config.steps = 6
    config.until = None
    model = config.model
    model.vision.update(
        stem_channels=(8,),
        stem_strides=(4,),
        widths=(16,),
        depths=(1,),
        strides=(2,),
        group_width=8,
    )
    model.text_encoder.update(width=16, num_heads=2)
    model.contrastive.joint_dim = 8
    model.lm.update(num_layers=2, width=16, num_heads=4)
    model.resampler.update(width=16, num_heads=4, head_dim=4, num_latents=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2, schedule="constant")
    config.hooks.update(log_every=1, save_every=2, tensorboard=False, progress=False)
    sizes = {"batch_size": 4}
    for dataset in config.data.datasets.values():
        dataset.update(sizes)
    return config


def make_world(directory):
    """Writes a world of a few hundred pictures and its tokenizer; returns the directory."""
    directory = epath.Path(directory)
    numbers = dict.fromkeys(
        ("one", "two", "album", "pairs", "pages", "documents", "test_one", "test_two"), 64
    )
    others = dict.fromkeys(("videos", "held_back", "test_held_out", "frames"), 2)
    size = world_pipeline.WorldSize(**numbers, **others)
    world_pipeline.build(world_pipeline.WorldRequest(size=size), directory)
    request = tokenizer_pipeline.TokenizerRequest(str(directory / "text"), model_type="word")
    (directory / "tokenizer").mkdir()
    tokenizer_pipeline.build(request, directory / "tokenizer")
    return directory


def with_world(config, world, towers=None):
    """Sets the paths of a config to a world's datasets and to the towers."""
    config.data.tokenizer = str(world / "tokenizer")
    for name, dataset in config.data.datasets.items():
        dataset.path = str(world / name)
    if towers:
        config.towers.update({name: str(towers / name) for name in ("lm", "vision")})
    return config


def overrides(stage, world, towers=None):
    """Returns the paths of `with_world` as command-line flags."""
    names = with_world(get_config(stage), world).data.datasets
    flags = [f"--config.data.tokenizer={world / 'tokenizer'}"]
    flags += [f"--config.data.datasets.{name}.path={world / name}" for name in names]
    return flags + [
        f"--config.towers.{name}={towers / name}" for name in (("lm", "vision") if towers else ())
    ]


def make_towers(directory, world, config_of=get_config):
    """Exports random towers in place of those that the other two stages train; compiles nothing.

    `config_of(stage)` returns the config; `world` is the directory of the tokenizer.
    """
    rng = np.random.default_rng(0)
    for name, stage in (("lm", "language_model"), ("vision", "contrastive")):
        make_export(directory / name, world, stage, config_of=config_of, rng=rng)
    return directory


def make_export(directory, world, stage, *, config_of=get_config, rng=None):
    """Exports a random model of a stage; returns the directory. `rng` is NumPy's."""
    rng = rng or np.random.default_rng(0)
    config = from_dict(TrainConfig, with_world(config_of(stage), world))
    config = config.resolved(SentencePieceTokenizer.load(config.data.tokenizer, ()).vocab_size)
    shapes = jax.eval_shape(build_objective(config, num_shards=1).model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
    )
    return export(
        directory,
        params,
        kind=stage,
        config=to_dict(config.model),
        tokenizer=config.data.tokenizer,
        preprocessing={"image_size": config.data.image_size},
        step=0,
    )


def batch(rows, length, images, seed, num_shards=1):
    """Returns a batch of random tokens in which every row has `images` images, with random phi."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, VOCABULARY, (rows, length)).astype(np.int32)
    phi = np.sort(rng.integers(0, images + 1, (rows, length)), axis=1).astype(np.int32)
    per_shard = rows // num_shards
    slot = np.arange(per_shard * images, dtype=np.int32).reshape(per_shard, images)
    return Batch(
        tokens=tokens,
        segment=np.ones_like(tokens),
        loss_weights=np.ones(tokens.shape, np.float32),
        media_index=phi,
        media_slot=np.tile(slot, (num_shards, 1)),
        frames=rng.integers(0, 256, (rows * images, 1, SIZE, SIZE, 3)).astype(np.uint8),
        frame_mask=np.ones((rows * images, 1), bool),
        media_key=rng.integers(0, 1 << 32, (rows * images, 2), dtype=np.uint32),
    )

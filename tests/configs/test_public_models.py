"""The public Flamingos: published numbers of weights, and batches that divide over their meshes."""

import collections
import importlib

import jax
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.models import api
from flamingo_jax.training.config import TrainConfig

VOCABULARY = 50_280  # rows of OpenFlamingo's token table: 50,277 pieces and three new tokens


def config_of(name):
    return from_dict(TrainConfig, importlib.import_module(f"configs.{name}").get_config("/records"))


def count(name):
    """Returns {part: number of weights}, from shapes alone."""
    shapes = jax.eval_shape(api.flamingo(config_of(name).model.flamingo()).init, jax.random.key(0))
    counts = collections.Counter()
    for path, leaf in trees.flatten(shapes).items():
        counts[path.split("/")[1]] += leaf.size
    return counts


@pytest.mark.parametrize(
    ("name", "trained", "every"),
    [
        # The number that its publishers trained, without their tied token table.
        ("open_flamingo_3b", 1_046_992_944 - VOCABULARY * 2048, 1),
        ("open_flamingo_9b", 1_384_781_840 - VOCABULARY * 4096, 4),
        # A layer has a norm, q and out of D x 512, k and v of 1024 x 512, two gates, a norm, 8 D^2.
        (
            "open_flamingo_4b",
            63_019_008
            + 16 * (2 * 2560 + 2 * 2560 * 512 + 2 * 1024 * 512 + 2 + 2 * 2560 + 8 * 2560**2),
            2,
        ),
    ],
)
def test_open_flamingo_counts(name, trained, every):
    counts, model = count(name), config_of(name).model
    assert counts["resampler"] + counts["xattn"] == trained
    # ViT-L/14 without its last norm and its projection
    assert counts["vision"] == 303_966_208 - 2 * 1024 - 1024 * 768
    assert (model.xattn.every, model.xattn.offset) == (every, every - 1)


@pytest.mark.parametrize(("name", "xattn_layers"), [("idefics_9b", 8), ("idefics_80b", 20)])
def test_idefics_shapes(name, xattn_layers):
    """Exact counts are tested with the conversion."""
    model = config_of(name).model
    assert model.xattn.num_layers(model.lm.num_layers) == xattn_layers
    assert model.encoder().num_features(224) == 257


@pytest.mark.parametrize(("name", "xattn_layers"), [("mllama_11b", 8), ("mllama_90b", 20)])
def test_llama_vision_shapes(name, xattn_layers):
    """Exact counts are tested with the conversion. An image has four tiles of 1601 features."""
    model = config_of(name).model
    assert model.xattn.num_layers(model.lm.num_layers) == xattn_layers
    assert model.resampler is None and model.flamingo().num_latents == 4 * 1601


@pytest.mark.parametrize(
    "name",
    [
        *("open_flamingo_3b", "open_flamingo_4b", "open_flamingo_9b"),
        *("idefics_9b", "idefics_80b", "mllama_11b", "mllama_90b"),
    ],
)
def test_further_training_starts_from_the_converted_model(name):
    config = config_of(name)
    assert config.initial == config.data.tokenizer == f"/records/{name}"
    assert config.data.image_size == config.model.encoder().image_size
    publisher = name.split("_")[0]
    fits = {"idefics": "squash", "open": "crop", "mllama": "pad"}  # of tiles it says nothing
    assert config.data.image_fit == fits[publisher]
    assert config.data.background == ("none" if publisher == "open" else "white")
    for dataset in config.data.datasets.values():
        assert dataset.batch_size % (config.mesh.replica * config.mesh.data) == 0
        assert dataset.p_next == 0 or dataset.kind == "pairs"  # text attends the image before it

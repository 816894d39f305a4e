"""configs/ and the dataclasses are one schema: every field of one is a field of the other, and every config converts."""

import dataclasses
import importlib
import types
import typing

import pytest
from ml_collections import config_dict

from configs import base, evaluate, finetune, flamingo_80b, tiny
from flamingo_jax.core import config as core_config
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models import sizes
from flamingo_jax.models.vit import ViTConfig
from flamingo_jax.training.config import TrainConfig, UntilConfig


def fields_of(kind: object, prefix: str = "") -> set[str]:
    """Returns the dotted names of all fields of a dataclass, through nested and optional dataclasses."""
    names = set()
    for name, field in typing.get_type_hints(kind).items():
        options = typing.get_args(field) if typing.get_origin(field) in (typing.Union, types.UnionType) else (field,)
        nested = [option for option in options if dataclasses.is_dataclass(option)]
        names |= fields_of(nested[0], f"{prefix}{name}.") if nested else {f"{prefix}{name}"}
    return names


def leaves_of(config: config_dict.ConfigDict, prefix: str = "") -> set[str]:
    """Returns the dotted names of all leaves of a config; an empty dict is a leaf."""
    names = set()
    for name, value in config.items(preserve_field_references=True):
        nested = isinstance(value, config_dict.ConfigDict) and len(value) > 0
        names |= leaves_of(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}"}
    return names


def test_base_has_every_field_of_the_schema():
    config = base.get_config()
    with config.unlocked():
        config.until = base.until("lm_lookup", metric="nll", below=0.3, every=100)
        config.model.vit = base.vit()
        assert config.evaluate.data == evaluate.directories()
        config.evaluate.data = {}  # a place for each benchmark; in the schema it is one field
    assert leaves_of(config) == fields_of(TrainConfig)


def test_dataset_and_until_have_every_field():
    assert leaves_of(base.dataset("text", "p", batch_size=1, length=2)) == fields_of(DatasetConfig)
    assert leaves_of(base.until("p", metric="m", below=0.0, every=1)) == fields_of(UntilConfig)


def test_the_vit_of_base_is_openais_l14():
    assert core_config.from_dict(ViTConfig, base.vit()) == sizes.VITS["L14"]


def test_dataset_refuses_an_unknown_field():
    with pytest.raises((KeyError, AttributeError), match="p_nxt"):
        base.dataset("pairs", "p", batch_size=1, length=2, p_nxt=0.0)


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_tiny_converts(stage):
    config = core_config.from_dict(TrainConfig, tiny.get_config(stage))
    assert config.stage == stage
    assert config.data.datasets
    # All stages describe the same model, so that the exports of two are the towers of the third.
    assert config.model == core_config.from_dict(TrainConfig, tiny.get_config()).model


def test_tiny_models_are_those_of_the_zoo():
    model = core_config.from_dict(TrainConfig, tiny.get_config("flamingo")).model
    assert model.vision == sizes.NFNETS["tiny"]
    assert model.resampler == sizes.RESAMPLERS["tiny"]


def test_tiny_knows_its_stages():
    with pytest.raises(ValueError, match="contrastive"):
        tiny.get_config("stage3")


def test_tiny_lengths_hold_what_their_comments_say():
    """The longest page, caption and pair of the world fit, so that no record loses its end."""
    flamingo = tiny.get_config("flamingo").data.datasets
    caption_words = len("a big red circle and a small blue ring".split())
    assert flamingo.pages.length >= max(flamingo.pages.max_images * 6 + 3, 4 * 13 + 3)
    assert flamingo.pairs.length >= caption_words + 4
    assert tiny.get_config("contrastive").data.datasets.captions.length >= caption_words + 2


FULL_SIZE = {
    "flamingo_3b": ("3B", 64),
    "flamingo_9b": ("9B", 128),
    "flamingo_80b": ("80B", 1536),
    "lm_1b4": ("1.4B", 64),
    "lm_7b": ("7.1B", 128),
    "lm_70b": ("70B", 1536),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_are_those_of_the_zoo_and_their_batches_divide(name):
    size, chips = FULL_SIZE[name]
    config = core_config.from_dict(TrainConfig, importlib.import_module(f"configs.{name}").get_config("/records"))
    plain = lambda lm: dataclasses.replace(lm, remat="none")  # noqa: E731
    if config.stage == "flamingo":
        ours, theirs = config.model.flamingo(), sizes.FLAMINGOS[size]
        assert dataclasses.replace(ours, lm=plain(ours.lm)) == theirs
        assert sum(dataset.weight for dataset in config.data.datasets.values()) == pytest.approx(1.43)  # B.1.2
    else:
        assert plain(config.model.lm) == sizes.LMS[size]
    mesh = config.mesh
    assert mesh.replica * mesh.data * mesh.model == chips
    for dataset in config.data.datasets.values():
        assert dataset.batch_size % (mesh.replica * mesh.data) == 0
        assert dataset.path.startswith("/records/")


def test_batches_of_the_80b_are_twelve_times_the_ablations():
    """DESIGN, Step; the paper states those of the ablation alone: 256, 512, 512, 64 (B.3.1)."""
    datasets = flamingo_80b.get_config().data.datasets
    assert {name: dataset.batch_size for name, dataset in datasets.items()} == {
        "m3w": 3072,
        "align": 6144,
        "ltip": 6144,
        "vtp": 768,
    }


@pytest.mark.parametrize("task", finetune.TASKS)
def test_finetuning_is_a_point_of_the_papers_grid(task):
    """B.2.2."""
    config = core_config.from_dict(TrainConfig, finetune.get_config(f"{task},/records"))
    assert config.trains_vision and config.data.image_size == 480
    assert config.optimizer.schedule == "exponential"
    for field in ("learning_rate", "final_fraction"):
        assert getattr(config.optimizer, field) in finetune.GRID[f"optimizer.{field}"]
    (dataset,) = config.data.datasets.values()
    assert dataset.path == f"/records/{task}" and dataset.kind == "pairs"
    assert dataset.batch_size in finetune.GRID["batch_size"] and dataset.batch_size % config.mesh.data == 0
    assert config.model == core_config.from_dict(TrainConfig, flamingo_80b.get_config()).model


def test_finetuning_knows_its_tasks_and_sizes():
    small = core_config.from_dict(TrainConfig, finetune.get_config("coco,/records,3b"))
    assert small.model.lm.num_layers == sizes.FLAMINGOS["3B"].lm.num_layers
    assert small.data.tokenizer.startswith("/records/")
    for argument in ("coco2", "coco,/records,4b", "coco,/records,3b,4"):
        with pytest.raises(ValueError, match=f"got '{argument}'; expected TASK"):
            finetune.get_config(argument)

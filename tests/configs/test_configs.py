"""configs/ and the dataclasses are one schema: every field of one is a field of the other, and every config converts."""

import dataclasses
import types
import typing

import pytest
from ml_collections import config_dict

from configs import base, tiny
from flamingo_jax.core import config as core_config
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models import zoo
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
    assert leaves_of(config) == fields_of(TrainConfig)


def test_dataset_and_until_have_every_field():
    assert leaves_of(base.dataset("text", "p", batch_size=1, length=2)) == fields_of(DatasetConfig)
    assert leaves_of(base.until("p", metric="m", below=0.0, every=1)) == fields_of(UntilConfig)


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
    assert model.vision == zoo.NFNETS["tiny"]
    assert model.resampler == zoo.RESAMPLERS["tiny"]


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

"""Every config has every field of the schema, and says what the paper says."""

import dataclasses
import importlib
import pathlib
import types
import typing

import pytest
from ml_collections import config_dict

from configs import emoji, finetune, flamingo_3b, flamingo_9b, flamingo_80b, tiny
from data_pipelines import world
from flamingo_jax.core import config as core_config
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.nn.lora import LoRAConfig
from flamingo_jax.training.config import TrainConfig, UntilConfig


def fields_of(kind: object, prefix: str = "") -> set[str]:
    """Returns the dotted names of all fields of a dataclass, also of nested and optional ones."""
    names = set()
    for name, field in typing.get_type_hints(kind).items():
        is_union = typing.get_origin(field) in (typing.Union, types.UnionType)
        options = typing.get_args(field) if is_union else (field,)
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


RUNS = sorted(
    path.stem
    for path in pathlib.Path(finetune.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "evaluate", "finetune_grid", "mixture", "small_models")
)


@pytest.mark.parametrize("name", RUNS)
def test_every_config_has_every_field(name):
    """Also those of parts that a stage does not use, so that one command line fits all stages."""
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.is_locked
    assert set(config.evaluate.data) == set(DIRECTORIES)
    assert all(
        leaves_of(dataset) == fields_of(DatasetConfig) for dataset in config.data.datasets.values()
    )
    with config.unlocked():
        config.until = core_config.editable(UntilConfig())
        config.model.vision = core_config.editable(sizes.NFNETS["F6"])
        config.model.vit = core_config.editable(sizes.VITS["L14"])
        config.model.tiled_vit = core_config.editable(sizes.TILED_VITS["llama"])
        config.model.resampler = core_config.editable(sizes.RESAMPLERS["paper"])
        config.model.lm.lora = core_config.editable(LoRAConfig())
        config.evaluate.data = config.data.datasets = {}  # their keys are no fields
    assert leaves_of(config) == fields_of(TrainConfig)


def test_no_config_takes_an_unknown_field():
    config = flamingo_80b.get_config()
    for part, name in (
        (config.data.datasets.m3w, "p_nxt"),
        (config.model.lm, "layers"),
        (config.evaluate.data, "coca"),
    ):
        with pytest.raises((KeyError, AttributeError), match=name):
            part[name] = 0.0


SIZED = [(tiny, size, stage) for size in tiny.MODELS for stage in tiny.STAGES]
SIZED += [(emoji, size, stage) for size in emoji.MODELS for stage in emoji.STAGES]


@pytest.mark.parametrize(("module", "size", "stage"), SIZED)
def test_every_size_of_a_small_model_converts(module, size, stage):
    config = core_config.from_dict(TrainConfig, module.get_config(f"{size},{stage}"))
    assert config.stage == stage
    assert config.data.datasets
    # All stages have the same model, so that exports of two stages are the towers of the third.
    assert config.model == core_config.from_dict(TrainConfig, module.get_config(size)).model


@pytest.mark.parametrize("module", [tiny, emoji])
def test_a_small_models_argument_is_a_stage_a_size_or_both(module):
    of = module.get_config
    assert of() == of("flamingo") == of("base") == of("base,flamingo")
    assert of("contrastive") == of("base,contrastive")
    assert of("gpu") == of("gpu,flamingo")
    for argument in (
        "stage3",
        "huge,flamingo",
        "gpu,stage3",
        "contrastive,gpu",
        "gpu,flamingo,1",
        "",
    ):
        with pytest.raises(ValueError, match=f"no stage '{argument}'; .*contrastive.*gpu"):
            of(argument)


def test_sizes_of_one_vision_encoder_differ_in_the_language_model_alone():
    """As the paper's: so the three models of launch/model_sizes.sh share the vision encoder."""
    base = core_config.from_dict(TrainConfig, tiny.get_config("contrastive"))
    for size in ("small", "large"):
        other = core_config.from_dict(TrainConfig, tiny.get_config(f"{size},contrastive"))
        assert dataclasses.replace(other.model, lm=base.model.lm) == base.model
        assert dataclasses.replace(other, name=base.name, model=base.model) == base


@pytest.mark.parametrize("size", tiny.MODELS)
def test_tiny_lengths_are_what_their_comments_say(size):
    """The longest page, caption, pair and document of the world fit, so that no record is cut."""
    records = world.SIZES.get(size, world.SIZES["demo"])
    flamingo = tiny.get_config(size).data.datasets
    caption_words = len("a big red circle and a small blue ring".split())
    assert flamingo.pages.max_images == records.pictures
    assert flamingo.pages.length >= max(records.pictures * 6 + 3, records.pictures // 2 * 13 + 3)
    assert flamingo.pairs.length >= caption_words + 4
    captions = tiny.get_config(f"{size},contrastive").data.datasets.captions
    assert captions.length >= caption_words + 2
    assert tiny.get_config(f"{size},language_model").data.datasets.text.length >= records.words + 2


FULL_SIZE = {
    "flamingo_3b": 64,
    "flamingo_9b": 128,
    "flamingo_80b": 1536,
    "lm_1b4": 64,
    "lm_7b": 128,
    "lm_70b": 1536,
}


def test_fine_tuned_models_are_asked_without_examples():
    evaluate = finetune.get_config("vqav2").evaluate
    assert (evaluate.shots, evaluate.text_examples) == ((0,), 0)


def test_the_7b_language_model_is_clipped_as_gophers():
    """Gopher clips its 7.1B and 280B at 0.25, and smaller models at 1."""
    clips = {
        name: importlib.import_module(f"configs.{name}").get_config().optimizer.clip_norm
        for name in ("lm_1b4", "lm_7b")
    }
    assert clips == {"lm_1b4": 1.0, "lm_7b": 0.25}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_batches_divide_over_their_chips(name):
    config = core_config.from_dict(
        TrainConfig, importlib.import_module(f"configs.{name}").get_config("/records")
    )
    if config.stage == "flamingo":
        weights = [dataset.weight for dataset in config.data.datasets.values()]
        assert sum(weights) == pytest.approx(1.43)  # paper, B.1.2
    mesh = config.mesh
    assert mesh.replica * mesh.data * mesh.model == FULL_SIZE[name]
    for dataset in config.data.datasets.values():
        assert dataset.batch_size % (mesh.replica * mesh.data) == 0
        assert dataset.path.startswith("/records/")


def test_the_80b_in_groups_of_8_differs_in_its_layout_alone():
    of_16, of_8 = (
        core_config.from_dict(TrainConfig, flamingo_80b.get_config(argument))
        for argument in ("/records", "8way,/records")
    )
    assert (of_8.mesh.data, of_8.mesh.model, of_8.mesh.model_chips) == (64, 8, (2, 2, 2))
    assert of_8.mesh.replica * of_8.mesh.data * of_8.mesh.model == FULL_SIZE["flamingo_80b"]
    for dataset in of_8.data.datasets.values():
        assert dataset.batch_size % (of_8.mesh.replica * of_8.mesh.data) == 0
    assert of_8.precision.frozen == "int8"
    same = {"name": of_16.name, "mesh": of_16.mesh, "precision": of_16.precision}
    assert dataclasses.replace(of_8, **same) == of_16
    assert flamingo_80b.get_config("8way").data.tokenizer == "/data/tokenizer"


def test_batches_of_the_80b_are_twelve_times_the_ablations():
    """The paper states only those of the ablation: 256, 512, 512, 64 (paper, B.3.1)."""
    datasets = flamingo_80b.get_config().data.datasets
    assert {name: dataset.batch_size for name, dataset in datasets.items()} == {
        "m3w": 3072,
        "align": 6144,
        "ltip": 6144,
        "vtp": 768,
    }


@pytest.mark.parametrize(("config", "scale"), [(flamingo_3b, 1), (flamingo_9b, 2)])
def test_batches_of_the_smaller_models_have_the_size_that_the_argument_says(config, scale):
    def batches(argument):
        return {
            name: (dataset.batch_size, dataset.path)
            for name, dataset in config.get_config(argument).data.datasets.items()
        }

    def expected(scale, directory):
        sizes = {"m3w": 256, "align": 512, "ltip": 512, "vtp": 64}
        return {name: (scale * size, f"{directory}/{name}") for name, size in sizes.items()}

    assert batches("/records") == expected(scale, "/records")
    assert batches("4x") == expected(4, "/data")
    assert batches("12x,/records") == expected(12, "/records")
    assert batches("0x") == expected(scale, "0x")  # a directory of this name


@pytest.mark.parametrize("task", finetune.TASKS)
def test_finetuning_is_a_point_of_the_papers_grid(task):
    """Paper, B.2.2."""
    config = core_config.from_dict(TrainConfig, finetune.get_config(f"{task},/records"))
    assert config.trains_vision and config.data.image_size == 480
    assert config.optimizer.schedule == "exponential"
    for field in ("learning_rate", "final_fraction"):
        assert getattr(config.optimizer, field) in finetune.GRID[f"optimizer.{field}"]
    (dataset,) = config.data.datasets.values()
    assert dataset.path == f"/records/{task}" and dataset.kind == "pairs"
    assert dataset.batch_size in finetune.GRID["batch_size"]
    assert dataset.batch_size % config.mesh.data == 0
    assert config.model == core_config.from_dict(TrainConfig, flamingo_80b.get_config()).model


def test_finetuning_knows_its_tasks_and_sizes():
    small = core_config.from_dict(TrainConfig, finetune.get_config("coco,/records,3b"))
    assert small.model.lm.num_layers == sizes.FLAMINGOS["3B"].lm.num_layers
    assert small.data.tokenizer.startswith("/records/")
    for argument in ("coco2", "coco,/records,4b", "coco,/records,3b,4"):
        with pytest.raises(ValueError, match=f"got '{argument}'; expected TASK"):
            finetune.get_config(argument)

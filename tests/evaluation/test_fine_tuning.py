"""The search of fine-tuning: which runs go on, what is run again, and what is reported."""

import dataclasses
import json
import math

import pytest

from configs import finetune_grid, tiny
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core.config import ConfigError, FieldError, from_dict
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.paths import read_json
from flamingo_jax.evaluation import fine_tuning
from flamingo_jax.evaluation.config import FineTuneConfig
from flamingo_jax.training.config import TrainConfig

GRID = {
    "rate": {"1": "optimizer.learning_rate=1", "2": "optimizer.learning_rate=2"},
    "batch": {"a": "", "b": "data.datasets.pairs.batch_size=8"},
}


def config_of(**changes):
    run = from_dict(TrainConfig, tiny.get_config("flamingo"))
    run = dataclasses.replace(run, steps=80)
    fields = {"task": "easy_vqa", "run": run, "grid": GRID, "rungs": (0.25, 1.0)}
    return FineTuneConfig(**fields | changes)


class Trainer:
    """Takes the place of `train`: the value is the learning rate plus a hundredth of the steps."""

    def __init__(self):
        self.calls = []

    def __call__(self, config, workdir):
        self.calls.append((workdir.name, config.steps))
        workdir.mkdir(parents=True, exist_ok=True)
        value = config.optimizer.learning_rate / 10 + config.steps / 1000
        line = {"step": config.steps, "evaluate/easy_vqa/0/top1": value}
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def searched(config, workdir, train):
    lines = []
    best = fine_tuning.search(config, workdir, train=train, report=lines.append)
    return best, lines


def test_the_best_share_goes_on(tmp_path):
    train = Trainer()
    best, lines = searched(config_of(), tmp_path, train)
    assert best.name == "rate_2.batch_a"  # of equals, the first
    first = {"rate_1.batch_a", "rate_1.batch_b", "rate_2.batch_a", "rate_2.batch_b"}
    assert {name for name, steps in train.calls if steps == 20} == first
    assert [call for call in train.calls if call[1] == 80] == [
        ("rate_2.batch_a", 80),
        ("rate_2.batch_b", 80),
    ]
    assert lines[0] == "rate_1.batch_a, 20 updates: top-1 accuracy, % 12.0"
    known = read_json(tmp_path / "grid.json")
    assert known["rate_2.batch_b"] == {"20": 0.22, "80": pytest.approx(0.28)}
    assert known["rate_1.batch_b"] == {"20": pytest.approx(0.12)}


def test_what_is_measured_is_not_run_again(tmp_path):
    searched(config_of(), tmp_path, Trainer())
    again = Trainer()
    assert searched(config_of(), tmp_path, again)[0].name == "rate_2.batch_a"
    assert again.calls == []


def test_a_search_that_was_stopped_goes_on(tmp_path):
    class Stops(Trainer):
        def __call__(self, config, workdir):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            super().__call__(config, workdir)

    with pytest.raises(KeyboardInterrupt):
        searched(config_of(), tmp_path, Stops())
    train = Trainer()
    searched(config_of(), tmp_path, train)
    assert [name for name, steps in train.calls if steps == 20] == [
        "rate_2.batch_a",
        "rate_2.batch_b",
    ]


def test_a_run_that_diverges_loses(tmp_path):
    class Diverges(Trainer):
        def __call__(self, config, workdir):
            if config.optimizer.learning_rate == 2:
                raise NonFiniteError("the loss is NaN")
            super().__call__(config, workdir)

    best, lines = searched(config_of(), tmp_path, Diverges())
    assert best.name == "rate_1.batch_a"
    assert "rate_2.batch_a, 20 updates: diverged" in lines
    assert read_json(tmp_path / "grid.json")["rate_2.batch_a"] == {"20": None}
    both = {"rate": {"2": GRID["rate"]["2"]}}
    with pytest.raises(ConfigError, match="All 1 runs .* have diverged"):
        searched(config_of(grid=both), tmp_path / "other", Diverges())


def test_a_part_of_a_run_has_the_learning_rates_of_the_whole(tmp_path):
    (run,) = fine_tuning.runs_of(config_of(grid={}), tmp_path)
    part, whole = run.until(0.25), run.until(1.0)
    assert (part.steps, whole.steps) == (20, 80)
    assert part.optimizer == whole.optimizer and part.optimizer.decay_steps == 80
    assert part.evaluate == whole.evaluate and part.evaluate.every == 80
    assert (part.evaluate.tasks, part.evaluate.shots) == (("easy_vqa",), (0,))
    assert part.evaluate.text_examples == 0


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
    with pytest.raises(ConfigError, match="rate_1.batch_a has no evaluate/easy_vqa/0/top1 after"):
        searched(config_of(), tmp_path, lambda config, workdir: None)


@pytest.mark.parametrize("kind", [ConfigError, CheckpointError])
def test_errors_of_a_run_name_the_fields_of_the_search(tmp_path, kind):
    def train(config, workdir):
        raise kind("config.towers.lm is None; give --config.initial=RUN or config.run.seed.")

    expected = "config.run.towers.lm is None; give --config.run.initial=RUN or config.run.seed."
    with pytest.raises(kind) as error:
        searched(config_of(), tmp_path, train)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "easy_vqx"}, "task is 'easy_vqx'"),
        ({"rungs": (0.5, 0.25, 1.0)}, "rungs is"),
        ({"rungs": (0.5,)}, "rungs is .*grow to 1"),
        ({"keep": 0.0}, "above 0"),
    ],
)
def test_bad_searches_are_refused(changes, message):
    with pytest.raises(FieldError, match=message):
        dataclasses.replace(config_of(), **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [("steps", "expected FIELD=VALUE"), ("stepz=3", "stepz"), ("steps=many", "steps")],
)
def test_bad_fields_of_a_grid_are_named(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        fine_tuning.runs_of(config_of(grid={"a": {"b": fields}}), tmp_path)


@pytest.mark.parametrize(
    ("change", "is_right"),
    [({}, True), ({"validation": False}, False), ({"seed": 2}, False), ({"num_support": 4}, False)],
)
def test_records_that_show_the_validation_queries_are_refused(tmp_path, change, is_right):
    config = config_of(rungs=(1.0,), grid={})
    dataset = dataclasses.replace(config.run.data.datasets["pairs"], path=str(tmp_path))
    data = dataclasses.replace(config.run.data, datasets={"pairs": dataset})
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, data=data))
    request = {"validation": True, "seed": 1, "num_support": 2048} | change
    (tmp_path / "pipeline.json").write_text(
        json.dumps({"pipeline": "benchmark", "request": request})
    )
    if is_right:
        searched(config, tmp_path / "search", Trainer())
    else:
        with pytest.raises(ConfigError, match="datasets.pairs: .* may show the validation queries"):
            searched(config, tmp_path / "search", Trainer())


def test_visdial_cannot_be_chosen_by_its_training_dialogues(tmp_path):
    with pytest.raises(ConfigError, match="no ratings.*configs/finetune.py:visdial") as error:
        searched(config_of(task="visdial"), tmp_path / "search", Trainer())
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "search").exists()


def test_the_papers_grid(tmp_path):
    """Paper, B.2.2: learning rates, batches of 8 and 16, augmentation on or off."""
    config = from_dict(FineTuneConfig, finetune_grid.get_config("coco,/records,3b"))
    runs = fine_tuning.runs_of(config, tmp_path)
    assert len(runs) == 96 == len({run.name for run in runs})
    rates = {run.config.optimizer.learning_rate for run in runs}
    assert (min(rates), max(rates)) == (3e-8, 1e-5)
    assert {run.config.data.datasets["coco"].batch_size for run in runs} == {8, 16}
    assert {run.config.data.augment.flip for run in runs} == {0.0, 0.5}
    assert {run.config.optimizer.final_fraction for run in runs} == {0.1, 0.01}
    assert all(run.config.trains_vision and run.config.data.image_size == 480 for run in runs)
    updates, alive = 0.0, 96
    for before, share in zip((0.0, *config.rungs), config.rungs, strict=False):
        updates += alive * (share - before)
        alive = math.ceil(alive * config.keep)
    assert updates == 96 / 8 + 48 / 8 + 24 / 4 + 12 / 2  # whole runs

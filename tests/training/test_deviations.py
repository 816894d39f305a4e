"""Deviations of a run that goes on: what is recorded, what is carried on, what may be allowed."""

import dataclasses
import re

import pytest

from flamingo_jax.core.config import ConfigError, from_dict, to_dict
from flamingo_jax.models.losses import LossConfig
from flamingo_jax.training import deviations
from flamingo_jax.training.config import ResumeConfig, TrainConfig
from tests.training import small

OLD = {"step": 2, "field": "optimizer.b2", "change": "0.999 -> 0.95"}


def config_with(optimizer=None, **resume):
    config = from_dict(TrainConfig, small.get_config("language_model"))
    changed = dataclasses.replace(config.optimizer, **(optimizer or {}))
    return dataclasses.replace(config, optimizer=changed, resume=ResumeConfig(**resume))


def found(theirs, ours, **more):
    return deviations.of(ours, {**to_dict(theirs), **more}, to_dict(ours), step=6, uses={"text": 6})


def test_what_is_allowed_is_recorded_and_what_was_recorded_is_carried_on():
    ours = config_with({"learning_rate": 0.5, "eps": 0.25}, allow=("optimizer.learning_rate",))
    change = {"step": 6, "field": "optimizer.learning_rate", "change": "0.01 -> 0.5"}
    assert found(config_with(), ours) == [change]
    assert found(config_with(), ours, deviations=[OLD]) == [OLD, change]
    assert found(ours, ours, deviations=[OLD, change]) == [OLD, change]


def test_what_the_loss_is_divided_by_may_change_by_name():
    ours = dataclasses.replace(config_with(allow=("loss.normalise",)), loss=LossConfig("rows"))
    deviations.check(ours)
    change = {"step": 6, "field": "loss.normalise", "change": "'tokens' -> 'rows'"}
    assert found(config_with(), ours) == [change]


def test_a_section_allows_its_fields_and_no_others():
    ours = config_with({"learning_rate": 0.5, "eps": 0.25}, allow=("optimizer",))
    deviations.check(ours)
    fields = [each["field"] for each in found(config_with(), ours)]
    assert fields == ["optimizer.learning_rate", "optimizer.eps"]
    patterns = deviations.patterns(config_with(allow=("optimizer.b1",)))
    matches = lambda field: any(re.fullmatch(pattern, field) for pattern in patterns)
    assert matches("optimizer.b1") and matches("resume.skip_batches")
    assert not matches("optimizer.b10") and not matches("optimizer.b2") and not matches("seed")


@pytest.mark.parametrize(
    ("before", "now", "recorded"),
    [
        ((), ("text:6:7",), True),
        (("text:2:3",), ("text:2:3", "text:9:10"), True),
        (("text:2:3",), ("text:2:3",), False),
    ],
)
def test_batches_that_come_later_may_be_left_out_and_are_recorded(before, now, recorded):
    changes = found(config_with(skip_batches=before), config_with(skip_batches=now))
    assert [each["field"] for each in changes] == ["resume.skip_batches"] * recorded


@pytest.mark.parametrize(
    ("before", "now"),
    [((), ("text:5:6",)), (("text:2:3",), ()), (("text:2:3",), ("text:2:4",))],
)
def test_batches_that_were_used_or_left_out_stay_so(before, now):
    with pytest.raises(ConfigError, match=r"checkpoint of step 6 was made with .* cannot change"):
        found(config_with(skip_batches=before), config_with(skip_batches=now))


def test_the_advice_names_fields_only_if_all_of_them_may_change():
    advice = deviations.advice(["optimizer.learning_rate", "data.datasets.text.weight"])
    assert "--config.resume.allow=optimizer.learning_rate,data.datasets.text.weight" in advice
    assert deviations.advice(["optimizer.learning_rate", "seed"]) == ""


@pytest.mark.parametrize("text", ["text", "text:5", "text:7:5"])
def test_a_range_of_another_form_is_refused_with_the_config(text):
    fields = {**to_dict(config_with()), "resume": {"skip_batches": [text]}}
    message = r"^config\.resume\.skip_batches has .*expected DATASET:FIRST:END"
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, fields)

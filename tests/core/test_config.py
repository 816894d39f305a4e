"""core.config: every kind of field is converted both ways, and every mistake is one clear error."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, Optional

import ml_collections
import pytest

from flamingo_jax.core import fields
from flamingo_jax.core.config import ConfigError, differences, editable, from_dict, to_dict


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0

    def __post_init__(self):
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; expected at least 0.")


@dataclasses.dataclass(frozen=True)
class Dataset:
    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Small:
    width: int


@dataclasses.dataclass(frozen=True)
class Grid:
    patches: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int
    optimizer: Optimizer = Optimizer()
    datasets: dict[str, Dataset] = dataclasses.field(default_factory=dict)
    new_tokens: tuple[str, ...] = ("<EOC>",)
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int | None = None
    vision: Small | Grid | None = None
    until: Optional[Optimizer] = None  # noqa: UP045 (the other spelling of X | None)
    scale: int | float = 1
    resume: bool = True
    extra: Any = None


FULL = {
    "steps": 3,
    "optimizer": {"learning_rate": 1, "schedule": "cosine"},
    "datasets": {"pages": {"path": "a"}, "pairs": {"path": "b", "weight": 0.5}},
    "new_tokens": ["<EOC>", "<image>"],
    "betas": [0, 0.5],
    "seed": 7,
    "vision": {"patches": [2, 3]},
    "until": {"warmup_steps": 1},
    "scale": 2,
    "resume": False,
    "extra": {"free": [1]},
}


def test_every_kind_of_field_converts():
    got = from_dict(Train, FULL)
    assert got == Train(
        steps=3,
        optimizer=Optimizer(1.0, "cosine"),
        datasets={"pages": Dataset("a"), "pairs": Dataset("b", 0.5)},
        new_tokens=("<EOC>", "<image>"),
        betas=(0.0, 0.5),
        seed=7,
        vision=Grid((2, 3)),
        until=Optimizer(warmup_steps=1),
        scale=2,
        resume=False,
        extra={"free": [1]},
    )
    assert isinstance(got.optimizer.learning_rate, float)  # an int is accepted as a float
    assert isinstance(got.scale, int)  # int | float keeps the type


def test_missing_fields_keep_their_defaults():
    assert from_dict(Train, {"steps": 1}) == Train(steps=1)


def test_an_instance_is_taken_as_it_is():
    optimizer = Optimizer(0.5)
    assert from_dict(Train, {"steps": 1, "optimizer": optimizer}).optimizer is optimizer


def test_round_trip_through_json():
    train = from_dict(Train, FULL)
    assert from_dict(Train, json.loads(json.dumps(to_dict(train)))) == train


def test_config_dict_with_references_and_tuples():
    raw = ml_collections.ConfigDict(
        {"steps": 4, "optimizer": {"learning_rate": 0.5}, "new_tokens": ("<EOC>",)}
    )
    raw.optimizer.warmup_steps = raw.get_ref("steps")
    raw.steps = 5  # like an override on the command line
    got = from_dict(Train, raw)
    assert got == Train(steps=5, optimizer=Optimizer(0.5, warmup_steps=5))


@pytest.mark.parametrize(
    "data, message",
    [
        (
            {"steps": 1, "optimizer": {"learning_rat": 1.0}},
            "config.optimizer.learning_rat: did you mean 'learning_rate'",
        ),
        (
            {"steps": 1, "learning_rate": 1.0},
            "config.learning_rate: did you mean 'optimizer.learning_rate'",
        ),
        ({"steps": 1, "zzz": 1.0}, "config.zzz; Train has steps, optimizer"),
        ({}, "config.steps is missing; expected int"),
        ({"steps": "3"}, "config.steps is '3' (str); expected int"),
        ({"steps": 3.0}, "config.steps is 3.0 (float); expected int"),
        ({"steps": True}, "config.steps is True (bool); expected int"),
        ({"steps": 1, "resume": 1}, "config.resume is 1 (int); expected bool"),
        ({"steps": 1, "seed": "x"}, "config.seed is 'x' (str); expected int"),
        (
            {"steps": 1, "optimizer": {"learning_rate": float("nan")}},
            "config.optimizer.learning_rate is nan",
        ),
        (
            {"steps": 1, "optimizer": {"learning_rate": None}},
            "learning_rate is None (NoneType); expected float",
        ),
        (
            {"steps": 1, "optimizer": {"schedule": "cosin"}},
            "expected one of 'constant', 'cosine': did you mean 'cosine'",
        ),
        (
            {"steps": 1, "optimizer": 3},
            "config.optimizer is 3 (int); expected a dict of the fields of Optimizer",
        ),
        (
            {"steps": 1, "datasets": {"pages": {"weight": 1.0}}},
            "config.datasets.pages.path is missing",
        ),
        ({"steps": 1, "datasets": {1: {"path": "a"}}}, "config.datasets has the key 1"),
        (
            {"steps": 1, "new_tokens": "<EOC>"},
            "config.new_tokens is '<EOC>' (str); expected tuple[str, ...]",
        ),
        ({"steps": 1, "new_tokens": ["a", 2]}, "config.new_tokens[1] is 2 (int); expected str"),
        ({"steps": 1, "betas": [0.1]}, "of length 1; expected tuple[float, float]"),
        ({"steps": 1, "vision": {"widht": 1}}, "did you mean 'width'"),
        (
            {"steps": 1, "optimizer": {"warmup_steps": -1}},
            "config.optimizer (Optimizer): warmup_steps is -1; expected",
        ),
    ],
)
def test_a_misfit_names_path_got_and_expected(data, message):
    with pytest.raises(ConfigError) as error:
        from_dict(Train, data)
    assert message in str(error.value)


def test_where_is_the_start_of_the_path():
    with pytest.raises(ConfigError, match=r"model\.json\.wdth"):
        from_dict(Small, {"wdth": 1}, where="model.json")


def test_a_field_type_that_a_config_cannot_hold():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        shape: list[int]  # a list is mutable: use a tuple

    fields.hints_of.cache_clear()
    with pytest.raises(ConfigError, match="which a config cannot hold"):
        from_dict(Odd, {"shape": [1]})


def test_to_dict_refuses_what_json_cannot_hold():
    with pytest.raises(ConfigError, match=r"config\.extra is .*object"):
        to_dict(Train(steps=1, extra=object()))
    with pytest.raises(ConfigError, match="expected a dataclass instance"):
        to_dict(Train)


def test_differences_name_the_dotted_path():
    old = to_dict(from_dict(Train, FULL))
    new = to_dict(
        dataclasses.replace(
            from_dict(Train, FULL),
            optimizer=Optimizer(0.5, "cosine"),
            new_tokens=("<EOC>",),
            datasets={},
            until=None,
        )
    )
    assert differences(old, old) == []
    assert differences(old, new) == [
        "optimizer.learning_rate: 1.0 -> 0.5",
        "datasets.pages.path: 'a' -> absent",
        "datasets.pages.weight: 1.0 -> absent",
        "datasets.pairs.path: 'b' -> absent",
        "datasets.pairs.weight: 0.5 -> absent",
        "new_tokens: ['<EOC>', '<image>'] -> ['<EOC>']",
        "until.learning_rate: 0.001 -> absent",
        "until.schedule: 'constant' -> absent",
        "until.warmup_steps: 1 -> absent",
        "datasets: absent -> {}",
        "until: absent -> None",
    ]


def test_lists_and_tuples_do_not_differ():
    assert differences({"a": (1, (2, 3))}, {"a": [1, [2, 3]]}) == []


def test_editable_comes_back():
    full = from_dict(Train, {**FULL, "extra": None})
    assert from_dict(Train, editable(full)) == full
    assert from_dict(Train, editable(Train(steps=1))) == Train(steps=1)


def test_editable_takes_only_fields_and_values_of_their_types():
    edited = editable(from_dict(Train, {**FULL, "seed": None}))
    edited.datasets.pages.weight = 2
    edited.seed = 3
    assert (edited.datasets.pages.weight, edited.seed) == (2.0, 3)
    for part, name, value in (
        (edited, "seed", "three"),
        (edited.datasets.pages, "path", 1),
        (edited, "steps", "1"),
    ):
        with pytest.raises(TypeError, match=name):
            part[name] = value
    edited.seed = None
    assert from_dict(Train, edited).seed is None
    for part in (edited, edited.optimizer, edited.datasets, edited.datasets.pages):
        with pytest.raises((AttributeError, KeyError), match="nonsense"):
            part.nonsense = 1


def test_editable_takes_a_dict_of_dataclasses():
    assert editable({"a": Dataset("p"), "b": Dataset("q", 0.5)}).to_dict() == {
        "a": {"path": "p", "weight": 1.0},
        "b": {"path": "q", "weight": 0.5},
    }

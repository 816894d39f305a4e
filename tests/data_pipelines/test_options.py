"""Flags from dataclasses: types, help, and what is refused."""

import dataclasses

import pytest
from absl import flags

from data_pipelines.options import Options, attributes


@dataclasses.dataclass(frozen=True)
class Fruit:
    """Fruit.

    Attributes:
      weight: in grams,
        without the stone.
      red, green: how much of either.
      kinds: which.
    """

    weight_x: int = 3
    red_x: float = 0.5
    kinds_x: tuple[str, ...] = ("plum",)
    ripe_x: bool = False
    name_x: str = ""


@dataclasses.dataclass(frozen=True)
class Nut:
    """Nut."""

    weight_x: int = 1
    shell_x: str = "hard"


@dataclasses.dataclass(frozen=True)
class Shared:
    """Shared."""

    speed_x: int = 9


@pytest.fixture(scope="module")
def options():
    return Options({"fruit": Fruit, "nut": Nut}, Shared)


def read(options, pipeline, *arguments):
    values = flags.FlagValues()
    for name in ("weight_x", "red_x", "kinds_x", "ripe_x", "name_x", "shell_x", "speed_x"):
        values[name] = flags.FLAGS[name]
    for name in values:
        values[name].unparse()
    values(["program", *arguments])
    return options.read(pipeline, values)


def test_flags_become_the_fields(options):
    given = ("--weight_x=5", "--kinds_x=a,b", "--ripe_x", "--red_x=0.25", "--name_x=x")
    fruit, shared = read(options, "fruit", *given, "--speed_x=2")
    assert fruit == Fruit(5, 0.25, ("a", "b"), True, "x")  # noqa: FBT003
    assert shared == Shared(2)


def test_what_is_not_given_keeps_its_default(options):
    assert read(options, "nut") == (Nut(), Shared())


def test_a_flag_of_another_pipeline_is_refused(options):
    message = "--shell_x: pipeline 'fruit' has no such option; it has --weight_x"
    with pytest.raises(ValueError, match=message):
        read(options, "fruit", "--shell_x=soft")


def test_help_is_the_docstring():
    assert attributes(Fruit) == {
        "weight": "in grams, without the stone.",
        "red": "how much of either.",
        "green": "how much of either.",
        "kinds": "which.",
    }


def test_one_name_has_one_type():
    other = dataclasses.make_dataclass("Other", [("weight_x", str, "")])
    with pytest.raises(TypeError, match="--weight_x is a int elsewhere"):
        Options({"fruit": Fruit, "other": other}, Shared)


def test_a_field_of_a_type_without_a_flag_is_a_mistake():
    other = dataclasses.make_dataclass("Other", [("weights_y", dict, None)])
    with pytest.raises(TypeError, match=r"a flag takes one of str, int"):
        Options({"other": other}, Shared)

"""--config.a.b=TEXT: every field takes every value of its type; anything else is one clear line."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

import pytest
from absl import flags
from ml_collections import config_dict

from flamingo_jax.core import config_files, overrides
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.fields import arms_of, hints_of, is_dict, is_section
from flamingo_jax.core.overrides import Override
from flamingo_jax.core.texts import value_of
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.training.config import TrainConfig

CONFIGS = {
    "tiny:flamingo": TrainConfig,
    "tiny:contrastive": TrainConfig,
    "flamingo_80b": TrainConfig,
    "open_flamingo_3b": TrainConfig,  # its encoder is a ViT
    "finetune:vqav2": TrainConfig,
    "ablations.contrastive_data": TrainConfig,
    "evaluate": EvaluateConfig,
    "evaluate:contrastive": EvaluateConfig,
}


def fields_of(hint: Any, held: Any, prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Yields (dotted name, type) of every field, also below sections that are None or absent."""
    for arm in arms_of(hint):
        if is_section(arm):
            for name, inner in hints_of(arm).items():
                yield prefix + name, inner
                below = held.get(name) if isinstance(held, config_dict.ConfigDict) else None
                yield from fields_of(inner, below, f"{prefix}{name}.")
        elif is_dict(arm):
            inner = typing.get_args(arm)[1]
            for name in [*(held or ()), "brand-new"]:
                yield prefix + name, inner
                yield from fields_of(inner, held.get(name) if held else None, f"{prefix}{name}.")


def texts_of(hint: Any) -> dict[str, Any]:
    """Returns {text: value}: what a field of a type takes."""
    found: dict[str, Any] = {}
    optional = type(None) in arms_of(hint)
    for arm in arms_of(hint):
        origin, inner = typing.get_origin(arm), typing.get_args(arm)
        if arm is bool:
            found |= {"True": True, "true": True, "yes": True, "on": True, "1": True}
            found |= {"False": False, "false": False, "no": False, "off": False, "0": False}
        elif arm is int:
            found |= {"3": 3, "-1": -1, "1_000": 1000, "1e3": 1000, "0": 0, "0x10": 16}
        elif arm is float:
            found |= {"2": 2.0, "0.25": 0.25, "1e-3": 0.001, "-0.5": -0.5, "inf": math.inf}
        elif arm is str:
            found |= {text: text for text in ("abc", "a,b", "a=b", " a b ", "it's", '"q"', "é火")}
            found |= {"": "", "3": "3", "True": "True", "('x',)": "('x',)", "gs://b/c": "gs://b/c"}
            found |= {"'None'": "None", "None": None} if optional else {"None": "None"}
        elif origin is Literal:
            found |= {str(choice): choice for choice in inner}
        elif origin is tuple and inner[1:] == (Ellipsis,) and inner[0] is str:
            found |= dict.fromkeys(("('x',)", "x", "x,", "(x)", "[x]", '"x"', "x ,"), ("x",))
            found |= dict.fromkeys(("x,y", "('x', 'y')", "[x,y]", "x, y"), ("x", "y"))
            found |= {"()": (), "[]": (), "": (), "('a,b', c)": ("a,b", "c"), "1e3,2": ("1e3", "2")}
        elif origin is tuple and inner[1:] == (Ellipsis,) and inner[0] in (int, float):
            found |= dict.fromkeys(("4", "(4,)", "[4]", "4,", "(4)"), (inner[0](4),))
            found |= dict.fromkeys(("4,5", "(4, 5)", "[4,5]", "4, 5,"), (inner[0](4), inner[0](5)))
            found |= {"()": (), "-1,1e3": (inner[0](-1), inner[0](1000))}
        elif origin is tuple and inner[1:] == (Ellipsis,):
            for text, value in texts_of(inner[0]).items():
                found |= {text: (value,), f"({text!r},)": (value,), f"{text},{text}": (value,) * 2}
        elif origin is tuple:
            value = tuple(of(i) for i, of in enumerate(inner))
            found |= dict.fromkeys((str(value), str(list(value)), str(value)[1:-1]), value)
    return found | ({"None": None, "none": None} if optional else {})


WRONG = {
    bool: ("2", "maybe", ""),
    int: ("x", "1.5", "inf", "nan", "1e400", "", "3 4", "True"),
    float: ("x", "1,5", "", "1e400"),
    tuple: ("x,,y", "None"),
}


def wrong_texts_of(hint: Any) -> tuple[str, ...]:
    """Returns texts that no type of a field takes."""
    arms = [arm for arm in arms_of(hint) if arm is not type(None)]
    if len(arms) > 1 or arms[0] is str:
        return ()
    if typing.get_origin(arms[0]) is Literal:
        return ("nonsense", "")
    if is_section(arms[0]):
        return ("3", "abc", "")
    return WRONG.get(typing.get_origin(arms[0]) or arms[0], ())


def held_by(config: config_dict.ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_takes_every_value_of_its_type(name):
    of, config = CONFIGS[name], config_files.load(name)
    number = 0
    for path, hint in fields_of(of, config):
        for text, value in texts_of(hint).items():
            overrides.apply(of, config, [Override(path, text)])
            got = None if value is None and path.endswith("new") else held_by(config, path)
            assert (got, type(got)) == (value, type(value)), f"--config.{path}={text}"
            number += 1
    assert number > 500


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_refuses_other_values_in_one_line(name):
    of, config = CONFIGS[name], config_files.load(name)
    for path, hint in fields_of(of, config):
        for text in wrong_texts_of(hint):
            with pytest.raises(ConfigError) as error:
                overrides.apply(of, config, [Override(path, text)])
            message = str(error.value)
            assert message.startswith(f"config.{path} is {text!r}; expected ") or (
                message.startswith(f"config.{path}[") and "; expected " in message
            )
            assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_every_section_can_be_none_and_come_back(name):
    """None where there may be none; a field of a section that is None makes it, with defaults."""
    of = CONFIGS[name]
    for path, hint in fields_of(of, config_files.load(name)):
        sections = [arm for arm in arms_of(hint) if is_section(arm)]
        if not sections or "new" in path:
            continue
        config = config_files.load(name) if "datasets" in path else config_dict.ConfigDict()
        overrides.apply(of, config, [Override(path, "None")])
        parent, _, last = path.rpartition(".")
        holder = held_by(config, parent) if parent else config
        assert holder.get(last) is None
        field = next(iter(hints_of(sections[0])))
        text = next(iter(texts_of(hints_of(sections[0])[field])), "None")
        overrides.apply(of, config, [Override(f"{path}.{field}", text)])
        assert field in held_by(config, path)


def read(*words: str, config: str = "tiny:flamingo") -> TrainConfig:
    rest, found = overrides.split(words)
    assert not rest
    return config_files.read(CONFIGS[config], config, found)


def test_sections_from_none_and_back():
    assert read().until is None
    assert read("--config.until.every=5").until.every == 5
    assert read("--config.until.every=5").until.probe == "lm_lookup"  # its default
    assert read("--config.until.every=5", "--config.until=None").until is None
    assert read("--config.until={'every': 5}", "--config.until.below=2").until.below == 2.0
    vit = read(
        "--config.model.vision=None",
        "--config.model.vit.patch_size=16",
        "--config.model.vit.image_size=32",
        "--config.data.image_size=32",
    ).model
    assert (vit.vision, vit.vit.patch_size, vit.vit.num_layers) == (None, 16, 24)


def test_datasets_are_added_and_removed():
    new = "--config.data.datasets.more"
    fields = f"{new}.kind=text {new}.path=/d {new}.batch_size=4 {new}.length=8".split()
    datasets = read(*fields).data.datasets
    assert list(datasets) == ["more", "pages", "pairs"] and datasets["more"].split == "train"
    assert list(read("--config.data.datasets.pages=None").data.datasets) == ["pairs"]
    data = read("--config.data.coco=/c", "--config.data.world=None", config="evaluate").data
    assert (data["coco"], data["world"]) == ("/c", None)


def test_a_config_that_leaves_out_fields_takes_them(tmp_path):
    """A user's file has what it needs only; a section may be a dataclass or a dict there."""
    (tmp_path / "mine.py").write_text(
        "from configs import tiny\n"
        "from ml_collections import ConfigDict\n"
        "from flamingo_jax.core.config import from_dict, to_dict\n"
        "from flamingo_jax.training.config import TrainConfig\n"
        "def get_config():\n"
        "    whole = from_dict(TrainConfig, tiny.get_config())\n"
        "    config = ConfigDict({'stage': 'flamingo', 'steps': 3, 'model': to_dict(whole.model),\n"
        "                         'data': to_dict(whole.data), 'hooks': whole.hooks})\n"
        "    config.seed = config.get_ref('steps')\n"
        "    return config\n"
    )
    words = ["hooks.log_every=10", "optimizer.vision.agc=None", "optimizer.b2=0.9", "steps=9"]
    found = [Override(*word.split("=")) for word in words]
    config = config_files.read(TrainConfig, str(tmp_path / "mine.py"), found)
    assert (config.hooks.log_every, config.optimizer.b2, config.optimizer.b1) == (10, 0.9, 0.9)
    assert (config.steps, config.seed) == (9, 9)  # a reference follows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer.learning_rte=1", "config.optimizer.learning_rte: did you mean 'learning_rate'"),
        ("learning_rate=1", "config.learning_rate: did you mean 'config.optimizer.learning_rate'"),
        ("data.vqav2=/d", "config.data.vqav2: did you mean 'config.evaluate.data.vqav2'?"),
        ("seed.x=1", "Unknown field config.seed.x: config.seed is int."),
        ("data.datasets.txt.path=3", "txt.kind is missing; expected one of 'interleaved'"),
        ("data.datasets.pair.weight=3", "pair.kind is missing: did you mean 'pairs', not 'pair'?"),
        ("data.datasets.txt=None", "txt is not there to remove: .* has pages, pairs"),
        ("optimizer=None", r"config.optimizer is None \(NoneType\); expected a dict of the fields"),
        ("optimizer.schedule=cosin", "is 'cosin'; expected one of .*: did you mean 'cosine'?"),
        ("seed", "--config.seed has no value; expected int, as in --config.seed=VALUE"),
        ("unfrozen=None", r"config.unfrozen is 'None'; expected tuple.* \(\) is the empty one"),
        (".seed=1", "Unknown field config.;"),
        ("steps=_1", "config.steps is '_1'; expected int"),
        ("data.datasets={'a': 1}", r"datasets.a is 1 \(int\); .* the fields of DatasetConfig"),
        ("data.datasets={'a': None}", "datasets.a is None .* the fields of DatasetConfig"),
        (
            "data.datasets=3",
            "is '3'; expected one of its fields, as in --.*datasets.NAME.kind=V",
        ),
        (
            "until=3",
            "expected one of its fields, as in --config.until.probe=VALUE: probe, metric",
        ),
        ("precision=bfloat16", "expected one of its fields, as in --config.precision.*: .*compute"),
        ("STEPS=3", "config.STEPS: did you mean 'steps'"),
        ("optimizer.Learning_Rate=3", "did you mean 'learning_rate'"),
        ("evaluate.data=3", r"is '3'; expected dict\[str, str \| None\]"),
        ("seed =1", "Unknown field config.seed : did you mean 'seed'"),
    ],
)
def test_a_wrong_field_is_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(f"--config.{words}")
    assert len(str(error.value).splitlines()) == 1


def test_the_words_of_a_command_line():
    """Two words, negative numbers, a flag alone; the order; words that are no fields stay."""
    rest, found = overrides.split(
        [
            *("prog", "--config.steps=3", "--config", "a.py", "--config.seed", "-1", "-v"),
            *("--config.x", "-inf", "-config.name", "a=b", "--config.b.c=d=e", "--noconfig.on"),
            *("--config.flag", "--workdir=w", "--config.e=", "--config.last", "--", "--config.f=1"),
        ]
    )
    assert rest == ["prog", "--config", "a.py", "-v", "--workdir=w", "--", "--config.f=1"]
    assert [(each.path, each.text) for each in found] == [
        *(("steps", "3"), ("seed", "-1"), ("x", "-inf"), ("name", "a=b"), ("b.c", "d=e")),
        *(("on", "False"), ("flag", None), ("e", ""), ("last", None)),
    ]


def test_a_flag_alone_and_the_last_of_two():
    assert not read("--config.hooks.progress=false").hooks.progress
    assert read("--config.hooks.progress=false", "--config.hooks.progress").hooks.progress
    assert read("--config.steps=3", "--config.steps=4").steps == 4
    shots = read("--config.evaluate.shots=1,2", "--config.evaluate.shots=4").evaluate.shots
    assert shots == (4,)


def test_flag_files(tmp_path):
    """Comments, quotes, spaces, one file in another; the place in the command line counts."""
    (tmp_path / "more").write_text("--config.steps=5\n")
    (tmp_path / "flags").write_text(
        '# a comment\n  # and another\n// a third\n\n--config.name = "a b"\n--config.seed -1\n'
        f"--flagfile={tmp_path}/more\n--workdir='w x'\n--config.evaluate.tasks=('a', 'b')\n"
        "--config.towers.lm=it's\n--config.hooks.progress\n"
    )
    words = overrides.with_flag_files(
        ["p", "--config.steps=1", f"--flagfile={tmp_path}/flags", "--config.steps=2"],
        flags.FLAGS.read_flags_from_files,
    )
    assert words == [
        *("p", "--config.steps=1", "--config.name=a b", "--config.seed=-1", "--config.steps=5"),
        *("--workdir=w x", "--config.evaluate.tasks=('a', 'b')", "--config.towers.lm=it's"),
        *("--config.hooks.progress", "--config.steps=2"),
    ]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "bytes"):
        with pytest.raises(SystemExit, match=f"--flagfile={tmp_path}/{name} cannot be read"):
            overrides.with_flag_files(
                [f"--flagfile={tmp_path}/{name}"], flags.FLAGS.read_flags_from_files
            )


@dataclasses.dataclass(frozen=True)
class Odd:
    """Types that no config of ours has yet."""

    number: int | float = 0
    word: int | str | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    level: Literal[1, 2] = 1
    free: Any = None
    table: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("number", "3", 3), ("number", "3.5", 3.5), ("number", "1e3", 1000)),
        *(("word", "3", 3), ("word", "x", "x"), ("word", "None", None), ("word", "'None'", "None")),
        *(("pairs", "(1,2),(3,4)", ((1, 2), (3, 4))), ("pairs", "[[1,2]]", ((1, 2),))),
        *(("level", "2", 2), ("free", "[1]", [1]), ("free", "a b", "a b"), ("free", "None", None)),
        ("table", '{"a": {"b": 1}}', {"a": {"b": 1}}),
        ("table.a.b", "1", {"a": {"b": 1}}),
    ],
)
def test_other_types(name, text, value):
    config = config_dict.ConfigDict()
    overrides.apply(Odd, config, [Override(name, text)])
    got = getattr(from_dict(Odd, config), name.partition(".")[0])
    assert (got, type(got)) == (value, type(value))


def test_long_and_hostile_texts_are_one_short_line():
    for text in ("(" * 10_000, "9" * 5_000, "1e999999999", "{" * 500, "\\x", "1_", "1if"):
        with pytest.raises(ConfigError) as error:
            value_of(int, text, "config.seed")
        assert len(str(error.value)) < 300
    with pytest.raises(ConfigError, match="expected float"):
        value_of(float, "1e999", "config.weight")

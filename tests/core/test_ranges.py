"""Every number of every config takes what makes sense; anything else is one clear line."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from typing import Any

import numpy as np
import pytest

from flamingo_jax.core import config_files, ranges
from flamingo_jax.core.config import ConfigError, FieldError, from_dict
from flamingo_jax.core.fields import arms_of, hints_of, is_section
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.training.config import TrainConfig

# Together they have every section of the schema: all parts of the model, a ViT, a probe.
CONFIGS = {
    "tiny:language_model": TrainConfig,
    "open_flamingo_3b": TrainConfig,
    "evaluate:paper": EvaluateConfig,
}
TRIED = {
    int: {"negative": -2, "zero": 0, "huge": 10**30},
    float: {"negative": -2.0, "zero": 0.0, "huge": 1e30, "infinite": math.inf, "nan": math.nan},
}
# The fields that take such a number. Infinity and NaN are taken nowhere.
TAKES = {
    "negative": "alpha below mean skip_init",
    "zero": """alpha b1 b2 below brightness chunk contrast decay_steps evaluate.every final_fraction
        flip grafted_layers head_dim hue label_smoothing latents_megabytes length_penalty
        max_corrupt mean mlp_width n num_heads num_kv_heads num_samples num_time_embeddings
        global_every local_rotary_base logit_cap registers score_cap score_size
        num_threads offset original_length p_next prefix_megabytes qkv_conv_width saturation
        save_every seed shots skip_init sliding_window stuck_seconds space_prefix
        stochastic_depth text_examples token_types until.every vocab_size warmup_steps weight
        weight_decay xattn_chunk""",
    "huge": "below clip_norm learning_rate",
}


def numbers_of(hint: Any, held: Any, path: tuple[str, ...] = ()) -> typing.Iterator[tuple]:
    """Yields (path, int or float, whether it is in a tuple) of every number of a config."""
    for arm in arms_of(hint):
        inner = typing.get_args(arm)
        if is_section(arm) and held is not None:
            for name, field in hints_of(arm).items():
                yield from numbers_of(field, held[name], (*path, name))
        elif isinstance(held, dict) and inner and is_section(inner[1]):
            for name, value in held.items():
                yield from numbers_of(inner[1], value, (*path, name))
        elif arm in (int, float):
            yield path, arm, 0
        elif typing.get_origin(arm) is tuple and inner[0] in (int, float):
            yield path, inner[0], 1 if inner[1:] == (Ellipsis,) else len(inner)


def with_value(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    return data | {name: with_value(data[name], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_has_its_range(name):
    of, data = CONFIGS[name], config_files.load(name).to_dict()
    found = list(numbers_of(of, data))
    assert len(found) > 20
    for path, kind, items in found:
        for what, number in TRIED[kind].items():
            value = (number,) * items if items else number
            takes = re.split(r"\s+", TAKES.get(what, ""))
            is_taken = path[-1] in takes or ".".join(path[-2:]) in takes
            place = f"config.{'.'.join(path)}"
            try:
                from_dict(of, with_value(data, path, value))
            except ConfigError as error:
                message = str(error)
                assert path[-1] in message and len(message.splitlines()) == 1, message
                if not is_taken:  # else it may be refused for another reason
                    assert re.match(rf"{re.escape(place)}(\[0\])? is .*; expected ", message) or (
                        what == "nan" and message.startswith(place)
                    )
            else:
                assert is_taken, f"{place} takes {number!r}"


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (ranges.whole(1), "a whole number from 1 to 2147483647"),
        (ranges.whole(1, also=(-1, "all")), "a whole number from 1 to 2147483647, or -1 for all"),
        (ranges.SHARE, "a number from 0 to 1"),
        (ranges.SHARE_BELOW_ONE, "a number of at least 0 and below 1"),
        (ranges.POSITIVE, "a number above 0 and at most 1000000"),
        (ranges.Range(0, above=True), "a number above 0"),
        (ranges.Range(), "a finite number"),
    ],
)
def test_a_range_in_words(of, words):
    assert str(of) == words


def test_what_is_in_a_range():
    assert all(ranges.whole(1).holds(value) for value in (1, 2**31 - 1, np.int64(3)))
    others = (0, 1.0, "1", None, True, 10**400, math.nan, [1])
    assert not any(ranges.whole(1).holds(value) for value in others)
    assert all(ranges.SHARE.holds(value) for value in (0, 1, 0.5, np.float32(1)))
    assert not any(ranges.SHARE.holds(value) for value in (-1e-9, 1.1, math.nan, "a", False))
    assert ranges.whole(1, also=(-1, "all")).holds(-1)


@dataclasses.dataclass(frozen=True)
class Sizes:
    rows: int = 1
    most: int | None = None
    widths: tuple[int, ...] = (1,)

    def __post_init__(self):
        ranges.check(self, ranges.whole(1), "rows", "most", "widths")


def test_a_field_out_of_its_range_is_named():
    Sizes(widths=())
    for wrong, message in (
        ({"rows": 0}, "rows is 0; expected a whole number from 1 to 2147483647."),
        ({"rows": None}, "rows is None; expected"),
        ({"most": 0}, "most is 0; expected a whole number from 1 to 2147483647, or None."),
        ({"widths": (1, -1)}, r"widths\[1\] is -1; expected"),
        ({"widths": "a"}, "widths is 'a'; expected"),
    ):
        with pytest.raises(FieldError, match=message):
            Sizes(**wrong)
    with pytest.raises(ConfigError, match=r"^config\.sizes\.rows is 0; expected"):
        from_dict(Sizes, {"rows": 0}, "config.sizes")

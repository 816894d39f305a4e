"""The ablations of Flamingo-3B as data (paper, Tables 3 and 10).

The values are as printed: 4 shots on validation queries. A misprint keeps its printed value, and
`correction` says which value is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

DEV = ("coco", "okvqa", "vqav2", "msvdqa", "vatex")  # in the order of the tables' columns
SHOTS = 4
Number: TypeAlias = Literal[3, 10]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One row of Table 3 or 10.

    Attributes:
        row: its name in configs/ablations/flamingo_3b.py.
        table: number of the table; 3 for the base model, which is in both.
        number: number of the row in its table, such as "(iii)"; "" for the base model.
        setting: what is changed.
        value: what it is changed to.
        parameters: billions of weights.
        step_seconds: time of the updates on all datasets, on TPUs that the paper does not count.
        is_on_more_chips: True if the run had 4 times as many chips, and its time is multiplied by
            4 (printed with a star).
        scores: benchmark -> value in percent, or 100 times CIDEr.
        overall: the score over the five benchmarks; see `published.overall`.
        correction: a misprint and the right value; "" if there is none.
    """

    row: str
    table: Number
    number: str
    setting: str
    value: str
    parameters: float
    step_seconds: float
    is_on_more_chips: bool
    scores: Mapping[str, float]
    overall: float
    correction: str = ""

    @property
    def label(self) -> str:
        """Number, setting and value, such as "(iii) tanh gating: no"."""
        return " ".join(filter(None, (self.number, f"{self.setting}: {self.value}")))

    @property
    def step_time(self) -> str:
        """The time as printed, such as "4.70 s*"."""
        return f"{self.step_seconds:.2f} s{'*' if self.is_on_more_chips else ''}"


# Table 3: number of the row -> what it changes; then the rows: name, number, value, billions of
# weights, seconds of a step, the scores on DEV, the overall score.
_SETTINGS_3 = {
    "": "Flamingo-3B",
    "(i)": "training data",
    "(ii)": "optimisation",
    "(iii)": "tanh gating",
    "(iv)": "cross-attention architecture",
    "(v)": "cross-attention frequency",
    "(vi)": "resampler",
    "(vii)": "vision encoder",
    "(viii)": "freezing the LM",
}
_TABLE_3 = (
    ("base", "", "short training", 3.2, 1.74, 86.5, 42.1, 55.8, 36.3, 53.4, 70.7),
    ("no_vtp", "(i)", "without video-text pairs", 3.2, 1.42, 84.2, 43.0, 53.9, 34.5, 46.0, 67.3),
    ("no_pairs", "(i)", "without image-text pairs", 3.2, 0.95, 66.3, 39.2, 51.6, 32.0, 41.6, 60.9),
    ("laion", "(i)", "LAION for image-text pairs", 3.2, 1.74, 79.5, 41.4, 53.5, 33.9, 47.6, 66.4),
    ("no_m3w", "(i)", "without M3W", 3.2, 1.02, 54.1, 36.5, 52.7, 31.4, 23.5, 53.4),
    ("round_robin", "(ii)", "round robin", 3.2, 1.68, 76.1, 39.8, 52.1, 33.2, 40.8, 62.9),
    ("no_gate", "(iii)", "no", 3.2, 1.74, 78.4, 40.5, 52.9, 35.9, 47.5, 66.5),
    ("vanilla", "(iv)", "vanilla", 2.4, 1.16, 80.6, 41.5, 53.4, 32.9, 50.7, 66.9),
    ("grafting", "(iv)", "grafting", 3.3, 1.74, 79.2, 36.1, 50.8, 32.2, 47.8, 63.1),
    ("one_layer", "(v)", "single in the middle", 2.0, 0.87, 71.5, 38.1, 50.2, 29.1, 42.3, 59.8),
    ("every_4th", "(v)", "every 4th", 2.3, 1.02, 82.3, 42.7, 55.1, 34.6, 50.8, 68.8),
    ("every_2nd", "(v)", "every 2nd", 2.6, 1.24, 83.7, 41.0, 55.8, 34.5, 49.7, 68.2),
    ("mlp", "(vi)", "MLP", 3.2, 1.85, 78.6, 42.2, 54.7, 35.2, 44.7, 66.6),
    ("transformer", "(vi)", "Transformer", 3.2, 1.81, 83.2, 41.7, 55.6, 31.5, 48.3, 66.7),
    ("clip", "(vii)", "CLIP ViT-L/14", 3.1, 1.58, 76.5, 41.6, 53.4, 33.2, 44.5, 64.9),
    ("nfnet_f0", "(vii)", "NFNet-F0", 2.9, 1.45, 73.8, 40.5, 52.8, 31.1, 42.9, 62.7),
    ("lm_random", "(viii)", "no, random weights", 3.2, 2.42, 74.8, 31.5, 45.6, 26.9, 50.1, 57.8),
    ("lm_trained", "(viii)", "no, pretrained", 3.2, 2.42, 81.2, 33.7, 47.4, 31.0, 53.9, 62.7),
)

# Table 10, likewise; its first row is the base model of Table 3.
_SETTINGS_10 = {
    "(i)": "resampler size",
    "(ii)": "images attended to",
    "(iii)": "p_next",
    "(iv)": "LM pretraining",
    "(v)": "freezing the vision encoder",
    "(vi)": "co-training the LM on MassiveText",
    "(vii)": "data and encoder",
}
_TABLE_10 = (
    ("resampler_small", "(i)", "small", 3.1, 1.58, 81.1, 40.4, 54.1, 36.0, 50.2, 67.9),
    ("resampler_large", "(i)", "large", 3.4, 1.87, 84.4, 42.2, 54.4, 35.1, 51.4, 69.0),
    ("all_images", "(ii)", "all previous", 3.2, 1.74, 70.0, 40.9, 52.0, 32.1, 46.8, 63.5),
    ("p_next_0", "(iii)", "0", 3.2, 1.74, 85.0, 41.6, 55.2, 36.7, 50.6, 69.6),
    ("p_next_1", "(iii)", "1", 3.2, 1.74, 81.3, 43.3, 55.6, 36.8, 52.7, 70.4),
    ("lm_c4", "(iv)", "C4", 3.2, 1.74, 81.3, 34.4, 47.1, 60.6, 53.9, 62.8),
    ("vision_random", "(v)", "no, random weights", 3.2, 4.70, 74.5, 41.6, 52.7, 31.4, 35.8, 61.4),
    ("vision_trained", "(v)", "no, pretrained", 3.2, 4.70, 83.5, 40.6, 55.1, 34.6, 50.7, 68.1),
    ("text_random", "(vi)", "random weights", 3.2, 5.34, 69.3, 29.9, 46.1, 28.1, 45.5, 55.9),
    ("text_trained", "(vi)", "pretrained", 3.2, 5.34, 83.0, 42.5, 53.3, 35.1, 51.1, 68.6),
    ("laion_clip", "(vii)", "LAION400M, CLIP", 3.1, 0.86, 61.4, 37.9, 50.9, 27.9, 29.7, 54.7),
    (
        *("m3w_laion_vtp_clip", "(vii)", "M3W, LAION400M, VTP, CLIP"),
        *(3.1, 1.58, 76.3, 41.5, 53.4, 32.5, 46.1, 64.9),
    ),
)
_ON_MORE_CHIPS = ("vision_random", "vision_trained", "text_random", "text_trained")
_CORRECTIONS = {
    "lm_c4": "MSVDQA is 30.9, as in version 1 and by the overall score. 60.6 is the row's ImageNet "
    "value, one column too far to the right"
}


def _ablation(table: Number, cells: tuple[str | float, ...]) -> Ablation:
    row, number, value = map(str, cells[:3])
    parameters, seconds, *scores, overall = (float(cell) for cell in cells[3:])
    return Ablation(
        row=row,
        table=table,
        number=number,
        setting=(_SETTINGS_3 if table == 3 else _SETTINGS_10)[number],
        value=value,
        parameters=parameters,
        step_seconds=seconds,
        is_on_more_chips=row in _ON_MORE_CHIPS,
        scores=dict(zip(DEV, scores, strict=True)),
        overall=overall,
        correction=_CORRECTIONS.get(row, ""),
    )


# In the order of the tables, by row.
ABLATIONS: Mapping[str, Ablation] = {
    each.row: each
    for each in (
        *(_ablation(3, cells) for cells in _TABLE_3),
        *(_ablation(10, cells) for cells in _TABLE_10),
    )
}


def rows_of(table: Number) -> list[Ablation]:
    """Returns the rows of a table, the base model first."""
    return [each for each in ABLATIONS.values() if each.table == table or not each.number]

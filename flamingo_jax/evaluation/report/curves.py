"""The pictures of a report that show numbers.

They are few-shot curves, gates over training (paper, Figure 6), and losses. Tasks that differ in
one thing share a panel, by name: `bind2` and its controls `bind2_shuffled`, `bind2_hidden`,
`bind2_held_out`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from flamingo_jax.evaluation.episode import Row
from flamingo_jax.training.logs import number

Numbers = Mapping[str, Any]  # one line of metrics.jsonl

INK, FAINT, GRID = "#22303c", "#8795a1", "#e6eaee"
COLOURS = ("#c2304a", "#e08a1e", "#7a8793", "#1f7a8c", "#6a4c93", "#3a7d44", "#b56576", "#495867")
# End of a control's name -> (label, colour, line style).
CONTROLS: Mapping[str, tuple[str, str, str]] = {
    "": ("the task", COLOURS[0], "-"),
    "held_out": ("query never seen in training", COLOURS[3], "-."),
    "shuffled": ("labels shuffled", COLOURS[1], "--"),
    "hidden": ("images hidden", COLOURS[2], ":"),
}
METRIC_TITLES = {
    "exact_match": "exact match of the written answer",
    "ranking": "right answer ranked first",
}
_GATES = {"gates/attention": "cross-attention gates", "gates/dense": "feed-forward gates"}
_STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "savefig.dpi": 140,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.13,  # inches
    "figure.constrained_layout.w_pad": 0.13,
    "figure.constrained_layout.hspace": 0.02,  # of a panel
    "figure.constrained_layout.wspace": 0.02,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Applies the look of the report's pictures."""
    with mpl.rc_context(_STYLE):
        yield


def headline(figure: Figure, title: str, note: str = "") -> None:
    """Writes a title above all panels, and a note at the right end of its line."""
    text = figure.suptitle(title, size=14, weight="bold", x=0.01, ha="left")
    if note:
        place = ("axes fraction", text)  # the panel's right end, the title's height
        font: dict[str, Any] = {"size": 9, "color": FAINT, "ha": "right", "va": "baseline"}
        figure.axes[-1].annotate(note, (1, 0.2), xycoords=place, in_layout=False, **font)


def families(tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """Groups tasks with their controls: {"bind2": {"": "bind2", "hidden": "bind2_hidden"}}.

    Families, and their tasks, are in order of appearance.
    """
    groups: dict[str, dict[str, str]] = {}
    for task in dict.fromkeys(tasks):
        control = next((name for name in CONTROLS if name and task.endswith(f"_{name}")), "")
        groups.setdefault(task.removesuffix(f"_{control}") if control else task, {})[control] = task
    return groups


def few_shot_curves(rows: Sequence[Row], chance: Mapping[str, float]) -> Figure:
    """Draws values over the number of support examples: a column per family, a row per metric.

    Bands are one standard error.

    Args:
        rows: results.
        chance: task -> value for guessed answers, drawn as a line.
    """
    rows = [row for row in rows if row.metric in METRIC_TITLES]
    columns = families([row.task for row in rows])
    metrics = list(dict.fromkeys(row.metric for row in rows))
    shots = sorted({row.shots for row in rows})
    with style():
        size = (max(8.0, 3.6 * len(columns) + 0.6), 2.75 * len(metrics) + 1.3)  # inches
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(metrics), len(columns), sharex=True, sharey=True, squeeze=False)
        for number, (line, metric) in enumerate(zip(axes, metrics, strict=True)):
            for axis, (family, members) in zip(line, columns.items(), strict=True):
                values: dict[str, dict[int, Row]] = {}
                for control, task in members.items():
                    own = [row for row in rows if (row.task, row.metric) == (task, metric)]
                    if own:
                        values[control] = {row.shots: row for row in own}
                _curves(axis, values, shots)
                if (guess := chance.get(members.get("", family))) is not None:
                    last = [row.value for own in values.values() for row in _last(own, shots)]
                    _guessing(axis, guess, last)
                if number == 0:
                    axis.set_title(family, pad=14)
                if number == len(metrics) - 1:
                    axis.set_xlabel("support examples")
            line[0].set_ylabel(METRIC_TITLES.get(metric, metric.replace("_", " ")))
        lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        labels = [label for label, _, _ in CONTROLS.values() if label in lines]
        headline(figure, "Learning from a few examples in the prompt", _origin(rows))
        figure.legend(
            [lines[label] for label in labels],
            labels,
            loc="outside lower left",
            ncols=len(labels),
            handlelength=2.6,
        )
    return figure


def _curves(axis: Any, values: Mapping[str, Mapping[int, Row]], shots: Sequence[int]) -> None:
    """Draws one panel; the numbers of shots are at equal distances."""
    # the task itself is drawn last, above its controls
    for control in sorted(values, key=lambda name: -list(CONTROLS).index(name)):
        label, colour, line = CONTROLS[control]
        points = [
            (place, values[control][number])
            for place, number in enumerate(shots)
            if number in values[control]
        ]
        x, y = np.array([place for place, _ in points]), np.array([row.value for _, row in points])
        error = np.sqrt(y * (1 - y) / np.array([row.n for _, row in points]))
        main = not control
        axis.fill_between(
            x, y - error, y + error, color=colour, alpha=0.18 if main else 0.10, linewidth=0
        )
        widths = {"linewidth": 2.6 if main else 1.6, "markersize": 5.5 if main else 3.5}
        axis.plot(x, y, line, color=colour, label=label, marker="o", clip_on=False, **widths)
        if main:
            for place, value in zip(x, y, strict=True):
                text = f"{value:.2f}".removeprefix("0")
                font = {"size": 8.5, "weight": "bold", "color": colour}
                above = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
                note = axis.annotate(text, (place, value), (0, 6), **above, **font)
                note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axis.set_xticks(range(len(shots)), [str(number) for number in shots])
    axis.set_xlim(-0.3, len(shots) - 0.7)
    axis.set_ylim(0, 1)
    axis.set_yticks(np.linspace(0, 1, 5), ["0", ".25", ".50", ".75", "1"])
    axis.grid(axis="x", visible=False)
    axis.tick_params(length=0)


def lines_by_shots(
    axis: Any,
    lines: Mapping[str, Mapping[int, float]],
    shots: Sequence[int],
    colours: Mapping[str, str],
    *,
    of_values: Mapping[str, str] | None = None,
    decimals: int = 1,
) -> None:
    """Draws a line for each model, with its last value beside it (paper, Figure 2, right).

    Args:
        axis: the panel.
        lines: {model: {examples: value}}; a number of examples may be missing.
        shots: numbers of examples, which are at equal distances.
        colours: of the lines.
        of_values: colours of the values; as the lines by default.
        decimals: of the values.
    """
    ends: dict[str, tuple[int, float]] = {}
    for model, values in lines.items():
        points = [(place, values[number]) for place, number in enumerate(shots) if number in values]
        if points:
            look = {"color": colours[model], "markersize": 4.5}
            axis.plot(*zip(*points, strict=True), "-o", label=model, **look)
            ends[model] = points[-1]
    low, high = axis.get_ylim()
    heights = apart([value for _, value in ends.values()], 0.06 * (high - low))
    for (model, (place, value)), height in zip(ends.items(), heights, strict=True):
        colour = (of_values or colours)[model]
        font = {"size": 8.5, "weight": "bold", "color": colour, "va": "center"}
        beside = {"xytext": (7, 0), "textcoords": "offset points"}
        axis.annotate(f"{value:.{decimals}f}", (place, height), **beside, **font)
    axis.set_xticks(range(len(shots)), [str(number) for number in shots])
    axis.set_xlabel("examples in the prompt")
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.3, len(shots) - 0.5)
    axis.tick_params(length=0, labelsize=9)


def _last(values: Mapping[int, Row], shots: Sequence[int]) -> list[Row]:
    """Returns the results at the two largest numbers of shots of a panel."""
    return [values[number] for number in shots[-2:] if number in values]


def _guessing(axis: Any, guess: float, values: Sequence[float]) -> None:
    """Draws the line of guessing; its name is on the side that has fewer of the values nearby."""
    axis.axhline(guess, color=INK, linewidth=0.9, dashes=(1, 2), zorder=1)
    above = sum(guess <= value < guess + 0.1 for value in values)
    below = sum(guess - 0.1 < value < guess for value in values)
    is_below = above > below and guess > 0.1
    font = {"size": 8, "style": "italic", "color": INK, "ha": "right"}
    axis.annotate(
        "guessing",
        (1, guess),
        (-1, -2 if is_below else 2),
        va="top" if is_below else "bottom",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        **font,
    )


def _origin(rows: Sequence[Row]) -> str:
    counts = sorted({row.n for row in rows})
    queries = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{queries} queries per point · seed {rows[0].seed} · step {rows[0].step}"


def gate_curves(log: Sequence[Numbers], name: str = "") -> Figure | None:
    """Draws the absolute value of each layer's tanh gates over training (paper, Figure 6).

    Returns None if the log has no gates.

    Args:
        log: lines of metrics.jsonl.
        name: of the run, for the title.
    """
    gates = _all_gates(log)
    if not gates:
        return None
    with style():
        figure = Figure(figsize=(4.6 * len(gates) + 0.6, 4.0), layout="constrained")
        axes = figure.subplots(1, len(gates), sharey=True, squeeze=False)[0]
        for axis, (gates_of, rows) in zip(axes, gates.items(), strict=True):
            steps = list(rows)
            values = np.abs(np.array(list(rows.values()), np.float64))
            colours = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, values.shape[1]))
            look = {"linewidth": 1.8, "marker": "o" if len(steps) == 1 else ""}
            for layer in range(values.shape[1]):
                axis.plot(steps, values[:, layer], color=colours[layer], clip_on=False, **look)
            axis.set_title(_GATES.get(gates_of, gates_of.removeprefix("gates/")))
            axis.set_xlabel("updates")
            axis.set_xlim(0, max(steps))
            axis.tick_params(length=0)
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(r"$|\tanh(\alpha)|$")
        gap = 0.055 * axes[0].get_ylim()[1]  # all panels have the same heights
        for axis, rows in zip(axes, gates.values(), strict=True):
            lines, last = axis.get_lines(), np.abs(np.array(rows[max(rows)], np.float64))
            for layer, height in _labelled(last, gap):
                font = {"size": 8.5, "va": "center", "color": lines[layer].get_color()}
                where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                axis.annotate(f"layer {layer}", (1, height), (6, 0), **where, **font)
        headline(figure, "How far the gates have opened" + (f", {name}" if name else ""))
    return figure


def last_gates(log: Sequence[Numbers]) -> dict[str, list[float]]:
    """Returns {kind of gates: tanh(alpha) of each layer} of the last report; {} without gates."""
    return {
        _GATES.get(name, name.removeprefix("gates/")): found[max(found)]
        for name, found in _all_gates(log).items()
    }


def _all_gates(log: Sequence[Numbers]) -> dict[str, dict[int, list[float]]]:
    names = [
        name
        for name in dict.fromkeys(key for line in log for key in line)
        if name.startswith("gates/")
    ]
    return {name: found for name in names if (found := _gates(log, name))}


def _gates(log: Sequence[Numbers], name: str) -> dict[int, list[float]]:
    """Returns {step: a number per layer}, without lines of another form than the last."""
    found: dict[int, list[float]] = {}
    for line in log:
        if isinstance(each := line.get(name), list):
            values = [number(value) for value in each]
            if values and None not in values:
                found[line["step"]] = values  # type: ignore[assignment]
    layers = len(found[max(found)]) if found else 0
    return {step: values for step, values in found.items() if len(values) == layers}


def _labelled(heights: np.ndarray, gap: float) -> list[tuple[int, float]]:
    """Returns the layers that are named at the right edge, with the heights of the names.

    All of up to eight layers are named, else some. Names are at least `gap` apart.
    """
    count = len(heights)
    chosen = (
        range(count)
        if count <= 8
        else sorted({round(place) for place in np.linspace(0, count - 1, 6)})
    )
    layers = [int(layer) for layer in chosen]
    return list(zip(layers, apart([float(heights[layer]) for layer in layers], gap), strict=True))


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Returns heights of labels that are at least `gap` apart: each is moved up if need be."""
    moved, lowest = dict[int, float](), -math.inf
    for place in sorted(range(len(heights)), key=heights.__getitem__):
        moved[place] = max(heights[place], lowest)
        lowest = moved[place] + gap
    return [moved[place] for place in range(len(heights))]


def loss_curves(logs: Mapping[str, Sequence[Numbers]]) -> Figure | None:
    """Draws the losses: a panel per stage, a line per dataset.

    Returns None if no log has a loss.

    Args:
        logs: stage -> lines of its metrics.jsonl.
    """
    stages = {stage: found for stage, log in logs.items() if (found := _losses(log))}
    if not stages:
        return None
    with style():
        figure = Figure(figsize=(4.1 * len(stages) + 0.4, 3.8), layout="constrained")
        for axis, (stage, losses) in zip(
            figure.subplots(1, len(stages), squeeze=False)[0], stages.items(), strict=True
        ):
            for colour, (name, points) in zip(
                (COLOURS[3], COLOURS[1], *COLOURS[4:]), losses.items(), strict=False
            ):
                steps, values = np.array(points, np.float64).T
                axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
                axis.plot(
                    steps, _smooth(values), color=colour, label=f"{name}  {_smooth(values)[-1]:.2f}"
                )
            axis.set_title(stage.replace("_", " "))
            axis.set_xlabel("updates")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.tick_params(length=0)
            axis.legend(
                loc="upper right",
                title="at the end",
                title_fontsize=8.5,
                fontsize=9,
                alignment="right",
            )
        figure.axes[0].set_ylabel("loss")
        headline(figure, "Losses of the stages")
    return figure


def _losses(log: Sequence[Numbers]) -> dict[str, list[tuple[int, float]]]:
    """Returns {dataset: [(step, loss)]}; only the total if a stage has one dataset."""
    names = [
        name
        for name in dict.fromkeys(key for line in log for key in line)
        if name == "loss" or name.endswith("/loss")
    ]
    datasets = [name for name in names if name != "loss"]
    chosen = datasets if len(datasets) > 1 else names[:1]
    found = {
        name.removesuffix("/loss"): [
            (line["step"], loss) for line in log if (loss := number(line.get(name))) is not None
        ]
        for name in chosen
    }
    return {name: points for name, points in found.items() if points}


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Returns means over windows around each report; a window has `share` of all reports."""
    half = max(1, round(share * len(values) / 2))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)

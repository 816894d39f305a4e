"""A picture of sample prompts and answers (in the manner of the paper's Figures 1 and 8).

Places are hand-computed inches: matplotlib's constrained layout arranges axes, and here frames,
images and lines of text are in one.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics.exact_match import is_exact
from flamingo_jax.evaluation.metrics.ranking import is_first
from flamingo_jax.evaluation.metrics.required import trim
from flamingo_jax.evaluation.report.curves import FAINT, INK, families, style
from flamingo_jax.inference.prompt import load_frames

Load = Callable[[Any], np.ndarray]  # an image or a video -> uint8[F, S, S, 3]

RIGHT, WRONG = "#2e7d4f", "#c2304a"
# Inches
_CELL, _IMAGE, _TEXT, _ROW_GAP, _LABEL, _HEAD, _MARGIN = 1.22, 1.02, 0.54, 0.30, 1.25, 0.75, 0.25


def choose(samples: Sequence[Answer], per_task: int = 2, most_shots: int = 4) -> list[Answer]:
    """Chooses the samples of the picture, family by family.

    Each task has its largest number of shots up to `most_shots`.
    """
    grouped = families([sample.task for sample in samples])
    tasks = [task for members in grouped.values() for task in members.values()]
    chosen: list[Answer] = []
    for task in tasks:
        of_task = [sample for sample in samples if sample.task == task]
        shots = {sample.shots for sample in of_task}
        shown = max((number for number in shots if number <= most_shots), default=min(shots))
        chosen += [sample for sample in of_task if sample.shots == shown][:per_task]
    return chosen


def draw(
    samples: Sequence[Answer],
    image_size: int,
    columns: int = 2,
    *,
    image_fit: ImageFit = "pad",
    background: Background = "mean",
) -> Figure:
    """Draws samples: the support examples, then the query in a frame with the model's answer.

    Args:
        samples: at least one.
        image_size: side of the model's images in pixels.
        columns: prompts in one row.
        image_fit: how an image becomes a square.
        background: what is behind transparent pixels.
    """
    load = functools.partial(
        load_frames, image_size=image_size, image_fit=image_fit, background=background
    )
    chunks = [_chunks(sample) for sample in samples]
    cells = max(len(found) for found in chunks)
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    block = _LABEL + cells * _CELL
    width = max(columns * block + 2 * _MARGIN, 7.0)  # room for the title
    step = _IMAGE + _TEXT + _ROW_GAP
    height = rows * step + _HEAD + _MARGIN
    with style():
        figure = Figure(figsize=(width, height))
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set(xlim=(0, width), ylim=(0, height))
        canvas.axis("off")
        canvas.text(
            _MARGIN, height - 0.36, "Prompts and answers", size=15, weight="bold", va="center"
        )
        note = "framed: the query, and what the model wrote after it"
        canvas.text(
            width - _MARGIN, height - 0.36, note, size=9.5, color=FAINT, ha="right", va="center"
        )
        for number, (sample, found) in enumerate(zip(samples, chunks, strict=True)):
            x = _MARGIN + (number % columns) * block
            y = height - _HEAD - (number // columns) * step  # top edge
            if number % columns == 0:
                faint: dict[str, Any] = {"color": FAINT, "linewidth": 0.4, "alpha": 0.6}
                canvas.plot([_MARGIN, width - _MARGIN], [y + 0.18] * 2, **faint)
            _draw_prompt(canvas, sample, found, x, y, load)
    return figure


def _draw_prompt(
    canvas: Any, sample: Answer, chunks: Sequence[tuple[Any, str]], x: float, y: float, load: Load
) -> None:
    """Draws one prompt with its top left corner at (x, y)."""
    name, _, control = sample.task.partition("_")
    canvas.text(x, y - 0.06, name, size=11, weight="bold", va="top")
    below = y - 0.30
    for line in textwrap.wrap(control.replace("_", " "), 14):  # "category shuffled" takes two
        canvas.text(x, below, line, size=9, color=WRONG, va="top", style="italic")
        below -= 0.2
    shots = f"{sample.shots} shot{'s' * (sample.shots != 1)}"
    canvas.text(x, below, shots, size=9, color=FAINT, va="top")
    for place, (image, text) in enumerate(chunks):
        left = x + _LABEL - 0.15 + place * _CELL
        centre = left + _IMAGE / 2
        if image is not None:
            _picture(canvas, image, left, y, load, hidden=sample.episode.masked)
        lines = textwrap.wrap(text, 17)[:2] or [""]
        font = {"ha": "center", "va": "top"}
        for number, line in enumerate(lines):
            canvas.text(centre, y - _IMAGE - 0.07 - 0.14 * number, line, size=8.5, **font)
        if place == len(chunks) - 1:
            corner, size = (left - 0.07, y - _IMAGE - _TEXT), (_IMAGE + 0.14, _IMAGE + _TEXT + 0.07)
            round_box: dict[str, Any] = {
                "boxstyle": "round,pad=0,rounding_size=0.06",
                "facecolor": "#f7f4ee",
                "edgecolor": INK,
                "linewidth": 1.0,
            }
            canvas.add_patch(FancyBboxPatch(corner, *size, **round_box, zorder=0))
            bottom = y - _IMAGE - 0.09 - 0.14 * len(lines)
            said, right = _answer(sample)
            mark, colour = ("✓", RIGHT) if right else ("✗", WRONG)
            verdict = f"{said} {mark}"
            canvas.text(centre, bottom, verdict, size=9, weight="bold", color=colour, **font)
            if not right:
                truth = textwrap.shorten(sample.episode.answer, 14, placeholder="…")
                canvas.text(centre, bottom - 0.17, f"right: {truth}", size=8, color=INK, **font)


def _picture(canvas: Any, image: Any, left: float, top: float, load: Load, *, hidden: bool) -> None:
    """Draws the image that the model gets (the first frame of a video), pale if it is hidden."""
    pixels = load(image)[0].astype(np.float32) / 255
    shown = pixels * 0.15 + 0.8 if hidden else pixels
    extent = (left, left + _IMAGE, top - _IMAGE, top)
    canvas.imshow(shown, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
    edge: dict[str, Any] = {"edgecolor": FAINT, "linewidth": 0.5, "fill": False, "zorder": 3}
    canvas.add_patch(Rectangle((left, top - _IMAGE), _IMAGE, _IMAGE, **edge))
    if hidden:
        font = {"size": 8.5, "color": INK, "ha": "center", "va": "center", "style": "italic"}
        canvas.text(left + _IMAGE / 2, top - _IMAGE / 2, "hidden", zorder=4, **font)


def _answer(sample: Answer) -> tuple[str, bool]:
    """Returns the model's answer, and whether it is right."""
    if sample.text is not None:
        said, right = trim(sample.text).strip() or "(nothing)", is_exact(sample)
    else:
        said, right = str(sample.ranked_first), sample.scores is not None and is_first(sample)
    return textwrap.shorten(said, 12, placeholder="…"), right


def _chunks(sample: Answer) -> list[tuple[Any, str]]:
    """Splits the prompt into (image or None, the text after it)."""
    chunks: list[tuple[Any, str]] = []
    for part in sample.episode.parts:
        if not isinstance(part, str):
            chunks.append((part, ""))
        elif chunks:
            chunks[-1] = (chunks[-1][0], chunks[-1][1] + part.replace("<EOC>", " "))
        else:
            chunks.append((None, part.replace("<EOC>", " ")))
    return chunks

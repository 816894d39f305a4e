"""The page of predictions.

Whole prompts with their images, and what the model made of them, as one HTML file.

    +-- query 17 ------------------------------------------------- top-1 accuracy ✓ --+
    |  1 [frame] Output: A cat.<EOC>  2 [frame] Output: A dog.<EOC>  [[frame] Output:]  |
    |  answer   A dog on a sofa.                                                      |
    |  right    A dog lies on a couch. / A dog sleeps.                                |
    +---------------------------------------------------------------------------------+

Images are shown as the model sees them, and of videos some of their frames. Close-ended answers
have a bar for each candidate: its share of the probability of all candidates.
"""

from __future__ import annotations

import collections
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from flamingo_jax.core.html_page import embedded, template
from flamingo_jax.data.images import read
from flamingo_jax.evaluation.episode import Answer, Row
from flamingo_jax.evaluation.metrics import metric
from flamingo_jax.evaluation.metrics.required import trim
from flamingo_jax.evaluation.report.benchmark_table import title_of
from flamingo_jax.evaluation.report.units import unit
from flamingo_jax.inference.prompt import Visual

Load: TypeAlias = "Callable[[Visual], np.ndarray]"

# Pixels of an image as shown: of a support, of the query, of a frame of a video
_SUPPORT, _QUERY, _FRAME = 112, 160, 72
_SUPPORT_FRAMES, _QUERY_FRAMES = 3, 10  # shown of a video
_OPEN = 8  # support examples that are shown without a click
_CANDIDATES = 12  # shown of each query
_LONG = 160  # characters of a text that needs a wider place


class _Picture(NamedTuple):
    source: str
    side: int  # pixels, as shown
    is_small: bool  # enlarged
    alt: str


class _Card(NamedTuple):
    """An image or video with the text after it."""

    text: str
    is_long: bool
    pictures: list[_Picture]
    note: str  # on the frames of a video that are not shown


class _Bar(NamedTuple):
    """A candidate."""

    text: str
    share: float
    score: float
    rank: int
    is_answer: bool


class _Article(NamedTuple):
    """A query."""

    sample: Answer
    marks: list[tuple[str, str]]  # (right, wrong or partly; what is shown)
    notes: list[str]
    hidden: bool  # the images
    supports: list[_Card]
    query: _Card
    answer: tuple[str, str] | None  # what counts, and what is cut off
    references: list[str]
    bars: list[_Bar]


class _Section(NamedTuple):
    """A task at a number of shots."""

    name: str
    results: str
    articles: list[_Article]


def render(samples: Sequence[Answer], rows: Sequence[Row], load: Load) -> str:
    """Returns the whole page.

    Args:
        samples: what to show, at least one; those of one task and number of shots stand together.
        rows: results of the same run.
        load: image or video -> uint8[F, S, S, 3], as the model sees it;
            `inference.prompt.load_frames` of the model's settings.

    Raises:
        PromptError: an image or video of a sample cannot be read any more.
    """
    groups: dict[tuple[str, int], list[Answer]] = {}
    for sample in samples:
        groups.setdefault((sample.task, sample.shots), []).append(sample)
    sections = []
    for (task, shots), members in groups.items():
        own = [row for row in rows if (row.task, row.shots) == (task, shots)]
        values = "; ".join(
            f"{unit(task, row.metric).title}: {unit(task, row.metric).text(row.value)}"
            for row in own
        )
        results = (
            f"{values} over {own[0].n} queries"
            if own
            else "no results: the right answers are not known"
        )
        metrics = list(dict.fromkeys(row.metric for row in own))
        articles = [_article(sample, metrics, load) for sample in members]
        sections.append(
            _Section(f"{title_of(task)}, {shots} shot{'s' * (shots != 1)}", results, articles)
        )
    made = f"{rows[0].checkpoint} at step {rows[0].step}, seed {rows[0].seed}; " if rows else ""
    return template(__file__).render(
        title="Prompts and answers",
        made=f"{made}framed: the query; green bars: the annotated answer",
        facts={"prompts shown": str(len(samples)), "tasks": str(len({task for task, _ in groups}))},
        sections=sections,
        open_supports=_OPEN,
    )


def verdicts(sample: Answer, metrics: Sequence[str]) -> dict[str, float]:
    """How right an answer is by each metric that tells: metric -> value in 0..1.

    Args:
        sample: the answer to one query.
        metrics: names of the task's metrics.
    """
    return {
        name: metric(name).value([sample]) for name in metrics if unit(sample.task, name).of_each
    }


def _article(sample: Answer, metrics: Sequence[str], load: Load) -> _Article:
    episode = sample.episode
    marks = []
    for name, value in verdicts(sample, metrics).items():
        kind, sign = (
            ("right", "✓")
            if value >= 1
            else ("wrong", "✗")
            if value <= 0
            else ("partly", f"{value:.2f}")
        )
        marks.append((kind, f"{unit(sample.task, name).name} {sign}"))
    extra = {
        key: value for key, value in episode.extra.items() if isinstance(value, str | int | float)
    }
    notes = [
        f"{key} {textwrap.shorten(str(value), 80, placeholder='…')}" for key, value in extra.items()
    ]
    notes += [f"scores are means over {len(episode.orders) + 1} orders"] if episode.orders else []
    notes += ["images hidden from the text"] if episode.masked else []
    *supports, query = _chunks(sample)
    return _Article(
        sample,
        marks,
        notes,
        episode.masked,
        [
            _card(visual, text, f"support {place}", load)
            for place, (visual, text) in enumerate(supports, start=1)
        ],
        _card(*query, "query", load),
        _answer(sample),
        _references(sample),
        _bars(sample),
    )


def _card(visual: Visual | None, text: str, what: str, load: Load) -> _Card:
    if visual is None:
        return _Card(text, len(text) > _LONG, [], "")
    frames = load(visual)
    stored = frames.shape[1]
    is_query = what == "query"
    side = _FRAME if len(frames) > 1 else _QUERY if is_query else _SUPPORT
    most = _QUERY_FRAMES if is_query else _SUPPORT_FRAMES
    chosen = np.unique(
        np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    ).tolist()
    pictures = [
        _Picture(
            embedded(frames[place] if stored <= side else read.fit(frames[place], side)),
            side,
            stored < side,
            f"{what}, frame {place + 1}",
        )
        for place in chosen
    ]
    note = f"{len(chosen)} of {len(frames)} frames" if len(frames) > 1 else ""
    return _Card(text, len(text) > _LONG, pictures, note)


def _chunks(sample: Answer) -> list[tuple[Visual | None, str]]:
    """The prompt as (image or None, the text after it), an example each.

    The last one is the query.
    """
    chunks: list[tuple[Visual | None, str]] = []
    for part in sample.episode.parts:
        if not isinstance(part, str):
            chunks.append((part, ""))
            continue
        for text in _examples(part):
            if chunks and not chunks[-1][1].endswith("<EOC>"):
                chunks[-1] = (chunks[-1][0], chunks[-1][1] + text)
            else:
                chunks.append((None, text))
    return chunks or [(None, "")]


def _examples(text: str) -> Iterator[str]:
    """Splits text behind each <EOC>."""
    start = 0
    while start < len(text):
        end = text.find("<EOC>", start)
        end = len(text) if end < 0 else end + len("<EOC>")
        yield text[start:end]
        start = end


def _answer(sample: Answer) -> tuple[str, str] | None:
    """What was decoded, as far as it counts, and the rest of it.

    The candidate ranked first if nothing was decoded.
    """
    if sample.text is not None:
        kept = trim(sample.text)
        return kept.strip() or "(nothing)", sample.text[len(kept) :]
    return None if sample.scores is None else (str(sample.ranked_first), "")


def _references(sample: Answer) -> list[str]:
    """The right answers, each once."""
    known = dict.fromkeys(sample.episode.references or filter(None, (sample.episode.answer,)))
    counts = collections.Counter(sample.episode.references)
    return [f"{text} (x {counts[text]})" if counts[text] > 1 else text for text in known]


def _bars(sample: Answer) -> list[_Bar]:
    """The best candidates and the right one, each with its share of their probability and its log-likelihood."""
    texts, right_text = sample.episode.candidates, sample.episode.answer
    if sample.scores is None or not texts:
        return []
    scores = [score if math.isfinite(score) else -math.inf for score in sample.scores]
    top = max(scores)
    weights = [math.exp(score - top) if top > -math.inf else 0.0 for score in scores]
    total = sum(weights) or 1.0
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    chosen = order[:_CANDIDATES]
    if right_text in texts:
        right = min(order.index(k) for k, text in enumerate(texts) if text == right_text)
        chosen += [order[right]] if right >= _CANDIDATES else []
    return [
        _Bar(
            texts[k],
            weights[k] / total,
            sample.scores[k],
            order.index(k) + 1,
            texts[k] == right_text,
        )
        for k in chosen
    ]

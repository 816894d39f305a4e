"""The page of predictions: whole prompts with their images and answers, as one HTML file.

    +-- query 17 ------------------------------------------------- top-1 accuracy ✓ --+
    |  1 [frame] Output: A cat.<EOC>  2 [frame] Output: A dog.<EOC>  [[frame] Output:]  |
    |  answer   A dog on a sofa.                                                      |
    |  right    A dog lies on a couch. / A dog sleeps.                                |
    +---------------------------------------------------------------------------------+

Images are those that the model gets; of a video, some frames are shown. Close-ended answers have a
bar for each candidate: its share of the probability of all candidates.
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

# Pixels of an image on the page: of a support example, of the query, of a frame of a video.
_SUPPORT, _QUERY, _FRAME = 112, 160, 72
_SUPPORT_FRAMES, _QUERY_FRAMES = 3, 10  # of a video that are shown
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
        samples: at least one; grouped by task and number of shots.
        rows: results of the same run.
        load: image or video -> uint8[F, S, S, 3], the frames that the model gets;
            `inference.prompt.load_frames` with the model's settings.

    Raises:
        PromptError: an image or video of a sample can no longer be read.
    """
    groups: dict[tuple[str, int], list[Answer]] = {}
    for sample in samples:
        groups.setdefault((sample.task, sample.shots), []).append(sample)
    sections = []
    for (task, shots), members in groups.items():
        own = [row for row in rows if (row.task, row.shots) == (task, shots)]
        units = [(unit(task, row.metric), row.value) for row in own]
        values = "; ".join(f"{each.title}: {each.text(value)}" for each, value in units)
        results = "no results: the right answers are not known"
        if own:
            results = f"{values} over {own[0].n} queries"
        metrics = list(dict.fromkeys(row.metric for row in own))
        articles = [_article(sample, metrics, load) for sample in members]
        title = f"{title_of(task)}, {shots} shot{'s' * (shots != 1)}"
        sections.append(_Section(title, results, articles))
    made = f"{rows[0].checkpoint} at step {rows[0].step}, seed {rows[0].seed}; " if rows else ""
    return template(__file__).render(
        title="Prompts and answers",
        made=f"{made}framed: the query; green bars: the annotated answer",
        facts={"prompts shown": str(len(samples)), "tasks": str(len({task for task, _ in groups}))},
        sections=sections,
        open_supports=_OPEN,
    )


def verdicts(sample: Answer, metrics: Sequence[str]) -> dict[str, float]:
    """Returns {metric: value in 0..1} of one answer, for metrics with a value for each answer.

    Args:
        sample: the answer to one query.
        metrics: names of the task's metrics.
    """
    chosen = [name for name in metrics if unit(sample.task, name).of_each]
    return {name: metric(name).value([sample]) for name in chosen}


def _article(sample: Answer, metrics: Sequence[str], load: Load) -> _Article:
    episode = sample.episode
    marks = []
    for name, value in verdicts(sample, metrics).items():
        kind, sign = "partly", f"{value:.2f}"
        if value >= 1:
            kind, sign = "right", "✓"
        elif value <= 0:
            kind, sign = "wrong", "✗"
        marks.append((kind, f"{unit(sample.task, name).name} {sign}"))
    notes = []
    for key, value in episode.extra.items():
        if isinstance(value, str | int | float):
            notes.append(f"{key} {textwrap.shorten(str(value), 80, placeholder='…')}")
    notes += [f"scores are means over {len(episode.orders) + 1} orders"] if episode.orders else []
    notes += ["images hidden from the text"] if episode.masked else []
    *supports, query = _chunks(sample)
    cards = [_card(*each, f"support {place}", load) for place, each in enumerate(supports, start=1)]
    return _Article(
        sample,
        marks,
        notes,
        episode.masked,
        cards,
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
    places = np.linspace(0, len(frames) - 1, min(most, len(frames)))
    chosen = np.unique(places.round().astype(int)).tolist()
    pictures = []
    for place in chosen:
        source = embedded(frames[place] if stored <= side else read.fit(frames[place], side))
        pictures.append(_Picture(source, side, stored < side, f"{what}, frame {place + 1}"))
    note = f"{len(chosen)} of {len(frames)} frames" if len(frames) > 1 else ""
    return _Card(text, len(text) > _LONG, pictures, note)


def _chunks(sample: Answer) -> list[tuple[Visual | None, str]]:
    """Splits the prompt into examples: (image or None, the text after it); the query is last."""
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
    """Splits text after each <EOC>."""
    start = 0
    while start < len(text):
        end = text.find("<EOC>", start)
        end = len(text) if end < 0 else end + len("<EOC>")
        yield text[start:end]
        start = end


def _answer(sample: Answer) -> tuple[str, str] | None:
    """Returns the decoded text in two parts: what metrics read, and the rest.

    If nothing was decoded, the first part is the candidate ranked first.
    """
    if sample.text is not None:
        kept = trim(sample.text)
        return kept.strip() or "(nothing)", sample.text[len(kept) :]
    return None if sample.scores is None else (str(sample.ranked_first), "")


def _references(sample: Answer) -> list[str]:
    """Returns the right answers without repetitions; a repeated one has its count."""
    known = dict.fromkeys(sample.episode.references or filter(None, (sample.episode.answer,)))
    counts = collections.Counter(sample.episode.references)
    return [f"{text} (x {counts[text]})" if counts[text] > 1 else text for text in known]


def _bars(sample: Answer) -> list[_Bar]:
    """Returns the best candidates and the right one, with probability and log-likelihood."""
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

"""The page of predictions: whole prompts with their images, and what the model made of them, as one HTML file.

    +-- query 17 ------------------------------------------------- top-1 accuracy ✓ --+
    |  1 [frame] Output: A cat.<EOC>  2 [frame] Output: A dog.<EOC>  [[frame] Output:]  |
    |  answer   A dog on a sofa.                                                      |
    |  right    A dog lies on a couch. / A dog sleeps.                                |
    +---------------------------------------------------------------------------------+

Images are shown as the model sees them, and of videos some of their frames. Close-ended answers have a bar for each candidate: its share of the
probability of all candidates.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from flamingo_jax.core.html_page import document, embedded, escape
from flamingo_jax.data.images import read
from flamingo_jax.evaluation.metrics import Prediction, metric
from flamingo_jax.evaluation.metrics.needs import trim
from flamingo_jax.evaluation.report.benchmark_table import title_of
from flamingo_jax.evaluation.report.units import unit
from flamingo_jax.evaluation.runner import Row, Sample
from flamingo_jax.inference.prompt import Visual

Load: TypeAlias = "Callable[[Visual], np.ndarray]"

# Pixels of an image as shown: of a support, of the query, of a frame of a video
_SUPPORT, _QUERY, _FRAME = 112, 160, 72
_SUPPORT_FRAMES, _QUERY_FRAMES = 3, 10  # shown of a video
_OPEN = 8  # support examples that are shown without a click
_CANDIDATES = 12  # shown of each query
_LONG = 160  # characters of a text that needs a wider place

_STYLE = """
nav { margin: 0 0 18px; font-size: 14px; } nav a { margin-right: 16px; white-space: nowrap; color: #1f5f8c; }
section > h2 { font-size: 19px; margin: 26px 0 10px; } section > h2 span { font-weight: 400; font-size: 14px; color: #5b6b78; }
.prompt { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 12px; padding: 0; list-style: none; }
.prompt li { border: 1px solid #dfe4e8; border-radius: 8px; padding: 6px; max-width: 170px; font-size: 13px; overflow-wrap: anywhere; }
.prompt li.video { max-width: 236px; } .prompt li.long { max-width: 470px; }
.prompt li.query { border: 2px solid #22303c; background: #f7f4ee; max-width: 100%; }
.prompt p { margin: 4px 2px 0; white-space: pre-wrap; unicode-bidi: isolate; }
.frames { display: flex; flex-wrap: wrap; gap: 2px; } .frames img { display: block; border-radius: 3px; } .hidden img { opacity: .15; }
.place, .note { font-size: 11px; color: #5b6b78; } .token { font-weight: 600; color: #8795a1; }
summary { cursor: pointer; color: #1f5f8c; margin: 0 0 8px; }
.said { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 0; }
.said dt { color: #5b6b78; } .said dd { margin: 0; white-space: pre-wrap; unicode-bidi: isolate; overflow-wrap: anywhere; }
.answer { font-weight: 600; } .cut { color: #8795a1; text-decoration: line-through; }
article h3 .right, article h3 .partly, article h3 .wrong { font-weight: 600; }
article h3 .right { color: #2e7d4f; } article h3 .partly { color: #a8670d; } article h3 .wrong { color: #c2304a; }
.candidates { border-spacing: 0; margin: 8px 0 0; font-size: 13px; }
.candidates td { padding: 1px 12px 1px 0; overflow-wrap: anywhere; } .candidates .number { text-align: right; color: #5b6b78; }
.candidates .bar { width: 240px; } .bar div { height: 12px; background: #a3b2bf; border-radius: 3px; min-width: 1px; }
.candidates .first { font-weight: 600; } .is_answer .bar div { background: #2e7d4f; } .is_answer td:first-child { color: #2e7d4f; }
""".strip()


def render(samples: Sequence[Sample], rows: Sequence[Row], load: Load) -> str:
    """Returns the whole page.

    Args:
        samples: what to show, at least one; those of one task and number of shots stand together.
        rows: results of the same run.
        load: image or video -> uint8[F, S, S, 3], as the model sees it; `inference.prompt.load_frames` of the model's settings.

    Raises:
        PromptError: an image or video of a sample cannot be read any more.
    """
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.task, sample.shots), []).append(sample)
    body, links = [], []
    for number, ((task, shots), members) in enumerate(groups.items(), start=1):
        own = [row for row in rows if (row.task, row.shots) == (task, shots)]
        name = f"{title_of(task)}, {shots} shot{'s' * (shots != 1)}"
        links.append(f'<a href="#s{number}">{escape(name)}</a>')
        values = "; ".join(f"{unit(task, row.metric).title}: {unit(task, row.metric).text(row.value)}" for row in own)
        told = f"{values} over {own[0].n} queries" if own else "no results: the right answers are not known"
        body.append(f'<section id="s{number}">\n<h2>{escape(name)} <span>{escape(told)}</span></h2>')
        metrics = [row.metric for row in own]
        body += [_article(sample, list(dict.fromkeys(metrics)), load) for sample in members]
        body.append("</section>")
    facts = {
        "prompts shown": str(len(samples)),
        "tasks": str(len({task for task, _ in groups})),
    }
    made = f"{rows[0].checkpoint} at step {rows[0].step}, seed {rows[0].seed}; " if rows else ""
    made += "framed: the query; green bars: the annotated answer"
    contents = f"<nav>{' '.join(links)}</nav>\n" + "\n".join(body)
    return document("Prompts and answers", made, facts, contents, style=_STYLE, images="data:")


def verdicts(task: str, prediction: Prediction, metrics: Sequence[str]) -> dict[str, float]:
    """How right an answer is by each metric that tells: metric -> value in 0..1.

    Args:
        task: its name.
        prediction: of one query.
        metrics: names of the task's metrics.
    """
    return {name: metric(name).value([prediction]) for name in metrics if unit(task, name).of_each}


def _article(sample: Sample, metrics: Sequence[str], load: Load) -> str:
    episode, prediction = sample.episode, sample.prediction
    marks = []
    for name, value in verdicts(sample.task, prediction, metrics).items():
        kind, sign = ("right", "✓") if value >= 1 else ("wrong", "✗") if value <= 0 else ("partly", f"{value:.2f}")
        marks.append(f'<span class="{kind}">{escape(unit(sample.task, name).name)} {sign}</span>')
    told_of = {key: value for key, value in prediction.extra.items() if isinstance(value, str | int | float)}
    notes = [f"{key} {textwrap.shorten(str(value), 80, placeholder='…')}" for key, value in told_of.items()]
    notes += [f"scores are means over {len(episode.orders) + 1} orders"] if episode.orders else []
    notes += ["images hidden from the text"] if episode.masked else []
    told = "".join(f"<span>{escape(note)}</span>" for note in notes)
    head = f"<h3>{escape(prediction.query_id)} {''.join(marks)}{told}</h3>"
    return f"<article>\n{head}\n{_prompt(sample, load)}{_said(prediction)}{_candidates(prediction)}</article>"


def _prompt(sample: Sample, load: Load) -> str:
    """All parts in reading order; the query in a frame."""
    *supports, query = _chunks(sample)
    hidden = sample.episode.masked
    cards = [
        _card(visual, text, str(place), load, hidden=hidden) for place, (visual, text) in enumerate(supports, start=1)
    ]
    last = _card(*query, "", load, hidden=hidden)
    if len(cards) <= _OPEN:
        return f'<ol class="prompt">\n{"".join([*cards, last])}</ol>\n'
    return (
        f'<details><summary>{len(cards)} support examples</summary>\n<ol class="prompt">\n{"".join(cards)}</ol>\n'
        f'</details>\n<ol class="prompt">\n{last}</ol>\n'
    )


def _card(visual: Visual | None, text: str, place: str, load: Load, *, hidden: bool) -> str:
    """One image or video with the text after it; the query has no `place`."""
    pictures = _frames(visual, f"support {place}" if place else "query", load, hidden=hidden)
    kinds = {"query": not place, "video": pictures.count("<img") > 1, "long": len(text) > _LONG}
    classes = " ".join(kind for kind, holds in kinds.items() if holds)
    number = f'<span class="place">{place}</span>' if place else ""
    words = escape(text).replace("&lt;EOC&gt;", '<span class="token">&lt;EOC&gt;</span>')
    return f'<li class="{classes}">{number}{pictures}<p>{words}</p></li>\n'


def _frames(visual: Visual | None, what: str, load: Load, *, hidden: bool) -> str:
    if visual is None:
        return ""
    frames = load(visual)
    stored = frames.shape[1]
    is_query = what == "query"
    side = _FRAME if len(frames) > 1 else _QUERY if is_query else _SUPPORT
    most = _QUERY_FRAMES if is_query else _SUPPORT_FRAMES
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)).tolist()
    small = ' class="small"' if stored < side else ""
    pictures = "".join(
        f'<img width="{side}" height="{side}"{small} alt="{what}, frame {place + 1}" '
        f'src="{embedded(frames[place] if stored <= side else read.fit(frames[place], side))}">'
        for place in chosen
    )
    note = f'<span class="note">{len(chosen)} of {len(frames)} frames</span>' if len(frames) > 1 else ""
    return f'<div class="frames{" hidden" * hidden}">{pictures}</div>{note}'


def _chunks(sample: Sample) -> list[tuple[Visual | None, str]]:
    """The prompt as (image or None, the text after it), an example each; the last one is the query."""
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


def _said(prediction: Prediction) -> str:
    """What was decoded, and the right answers."""
    lines = []
    if prediction.text is not None:
        kept = trim(prediction.text)
        cut = prediction.text[len(kept) :]
        rest = f'<span class="cut">{escape(cut)}</span>' if cut else ""
        lines.append(("answer", f'<span class="answer">{escape(kept.strip()) or "(nothing)"}</span>{rest}'))
    elif prediction.scores is not None:
        lines.append(("ranked first", f'<span class="answer">{escape(str(prediction.ranked_first))}</span>'))
    known = list(dict.fromkeys(prediction.references or filter(None, (prediction.answer,))))
    counts = {text: prediction.references.count(text) for text in known}
    told = [f"{escape(text)}{f' (x {counts[text]})' if counts[text] > 1 else ''}" for text in known]
    lines.append(("right", " / ".join(told) or "not known"))
    return '<dl class="said">' + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines) + "</dl>\n"


def _candidates(prediction: Prediction) -> str:
    """The best candidates and the right one, each with its share of their probability and its log-likelihood."""
    if prediction.scores is None or not prediction.candidates:
        return ""
    scores = [score if math.isfinite(score) else -math.inf for score in prediction.scores]
    top = max(scores)
    weights = [math.exp(score - top) if top > -math.inf else 0.0 for score in scores]
    total = sum(weights) or 1.0
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    chosen = order[:_CANDIDATES]
    if prediction.answer in prediction.candidates:
        right = min(order.index(k) for k, text in enumerate(prediction.candidates) if text == prediction.answer)
        chosen += [order[right]] if right >= _CANDIDATES else []
    lines = []
    for k in chosen:
        share, text = weights[k] / total, prediction.candidates[k]
        classes = " ".join(filter(None, ("first" * (k == order[0]), "is_answer" * (text == prediction.answer))))
        lines.append(
            f'<tr class="{classes}"><td>{escape(text)}</td><td class="bar"><div style="width: {100 * share:.1f}%"></div></td>'
            f'<td class="number">{share:.1%}</td><td class="number">{prediction.scores[k]:.2f}</td>'
            f'<td class="number">{order.index(k) + 1}.</td></tr>\n'
        )
    left = len(order) - len(chosen)
    more = f'<p class="note">and {left} more candidates</p>\n' if left else ""
    head = '<tr class="note"><td>candidate</td><td></td><td class="number">share</td><td class="number">log-likelihood</td><td></td></tr>'
    return f'<table class="candidates">\n{head}\n{"".join(lines)}</table>\n{more}'

"""From episodes to predictions.

Some batches at a time, longest prompts first, each noted in a journal when it is done.

Prompts of like size share a batch, whatever the order of the queries: an answer does not depend on
what it shares its batch with. The longest come first, so that what does not fit shows at once, and
the estimate of the time left errs on the safe side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.evaluation.journal import Finished, Journal, prompt_hash
from flamingo_jax.evaluation.metrics import Prediction
from flamingo_jax.evaluation.task import Episode
from flamingo_jax.inference.engine import Request
from flamingo_jax.inference.model import Flamingo

BATCHES = 4  # that are answered between two entries in the journal


def answer(
    model: Flamingo,
    episodes: Sequence[Episode],
    journal: Journal,
    *,
    generate: bool,
    score: bool,
    batch_size: int,
    done: Callable[[int], object] = lambda count: None,
) -> list[Prediction]:
    """Answers episodes, in their order.

    Args:
        model: the model.
        episodes: what is asked.
        journal: of answers; what is there is not asked again, and what is answered goes there.
        generate: whether to decode an answer.
        score: whether to score the candidates; of an ensemble, the mean over its orders.
        batch_size: prompts answered together.
        done: gets the number of queries that were finished, again and again.

    Raises:
        PromptError: a prompt that cannot be read, or is too long.
        PathError: the journal cannot be written.
    """
    keys = [prompt_hash(episode) for episode in episodes]
    # a classification asks for the same thousand again and again
    candidate_tokens = functools.lru_cache(maxsize=4)(
        lambda candidates, separator: model.candidate_tokens(
            [f"{separator}{candidate}" for candidate in candidates]
        )
    )
    order = sorted(range(len(episodes)), key=lambda number: _size(episodes[number]), reverse=True)
    step = max(
        1, BATCHES * batch_size // max((1 + len(episode.orders) for episode in episodes), default=1)
    )
    for start in range(0, len(order), step):
        wave = order[start : start + step]
        # Answered as a whole or not at all, so that a run that goes on forms the batches that it
        # would have formed.
        if any(keys[number] not in journal.finished for number in wave):
            asked = [episodes[number] for number in wave]
            requests = [
                Request(
                    model.read(parts, masked=episode.masked),
                    candidate_tokens(episode.candidates, episode.separator) if score else (),
                )
                for episode in asked
                for parts in (episode.parts, *episode.orders)
            ]
            answers = iter(model.engine.answer(requests, generate=generate, batch_size=batch_size))
            found = []
            for episode in asked:
                own = [next(answers) for _ in range(1 + len(episode.orders))]
                scores = (
                    np.mean([each.scores for each in own], axis=0).tolist()
                    if score and episode.candidates
                    else None
                )
                found.append(
                    Finished(
                        model.text(own[0]) if generate else None,
                        None if scores is None else tuple(scores),
                    )
                )
            journal.add(asked, [keys[number] for number in wave], found)
        done(len(wave))
    return [
        Prediction(
            query_id=episode.query_id,
            prompt=prompt_text(episode),
            answer=episode.answer,
            text=journal.finished[key].text,
            candidates=episode.candidates if score else (),
            scores=journal.finished[key].scores,
            references=episode.references,
            extra=episode.extra,
        )
        for key, episode in zip(keys, episodes, strict=True)
    ]


def prompt_text(episode: Episode) -> str:
    """An episode's prompt with `<image>` for each image or video."""
    return "".join(part if isinstance(part, str) else "<image>" for part in episode.parts)


def _size(episode: Episode) -> tuple[int, int]:
    """Images, and characters."""
    images = sum(not isinstance(part, str) for part in episode.parts)
    return images, sum(len(part) for part in episode.parts if isinstance(part, str))

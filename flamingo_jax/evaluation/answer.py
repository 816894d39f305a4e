"""Asks the model the episodes of a task, and writes the answers to a journal.

Prompts of similar size share a batch, whatever the order of the queries: an answer does not depend
on the other prompts of its batch. The longest come first. So a prompt that does not fit is found at
once, and the estimate of the time left is too long rather than too short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.evaluation.episode import Answer, Episode
from flamingo_jax.evaluation.journal import Journal, TextAndScores, prompt_hash
from flamingo_jax.inference.model import Flamingo

BATCHES = 4  # answered between two writes to the journal


def answer(
    model: Flamingo,
    episodes: Sequence[Episode],
    journal: Journal,
    *,
    task: str,
    shots: int,
    generate: bool,
    score: bool,
    batch_size: int,
    done: Callable[[int], object] = lambda count: None,
) -> list[Answer]:
    """Answers the episodes, in their order.

    Args:
        model: the model.
        episodes: the queries with their prompts.
        journal: answers so far. An answer in the journal is not asked for again; each new one is
            added.
        task: name of the task.
        shots: number of support examples.
        generate: whether to decode an answer.
        score: whether to score the candidates; an ensemble's scores are the mean over its orders.
        batch_size: prompts answered together.
        done: called with the number of queries that were finished since the last call.

    Raises:
        PromptError: a prompt that cannot be read, or is too long.
        PathError: the journal cannot be written.
    """
    keys = [prompt_hash(episode) for episode in episodes]
    order = sorted(range(len(episodes)), key=lambda number: _size(episodes[number]), reverse=True)
    most_prompts = max((1 + len(episode.orders) for episode in episodes), default=1)
    step = max(1, BATCHES * batch_size // most_prompts)
    for start in range(0, len(order), step):
        wave = order[start : start + step]
        # Answered as a whole or not at all, so that a resumed run forms the same batches as a run
        # that was not stopped.
        if any(keys[number] not in journal.finished for number in wave):
            asked = [episodes[number] for number in wave]
            requests = [
                model.request(
                    parts,
                    episode.candidates if score else (),
                    separator=episode.separator,
                    masked=episode.masked,
                )
                for episode in asked
                for parts in (episode.parts, *episode.orders)
            ]
            replies = iter(model.engine.answer(requests, generate=generate, batch_size=batch_size))
            found: list[TextAndScores] = []
            for episode in asked:
                of_orders = [next(replies) for _ in range(1 + len(episode.orders))]
                text = model.text(of_orders[0]) if generate else None
                scores = None
                if score and episode.candidates:
                    mean = np.mean([reply.scores for reply in of_orders], axis=0)
                    scores = tuple(mean.tolist())
                found.append((text, scores))
            journal.add(asked, [keys[number] for number in wave], found)
        done(len(wave))
    return [
        Answer(task, shots, episode, *journal.finished[key])
        for key, episode in zip(keys, episodes, strict=True)
    ]


def _size(episode: Episode) -> tuple[int, int]:
    """Returns the numbers of images and of characters of a prompt."""
    images = sum(not isinstance(part, str) for part in episode.parts)
    return images, sum(len(part) for part in episode.parts if isinstance(part, str))

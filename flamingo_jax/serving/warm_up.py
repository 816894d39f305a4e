"""Compiles the programs of common requests before the server is ready.

A program is compiled once for each shape. A first question of a dialogue has these:

    whole prompts, and prompts after a cached prefix      x 1 request, a full batch
    greedy answers, and drawn ones                        x the first token, the later tokens

A dialogue that goes on, or many images, have further shapes, which compile when they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import Part
from flamingo_jax.inference.request import Request

Report = Callable[[str], None]

_METHODS: dict[str, Greedy | Sample] = {
    "greedy": Greedy(max_new_tokens=2),
    "drawn": Sample(max_new_tokens=2),
}


def warm_up(
    model: Flamingo,
    *,
    rows: int,
    longest: int,
    should_end: Callable[[], bool] = lambda: False,
    report: Report = lambda line: None,
) -> None:
    """Answers first questions of dialogues, alone and in a batch.

    Args:
        model: with its cache of prefixes, which then has the opening of a dialogue.
        rows: of a full batch.
        longest: the most tokens of an answer.
        should_end: is asked between two batches.
        report: receives a line for each batch, and one at the end.
    """
    start, engine = time.monotonic(), model.engine
    first, other = (_asked(model, "", number) for number in range(2))
    for name, method in _METHODS.items():
        # The first prompt of its kind is read whole. Then prompts with the same opening are not.
        strange = [_asked(model, f"{name} {number} ", number) for number in range(3)]
        batches = [[first if name == "greedy" else strange[0]], [other]]
        if rows > 1:
            batches += [strange[1:], [first, other]]
        for batch in batches:
            if should_end():
                return
            begun, before = time.monotonic(), engine.tokens_read
            engine.stream(
                batch,
                [method] * len(batch),
                rows=1 if len(batch) == 1 else rows,
                room=longest,
                across_calls=True,
            ).advance(2)
            whole = sum(len(request.prompt.tokens) for request in batch)
            report(
                f"Warm-up: {1 if len(batch) == 1 else rows} x {name}, "
                f"{engine.tokens_read - before} of {whole} tokens read: "
                f"{time.monotonic() - begun:.1f} s"
            )
    report(f"Warm-up: done in {time.monotonic() - start:.1f} s")


def _asked(model: Flamingo, before: str, number: int) -> Request:
    """Returns a question after the opening of a dialogue, about an image if the model sees images.

    Args:
        model: the model.
        before: text that makes the opening another one; "" changes nothing.
        number: of the image.
    """
    size = model.engine.image_size
    said: list[Part] = ["What is this?"]
    if size is not None:
        said.insert(0, np.full((size, size, 3), 100 + number, np.uint8))
    parts = Chat.prompt_of(said, model.chat_template)
    return model.request([before, *parts] if before else parts)

"""Answers of one batch of prompts, a few tokens at a time.

    Engine.stream(requests, methods)  -> TokenStream     the prompts are read, with a cache
    .advance()                        -> new tokens of each answer, until `is_done`
    .end(row)                            this answer gets no more

One program decodes all steps: the number of tokens so far is one of its inputs, and the cache is
changed in place. A stream that is dropped frees its cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference import padding
from flamingo_jax.inference.answering import go_on
from flamingo_jax.inference.compiled import Compiled, fetch
from flamingo_jax.inference.decode import Decoding
from flamingo_jax.inference.methods import BeamSearch, Greedy, Method, Sample
from flamingo_jax.sharding.mesh import BATCH_AXES


def streamable(method: Method) -> Greedy | Sample:
    """Returns a method whose tokens are final when they are chosen.

    Raises:
        ConfigError: it is beam search.
    """
    if isinstance(method, BeamSearch):
        raise ConfigError(
            f"stream: got {method!r}; a search knows its answer only at the end, so there is "
            "nothing to stream. Use Greedy() or Sample(), or generate(..., method=BeamSearch(3))."
        )
    return method


class TokenStream:
    """Answers that are being decoded; see `Engine.stream`.

    Attributes:
        hit_stop: for each answer, whether it ended in a stop token.
    """

    def __init__(
        self,
        compiled: Compiled,
        progress: Decoding,
        sampling: Any,
        limits: tuple[int, ...],
        static: Mapping[str, Hashable],
    ) -> None:
        """Takes answers with their first tokens.

        Args:
            compiled: the model on its devices.
            progress: from `answering.read_and_begin`.
            sampling: the fields of `decode.Sampling` on the devices, or None.
            limits: the most tokens of each answer.
            static: of `answering.go_on`.
        """
        self._compiled, self._sampling, self._static = compiled, sampling, static
        self._progress: Decoding | None = progress
        self._limits, self._rows = limits, progress.tokens.shape[0]
        self._shown = 0  # tokens of each answer that the caller has
        self._ended = [False] * len(limits)
        self.hit_stop = [False] * len(limits)

    @property
    def is_done(self) -> bool:
        """True if no answer gets more tokens."""
        return all(self._ended)

    def has_ended(self, row: int) -> bool:
        """Returns True if an answer gets no more tokens."""
        return self._ended[row]

    def end(self, row: int) -> None:
        """Ends an answer: nobody waits for it."""
        self._ended[row] = True
        if self.is_done:
            self._progress = None

    def advance(self, tokens: int = 1) -> list[tuple[int, ...]]:
        """Decodes up to `tokens` tokens more of each answer.

        Returns:
            The new tokens of each answer, without its stop token; () if it has ended.

        Raises:
            NonFiniteError: the model gave NaN or infinity.
        """
        new: list[tuple[int, ...]] = [()] * len(self._limits)
        if self._progress is None:
            return new
        until = min(self._shown + tokens, max(self._limits))
        if until > 1:  # the first token was chosen when the prompts were read
            ended = np.ones(self._rows, bool)
            ended[: len(self._ended)] = self._ended
            self._progress = self._compiled.in_place(
                go_on,
                self._progress,
                self._sampling,
                self._compiled.put(ended, BATCH_AXES),
                self._compiled.put(np.asarray(until, np.int32), ()),
                **self._static,
            )
        progress = self._progress
        chosen, score = fetch((progress.tokens, progress.score))
        active = [row for row, ended in enumerate(self._ended) if not ended]
        self._compiled.finite(score[active], "log-likelihoods of answers")
        static: Any = self._static
        stop = (*static["stop"], static["pad_id"])  # as `Engine.answer` reads answers
        for row in active:
            some = chosen[row, self._shown : min(until, self._limits[row])]
            new[row] = padding.before_stop(some, stop)
            self.hit_stop[row] = len(new[row]) < len(some)
            if self.hit_stop[row] or until >= self._limits[row]:
                self.end(row)
        self._shown = until
        return new

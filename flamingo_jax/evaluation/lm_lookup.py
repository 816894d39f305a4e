"""The text-only probe of a language model.

Does it look words up in a dictionary that it reads for the first time?

    <BOS> circle : ulb ; red : veck ; red : veck ; circle : ulb ; circle :      -> ulb

Binding names to pictures rests on this circuit: cross-attention writes what it sees in the place of
the word, and the frozen language model does the rest. So the demo does not start the flamingo stage
before the probe passes. Names are the new ones, bound afresh on each page.

`lookup_probe` ends the language_model stage. The task `lm_lookup` asks the same pages of an export;
it is text alone, so a language_model export is enough. A shot is an entry of the dictionary: at 4
shots the page binds four words to new names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.world.text import NEW_NAMES, lookup_pages

TokenNLL = Callable[[np.ndarray, np.ndarray], Any]
_LENGTH_STEP = 64


def lookup_probe(
    token_nll: TokenNLL, tokenizer: Tokenizer, ways: int, n: int, seed: int
) -> dict[str, float]:
    """Asks `n` pages of `ways` words.

    Args:
      token_nll: a language model: (tokens int32[n, L], segment int32[n, L]) -> float[n, L - 1], at
        l the negative log-likelihood, in nats, of tokens[:, l + 1] given tokens[:, : l + 1]. It is
        called once for each way, always with the same shape; L is a multiple of 64, 64 up to 7
        ways.
      tokenizer: of the model.
      ways: words and names on a page.
      n: pages.
      seed: decides the pages.

    Returns:
      "accuracy", how often the right name is the likeliest of those on the page (chance 1 / ways),
      and "nll", the mean over pages of the negative log-likelihood of the right name.
    """
    pages = lookup_pages(ways, n, seed)
    prompts = [[*tokenizer.start_ids, *tokenizer.encode(page.prompt)] for page in pages]
    answers = [[tokenizer.encode(name) for name in page.candidates] for page in pages]
    longest = max(
        len(prompt) + max(map(len, names)) for prompt, names in zip(prompts, answers, strict=True)
    )
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    nll = np.zeros((n, ways))
    for way in range(ways):
        tokens = np.full((n, length), tokenizer.pad_id, np.int32)
        segment = np.zeros((n, length), np.int32)
        is_answer = np.zeros((n, length), bool)
        for row, (prompt, names) in enumerate(zip(prompts, answers, strict=True)):
            text = [*prompt, *names[way]]
            tokens[row, : len(text)] = text
            segment[row, : len(text)] = 1
            is_answer[row, len(prompt) : len(text)] = True
        losses = np.asarray(token_nll(tokens, segment), np.float64)
        nll[:, way] = np.where(is_answer[:, 1:], losses, 0.0).sum(axis=1)
    right = np.array([page.candidates.index(page.answer) for page in pages])
    return {
        "accuracy": float((nll.argmin(axis=1) == right).mean()),
        "nll": float(nll[np.arange(n), right].mean()),
    }


@dataclasses.dataclass(frozen=True)
class LookupTask:
    """Which of the page's names belongs to the word that is asked for."""

    name: str = "lm_lookup"
    metrics: tuple[str, ...] = ("ranking", "nll")
    chance: float | None = None  # 1 / shots
    protocol: Protocol = Protocol()

    def accepts(self, shots: int) -> bool:
        """A dictionary has two entries or more, and there are so many names."""
        return 2 <= shots <= len(NEW_NAMES)

    def submission_questions(self) -> Sequence[int | str]:
        """Returns nothing: all answers are known."""
        return ()

    def episodes(self, shots: int) -> list[Episode]:
        """Returns `protocol.n` pages of `shots` words."""
        pages = lookup_pages(shots, self.protocol.n, self.protocol.seed)
        return [
            Episode(
                parts=(page.prompt,),
                candidates=page.candidates,
                answer=page.answer,
                query_id=f"lookup{shots}/{index}",
            )
            for index, page in enumerate(pages)
        ]


def _make(data: Mapping[str, str], protocol: Protocol) -> LookupTask:
    task.check_draws_its_own("lm_lookup", protocol)
    return LookupTask(protocol=protocol)


TASKS: dict[str, task.TaskFactory] = {"lm_lookup": _make}
